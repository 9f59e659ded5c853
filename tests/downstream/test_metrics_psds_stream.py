"""Counts that are compacted as they come; PSDS clip by clip, in processes, with progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downstream.metrics import PSDS1, StreamedPSDS, false_positives, psds, psds_stream
from downstream.metrics.false_positives import FalsePositives, detection_steps
from tests.child_processes import survivors_of_a_kill
from tests.downstream.test_metrics_psds import FRAME_S, SETTINGS, Case

pytest.importorskip("sed_scores_eval")

N_CLASSES = 3


def n_runs(active: np.ndarray) -> np.ndarray:
    """Runs in each column of (frames, classes)."""
    return active[0].astype(int) + (active[1:] & ~active[:-1]).sum(axis=0)


def random_clips(seed: int, n_clips: int, levels: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    clips = []
    for _ in range(n_clips):
        scores = rng.random((int(rng.integers(1, 30)), N_CLASSES))
        scores = np.round(scores * levels) / levels if levels else scores
        scores[rng.random(scores.shape) < 0.05] = -np.inf
        occurring = np.flatnonzero(rng.random(N_CLASSES) < 0.2)
        clips.append((scores.astype("f4" if levels else "f8"), occurring))
    return clips


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_clips=st.integers(1, 40),
    levels=st.sampled_from([0, 4, 20]),
    limit=st.integers(0, 60),
    at_once=st.sampled_from([0, 20, 200]),
    n_parts=st.integers(1, 3),
)
def test_counts_are_exact_up_to_the_limit_and_beyond_it_above(
    seed: int, n_clips: int, levels: int, limit: int, at_once: int, n_parts: int
) -> None:
    clips = random_clips(seed, n_clips, levels)
    parts = [FalsePositives(N_CLASSES, limit) for _ in range(n_parts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(false_positives, "_CHANGES_AT_ONCE", at_once)
        for i, (scores, occurring) in enumerate(clips):
            parts[i % n_parts].add(scores, occurring)
        for other in parts[1:]:
            parts[0].merge(other)
        parts[0].compact()
    for label in range(N_CLASSES):
        score, change = parts[0].curve(label)
        assert (np.diff(score) < 0).all()
        there = [s[:, [label]] for s, occurring in clips if label not in occurring]
        for threshold in np.unique(np.concatenate([np.zeros((1, 1)), *there]))[::-1]:
            if threshold == -np.inf:
                continue
            wanted = sum(int(n_runs(s >= threshold)[0]) for s in there)
            found = int(change[score >= threshold].sum())
            assert found == wanted if wanted <= limit else found > limit


def test_what_is_kept_does_not_grow_with_the_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(false_positives, "_CHANGES_AT_ONCE", 500)
    counts, rng = FalsePositives(N_CLASSES, limit=50), np.random.default_rng(0)
    most = n_changes = 0
    for _ in range(1000):
        scores = rng.random((100, N_CLASSES))
        n_changes += np.count_nonzero(detection_steps(scores))
        counts.add(scores, np.zeros(0, int))
        most = max(most, len(counts.kept.label) + counts.n_new)
    assert n_changes > 100 * most
    assert (counts.low == -np.inf).all() and (counts.high > 0.9).all()


@pytest.mark.parametrize("at_once", [0, 300])
@pytest.mark.parametrize("name", ["short curve", "long curve"])
def test_streamed_in_any_order_is_psds(
    name: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = SETTINGS[name]
    for levels in (0, 8):
        case = Case(levels, n_clips=40, levels=levels)
        whole = case.check(setting)
        monkeypatch.setattr(false_positives, "_CHANGES_AT_ONCE", at_once)
        stream = StreamedPSDS(FRAME_S, case.labels, case.reference, case.durations, **setting)
        for file in reversed(case.scores):
            stream.add(file, case.scores[file])
        monkeypatch.undo()
        found = stream.result()
        assert found.per_class == pytest.approx(whole.per_class, abs=1e-12)
        assert found.micro == pytest.approx(whole.micro, abs=1e-12)
        assert stream.result() == found


def test_equal_when_worker_processes_compact_often(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(2, n_clips=60)
    whole = case.ours(SETTINGS["short curve"])
    monkeypatch.setattr(false_positives, "_CHANGES_AT_ONCE", 100)
    for jobs in (1, 3):
        assert case.ours(SETTINGS["short curve"], jobs=jobs) == whole


def test_a_worker_that_takes_all_shares_counts_each_clip_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, pool = Case(2, n_clips=60), psds_stream.ProcessPoolExecutor
    whole = case.ours(SETTINGS["short curve"], jobs=1)
    monkeypatch.setattr(psds_stream, "ProcessPoolExecutor", lambda jobs, *rest: pool(1, *rest))
    assert case.ours(SETTINGS["short curve"], jobs=4) == whole


def test_float16_scores_count_as_they_are() -> None:
    case = Case(3, kind="f2")
    expected = case.check(PSDS1)
    case.scores = {name: score.astype("f8") for name, score in case.scores.items()}
    assert case.ours(PSDS1) == expected


def test_precisions_may_be_mixed() -> None:
    case = Case(4, levels=16, kind="f8")
    expected = case.ours(SETTINGS["short curve"])
    for i, name in enumerate(case.scores):
        case.scores[name] = case.scores[name].astype(("f2", "f4", "f8")[i % 3])
    assert case.ours(SETTINGS["short curve"]) == expected


STUCK = """
import time
from tests.downstream.test_metrics_psds import Case, PSDS1

class Stuck(dict):
    def __getitem__(self, name):
        time.sleep(600)

case = Case(5)
case.scores = Stuck(case.scores)
case.ours(PSDS1, jobs=2)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_end_with_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "stuck.py"
    path.write_text(STUCK)
    children, left = survivors_of_a_kill(path)
    assert len(children) == 2 and not left


@pytest.mark.parametrize("jobs", [1, 2])
def test_progress_is_told_to_the_end(jobs: int) -> None:
    case, told = Case(5), []
    case.ours(PSDS1, jobs=jobs, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (len(case.scores), len(case.scores))
    assert told == sorted(told)


def test_a_skipped_clip_is_no_part_of_the_set() -> None:
    case = Case(6)
    setting = SETTINGS["short curve"]
    stream = StreamedPSDS(FRAME_S, case.labels, case.reference, case.durations, **setting)
    for i, file in enumerate([*case.scores]):
        if i % 4 == 3:
            stream.skip(file)
            del case.scores[file], case.reference[file]
        else:
            stream.add(file, case.scores[file])
    assert stream.result() == case.ours(setting)


def test_bad_input_to_a_stream() -> None:
    reference: Any = {"one.wav": [(0.0, 1.0, "a")], "two.wav": []}
    sides = (1.0, ["a", "b"], reference, {"one.wav": 3.0, "two.wav": 3.0})
    with pytest.raises(ValueError, match="no duration of 'two.wav'"):
        StreamedPSDS(*sides[:3], {"one.wav": 3.0}, 0.5, 0.5)
    with pytest.raises(ValueError, match="dtc is from 0 to 1, got 2"):
        StreamedPSDS(*sides, 2.0, 0.5)
    with pytest.raises(ValueError, match="no reference events"):
        StreamedPSDS(*sides[:2], {"one.wav": []}, sides[3], 0.5, 0.5)
    stream = StreamedPSDS(*sides, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"'one.wav': scores \(3, 1\), wanted \(frames, 2\)"):
        stream.add("one.wav", np.zeros((3, 1)))
    stream.add("one.wav", np.zeros((3, 2)))
    with pytest.raises(ValueError, match="'one.wav' comes a second time"):
        stream.add("one.wav", np.zeros((3, 2)))
    with pytest.raises(ValueError, match="unknown file 'too.wav'; did you mean 'two.wav'"):
        stream.add("too.wav", np.zeros((3, 2)))
    with pytest.raises(ValueError, match="no scores of 'two.wav'"):
        stream.result()
    stream.skip("two.wav")
    assert stream.result().macro == 0.0
    everything = StreamedPSDS(*sides, 0.5, 0.5)
    for file in reference:
        everything.skip(file)
    with pytest.raises(ValueError, match="no reference events"):
        everything.result()


def test_an_error_leaves_a_clip_to_be_added() -> None:
    stream = StreamedPSDS(1.0, ["a"], {"f": [(0.0, 1.0, "a")]}, {"f": 3.0}, 0.5, 0.5)
    with pytest.raises(ValueError, match="NaN"):
        stream.add("f", np.full((3, 1), np.nan))
    stream.add("f", np.array([[1.0], [0.0], [0.0]]))
    assert stream.result().macro == 1.0
    assert (
        psds(
            {"f": np.array([[1.0], [0.0], [0.0]])},
            1.0,
            ["a"],
            {"f": [(0.0, 1.0, "a")]},
            {"f": 3.0},
            0.5,
            0.5,
        ).macro
        == 1.0
    )
