"""PSDS of recordings of an hour: the counts of sed_scores_eval, without its tables."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downstream.metrics import psd_roc, score_runs
from downstream.protocols.base import Found
from downstream.resampled import psds_draws
from downstream.scoring import score_task
from downstream.tasks.own import OWN
from downstream.tasks.task import Clip, Rotation, Task
from tests.downstream.test_metrics_psds import FRAME_S, SETTINGS, Case

pytest.importorskip("sed_scores_eval")

MIB = 2**20


def rough(seed: int, levels: int, holes: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (frames,), some of them equal or -inf, and events that don't touch."""
    rng = np.random.default_rng(seed)
    scores = rng.random(int(rng.integers(1, 200)))
    scores = (scores + np.roll(scores, 1)) / 2 if seed % 2 else scores
    scores = np.round(scores * levels) / levels if levels else scores
    scores = np.sort(scores) if seed % 7 == 0 else scores
    scores[rng.random(len(scores)) < holes] = -np.inf
    times = np.sort(rng.random(2 * int(rng.integers(0, 7)))) * len(scores) * FRAME_S * 1.1
    times = np.round(times, int(rng.choice([1, 2, 3, 12])))
    onset_s, offset_s = times[::2], times[1::2]
    apart = (offset_s > onset_s) & np.append(True, onset_s[1:] > offset_s[:-1])[: len(onset_s)]
    return scores, onset_s[apart], offset_s[apart]


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    levels=st.sampled_from([0, 3, 10, 100]),
    holes=st.sampled_from([0.0, 0.0, 0.3, 1.0]),
    dtc=st.sampled_from([0.0, 0.1, 1 / 3, 0.7, 1.0]),
    gtc=st.sampled_from([0.0, 0.1, 1 / 3, 0.7, 1.0]),
)
def test_changes_are_those_of_sed_scores_eval(
    seed: int, levels: int, holes: float, dtc: float, gtc: float
) -> None:
    scores, *times = rough(seed, levels, holes)
    assert not psd_roc.is_long(scores)
    wanted = psd_roc.clip_changes(scores, FRAME_S, *times, dtc, gtc)
    found = score_runs.clip_changes(scores, FRAME_S, *times, dtc, gtc)
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one, other)


def test_runs_of_a_few_frames() -> None:
    """0.5 holds on, 0.9 is a peak in it, which its neighbour joins; -inf is in no run."""
    runs = score_runs.runs_of(np.array([0.5, 0.9, 0.7, 0.5, -np.inf, 0.2, 0.2]))
    found = sorted(zip(*(column.tolist() for column in runs), strict=True))
    assert found == [
        (0, 4, 0.5, -np.inf),
        (1, 2, 0.9, 0.7),
        (1, 3, 0.7, 0.5),
        (5, 7, 0.2, -np.inf),
    ]


@pytest.mark.slow
def test_an_hour_under_the_metrics_of_own_recordings() -> None:
    """Scores that are nearly the same everywhere, no two of them alike; in bounded memory."""
    rng = np.random.default_rng(0)
    onsets = (np.arange(1, 3500, 50) + rng.random(70)).tolist()
    events = tuple((onset, onset + 1.5, "a") for onset in onsets)
    clip = Clip("a.wav", Path("a.wav"), events, 3600.0, "a.wav")
    rotations = (Rotation((), (), ("test",)),)
    task = Task(OWN, "own", "1", Path("."), ("a",), {"test": (clip,)}, rotations)
    scores = (0.5 + 1e-4 * rng.standard_normal((90_000, 1))).astype("f4")
    tracemalloc.start()
    try:
        found = Found({"a.wav": scores}, {"a.wav": [*events]}, (("a.wav",),), ())
        results = score_task(task, found)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert set(results) == set(OWN.metrics) and results["segment_1s_er"].value == 0
    assert results["psds1"].draws == pytest.approx(results["psds1"].value)
    assert peak < 500 * MIB


@pytest.mark.parametrize("name", ["psds1", "short curve", "long curve"])
def test_long_clips_beside_short_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psd_roc, "_LONG_FRAMES", 40)
    for seed in range(3):
        case = Case(seed, levels=30 * (seed % 2))
        assert {psd_roc.is_long(scores) for scores in case.scores.values()} == {True, False}
        case.check(SETTINGS[name])


@pytest.mark.parametrize("longest", [0, 40])
def test_draws_of_long_clips(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case, setting = Case(1), SETTINGS["short curve"]
    weights = np.random.default_rng(0).multinomial(25, [1 / 25] * 25, 20)
    sides = (case.scores, FRAME_S, case.labels, case.reference, case.durations, weights)
    wanted = psds_draws(*sides, **setting)
    monkeypatch.setattr(psd_roc, "_LONG_FRAMES", longest)
    assert psds_draws(*sides, **setting) == pytest.approx(wanted, abs=1e-12)
