"""calibrate: each class gets what is best for it on the clips that it is shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from downstream.calibration import THRESHOLDS, calibrate, decode
from downstream.scoring import main_score
from downstream.tasks import Clip, Task
from tests.downstream.probe_task import LABELS, facts, made_up_task

N_FRAMES = 500


def scored(
    task: Task, levels: dict[str, tuple[float, float]], noise: float = 0.0
) -> dict[str, np.ndarray]:
    """Scores that are `high` inside events and `low` elsewhere, by label."""
    rng = np.random.default_rng(0)
    found = {}
    for clip in task.clips(("train", "valid", "test")):
        scores = np.zeros((N_FRAMES, len(LABELS)), np.float32)
        for i, label in enumerate(LABELS):
            low, high = levels[label]
            scores[:, i] = low
            for onset, offset, name in clip.events:
                if name == label:
                    scores[round(onset / 0.04) : round(offset / 0.04), i] = high
        blips = rng.random(scores.shape) < noise
        found[clip.file] = np.where(blips, 1 - scores, scores)
    return found


LEVELS = {"bell": (0.05, 0.35), "dog": (0.6, 0.9), "rain": (0.0, 1.0)}


def test_each_class_gets_a_threshold_between_its_levels() -> None:
    task = made_up_task(n_clips=8)
    decoding = calibrate(task, task.clips("valid"), scored(task, LEVELS))
    for label, threshold in zip(LABELS, decoding.thresholds, strict=True):
        low, high = LEVELS[label]
        assert low < threshold < high
        assert threshold in THRESHOLDS
    scores = scored(task, LEVELS)
    test = task.clips("test")
    smooth, events = decode({c.file: scores[c.file] for c in test}, decoding, task.labels)
    assert main_score(task, test, smooth, events) == 1.0
    at_half = replace(decoding, thresholds=(0.5,) * 3)
    _, events = decode({c.file: scores[c.file] for c in test}, at_half, task.labels)
    assert main_score(task, test, smooth, events) < 0.9


def test_medians_take_away_blips() -> None:
    task = made_up_task(n_clips=8)
    levels = dict.fromkeys(LABELS, (0.1, 0.9))
    clean = calibrate(task, task.clips("valid"), scored(task, levels))
    noisy = calibrate(task, task.clips("valid"), scored(task, levels, noise=0.05))
    assert set(clean.median_frames) == {1} and min(noisy.median_frames) >= 3


def test_test_clips_are_not_looked_at() -> None:
    task = made_up_task()
    scores = scored(task, LEVELS)
    wanted = calibrate(task, task.clips("valid"), scores)
    for clip in (*task.clips("test"), *task.clips("train")):
        scores[clip.file] = np.full_like(scores[clip.file], np.nan)
    known = {clip.file: scores[clip.file] for clip in task.clips("valid")}
    assert calibrate(task, task.clips("valid"), known) == wanted


def test_a_class_without_events_gets_a_half() -> None:
    task = made_up_task()
    clips = tuple(
        Clip(c.file, c.path, tuple(e for e in c.events if e[2] != "dog"), c.duration_s, c.unit)
        for c in task.clips("valid")
    )
    decoding = calibrate(task, clips, scored(task, LEVELS))
    assert decoding.thresholds[LABELS.index("dog")] == 0.5
    silent = tuple(Clip(c.file, c.path, (), c.duration_s, c.unit) for c in clips)
    assert calibrate(task, silent, scored(task, LEVELS)).thresholds == (0.5,) * 3


@pytest.mark.parametrize("metric", ["psds1", "segment_1s_er", "frame_map"])
def test_metrics_without_thresholds_and_error_rates(metric: str) -> None:
    task = made_up_task(n_clips=8, metrics=[metric])
    assert task.facts == facts([metric])
    decoding = calibrate(task, task.clips("valid"), scored(task, LEVELS))
    for label, threshold in zip(LABELS, decoding.thresholds, strict=True):
        assert LEVELS[label][0] < threshold < LEVELS[label][1]


def test_of_equal_thresholds_the_middle_one_is_taken() -> None:
    task = made_up_task(n_clips=8)
    decoding = calibrate(task, task.clips("valid"), scored(task, LEVELS))
    for label, threshold in zip(LABELS, decoding.thresholds, strict=True):
        assert threshold == pytest.approx(np.mean(LEVELS[label]), abs=0.06)
