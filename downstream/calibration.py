"""Thresholds and median lengths per class, found on validation data.

Every pair of a median length and a threshold is tried, for all classes at once, and each class
takes the pair with which its own score under an event metric is best. A threshold's score is
averaged with its neighbours' before they are compared, and of equal ones the middle is taken: what
is best at the edge of a range by chance of a small validation set would be the first to fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from downstream.postprocess import GRID, median_filter, runs, to_events
from downstream.scoring import METRICS, Sample
from downstream.tasks.task import Clip, Task, Triple
from hear_pretrainedsed.decoding import Decoding

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
MEDIANS_S = (0.04, 0.12, 0.2, 0.36, 0.6, 1.0)
_EVENT_METRIC = "intersection_f1"  # of tasks whose own metrics have no threshold


def calibrate(
    task: Task,
    clips: Sequence[Clip],
    scores: Mapping[str, np.ndarray],
    thresholds: Sequence[float] = THRESHOLDS,
) -> Decoding:
    """The decoding that is best for each class on some clips of a task, not its test clips.

    `scores` are {file: (frames, classes)}. The metric is the first of the task's that is of events,
    else the intersection F1. A class without events in the clips gets the threshold 0.5 and the
    median length that is best for the mean of all classes.
    """
    widths = sorted({_odd(s) for s in (*MEDIANS_S, task.facts.median_s)})
    table = np.stack(
        [
            [_class_scores(task, clips, smooth, threshold) for threshold in thresholds]
            for smooth in ({f: median_filter(x, n) for f, x in scores.items()} for n in widths)
        ]
    )  # (widths, thresholds, classes)
    table = _with_neighbours(table)
    there = {label for clip in clips for *_, label in clip.events}
    known = np.array([label in there for label in task.labels])
    overall = table[:, :, known].mean(axis=(1, 2)) if known.any() else np.zeros(len(widths))
    chosen = []
    for i in range(len(task.labels)):
        if not known[i] or not table[:, :, i].any():
            chosen.append((0.5, widths[int(overall.argmax())]))
            continue
        width, threshold = _best(table[:, :, i])
        chosen.append((thresholds[threshold], widths[width]))
    return Decoding(*map(tuple, zip(*chosen, strict=True)))


def decode(
    scores: Mapping[str, np.ndarray], decoding: Decoding, labels: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, list[Triple]]]:
    """Scores {file: (frames, classes)} -> the same, smoothed; and events."""
    smooth = {file: median_filter(x, decoding.median_frames) for file, x in scores.items()}
    return smooth, _events(smooth, decoding.thresholds, labels)


def _events(
    smooth: Mapping[str, np.ndarray], threshold: float | Sequence[float], labels: Sequence[str]
) -> dict[str, list[Triple]]:
    return {f: to_events(runs(x, threshold), labels, spans="edges") for f, x in smooth.items()}


def _class_scores(
    task: Task, clips: Sequence[Clip], smooth: Mapping[str, np.ndarray], threshold: float
) -> list[float]:
    """Scores of the classes; 0 for one without a value."""
    events = _events(smooth, threshold, task.labels)
    name = next((n for n in task.metrics if METRICS[n].needs == "events"), _EVENT_METRIC)
    metric = METRICS[name]
    per_class = metric.score(Sample.of(task, clips, smooth, events)).per_class
    values = np.nan_to_num([per_class[label] for label in task.labels], nan=0.0)
    return (values if metric.maximize else 1 / (1 + values)).tolist()


def _best(values: np.ndarray) -> tuple[int, int]:
    """Place of the largest of values (widths, thresholds); of several the middle one.

    That is in the row with most of them, the first of such rows.
    """
    equal = values >= values.max() - 1e-9
    row = int(equal.sum(axis=1).argmax())
    places = np.flatnonzero(equal[row])
    return row, int(places[(len(places) - 1) // 2])


def _with_neighbours(table: np.ndarray) -> np.ndarray:
    """Mean over each threshold and the ones beside it; what lies outside repeats the last one."""
    padded = np.pad(table, ((0, 0), (1, 1), (0, 0)), mode="edge")
    return (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3


def _odd(seconds: float) -> int:
    """The nearest odd number of frames."""
    return 2 * round((seconds / GRID.hop_s - 1) / 2) + 1
