"""PSDS of many clips and classes in bounded memory, without cross-triggers.

A clip in which a class does not occur can only add false positives, one at each local maximum of
its scores as the threshold falls and one less at each minimum; that is computed for all classes of
a clip at once. Clips in which it occurs are counted by sed_scores_eval.

Few of these changes matter. A class's curve ends at `max_efpr`, and a threshold below the maxima
of more clips without the class than that allows lies beyond the end, since each such clip has at
least one false positive. So clips are read twice: for their maxima, then for the changes above the
limits that follow from all maxima.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from downstream.metrics import psd_roc
from downstream.metrics.event_table import EventTable

_CLIPS_AT_ONCE = 64  # a unit of work
_CHANGES_AT_ONCE = 32_000_000  # held in memory at a time, 7 to 11 bytes each


@dataclass(frozen=True)
class Task:
    """What is scored. `kept` are the classes with reference events, `table` sorted by file."""

    scores: Mapping[str, np.ndarray]
    files: Sequence[str]
    n_classes: int
    kept: np.ndarray
    table: EventTable
    frame_s: float
    total_s: float
    dtc: float
    gtc: float
    max_efpr: float

    def events(self, i: int) -> list[tuple[float, float, str]]:
        """File i's reference events, classes named by their place in `kept`."""
        first, end = np.searchsorted(self.table.file, (i, i + 1))
        table = self.table.rows(np.arange(first, end))
        names = map(psd_roc.class_name, np.searchsorted(self.kept, table.label).tolist())
        return list(zip(table.onset_s.tolist(), table.offset_s.tolist(), names, strict=True))

    def occurring(self, i: int) -> np.ndarray:
        """Places in `kept` of the classes that file i's reference events have."""
        first, end = np.searchsorted(self.table.file, (i, i + 1))
        return np.unique(np.searchsorted(self.kept, self.table.label[first:end]))


def frame_scores(task: Task, i: int) -> np.ndarray:
    """Scores (frames, kept classes) of file i, checked."""
    name = task.files[i]
    scores = np.asarray(task.scores[name])
    if scores.ndim != 2 or scores.shape[1] != task.n_classes or not len(scores):
        raise ValueError(f"{name!r}: scores {scores.shape}, wanted (frames, {task.n_classes})")
    if not np.issubdtype(scores.dtype, np.floating):
        raise ValueError(f"{name!r}: scores are floating point, got {scores.dtype}")
    if len(task.kept) < task.n_classes:
        scores = scores[:, task.kept]
    if np.isnan(scores.max()):
        raise ValueError(f"{name!r}: NaN in the scores")
    return scores


def class_rocs(task: Task, jobs: int) -> tuple[np.ndarray, list[psd_roc.Roc]]:
    """PSDS and curve of each kept class."""
    shards = [
        range(i, min(i + _CLIPS_AT_ONCE, len(task.files)))
        for i in range(0, len(task.files), _CLIPS_AT_ONCE)
    ]
    surveys = list(_mapped(_survey, task, shards, jobs))
    highest = np.concatenate([one for one, _ in surveys])
    n_changes = np.concatenate([many for _, many in surveys])
    limits = _limits(task, highest)
    rows = np.where(highest >= limits, n_changes, 0).sum(axis=0)
    results = []
    for classes in _groups(rows):
        search = _Search(task, classes, limits, highest >= limits)
        found = list(_mapped(_changes, search, shards, jobs))
        curves = _Curves.of(task, classes, found)
        del found
        results += _mapped(_class_roc, curves, range(len(classes)), jobs)
    return np.array([value for value, _ in results]), [curve for _, curve in results]


def _survey(task: Task, shard: range) -> tuple[np.ndarray, np.ndarray]:
    """(clips, kept): highest score, -inf where the class occurs; number of changes."""
    highest = np.empty((len(shard), len(task.kept)))
    n_changes = np.empty((len(shard), len(task.kept)), np.int32)
    for row, i in enumerate(shard):
        scores = frame_scores(task, i)
        highest[row] = scores.max(axis=0)
        highest[row, task.occurring(i)] = -np.inf
        n_changes[row] = np.count_nonzero(_steps(scores), axis=0)
    return highest, n_changes


def _steps(scores: np.ndarray) -> np.ndarray:
    """Change in the number of detections where the threshold falls below a score, like `scores`.

    1 where a frame is above the one before, less 1 where the next one is above it: the frames of
    a plateau add up.
    """
    steps = np.zeros(scores.shape, np.int8)
    rises = scores[1:] > scores[:-1]
    steps[1:] += rises
    steps[:-1] -= rises
    steps[0] += 1
    steps[scores == -np.inf] = 0
    return steps


def _limits(task: Task, highest: np.ndarray) -> np.ndarray:
    """The lowest score of each class that may matter (kept,)."""
    n_clips = int(task.max_efpr * task.total_s / 3600) + 2  # one is enough but for rounding
    if n_clips > len(highest):
        return np.full(highest.shape[1], -np.inf)
    return np.partition(highest, -n_clips, axis=0)[-n_clips]


def _groups(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Classes in groups whose changes fit into memory together."""
    group = (np.cumsum(rows) - 1).clip(0) // _CHANGES_AT_ONCE
    for number in np.unique(group):
        yield np.flatnonzero(group == number)


@dataclass(frozen=True)
class _Search:
    """Changes wanted: of `classes`, from `limits` (kept,) up, in `needed` clips (clips, kept)."""

    task: Task
    classes: np.ndarray
    limits: np.ndarray
    needed: np.ndarray


@dataclass(frozen=True)
class _Changes:
    """Changes of some clips: class, score, false positives; and true positives where they occur."""

    label: np.ndarray
    score: np.ndarray
    false: np.ndarray
    counted: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]


def _changes(search: _Search, shard: range) -> _Changes:
    task = search.task
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    counted = []
    for i in shard:
        scores = frame_scores(task, i)
        occurring = np.intersect1d(task.occurring(i), search.classes)
        wanted = search.classes[search.needed[i, search.classes]]
        wanted = np.setdiff1d(wanted, occurring, assume_unique=True)
        part = scores[:, wanted]
        steps = _steps(part)
        frame, column = np.nonzero((steps != 0) & (part >= search.limits[wanted]))
        label = wanted[column].astype(np.int32)
        columns.append((label, part[frame, column], steps[frame, column]))
        if len(occurring):
            counted += _counted(task, i, scores, occurring)
    label, score, false = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return _Changes(label, score, false, counted)


def _counted(
    task: Task, i: int, scores: np.ndarray, classes: np.ndarray
) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """sed_scores_eval's changes of the classes that occur in a clip."""
    import pandas as pd

    names = [psd_roc.class_name(label) for label in classes.tolist()]
    times = np.arange(len(scores) + 1) * task.frame_s
    table = np.column_stack((times[:-1], times[1:], scores[:, classes]))
    events = [event for event in task.events(i) if event[2] in names]
    deltas = psd_roc.sed_scores_eval().intermediate_statistics_deltas(
        {"clip": pd.DataFrame(table, columns=["onset", "offset", *names])},
        {"clip": events},
        dtc_threshold=task.dtc,
        gtc_threshold=task.gtc,
        cttc_threshold=None,
    )["clip"]
    rows = zip(classes.tolist(), (deltas[name] for name in names), strict=True)
    return [(label, score, counts["tps"], counts["fps"]) for label, (score, counts) in rows]


@dataclass(frozen=True)
class _Curves:
    """All changes of some classes, those of clips without the class sorted by class."""

    task: Task
    classes: np.ndarray
    starts: np.ndarray
    score: np.ndarray
    false: np.ndarray
    counted: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]

    @staticmethod
    def of(task: Task, classes: np.ndarray, found: list[_Changes]) -> _Curves:
        label = np.concatenate([one.label for one in found])
        order = np.argsort(label, kind="stable")
        starts = np.searchsorted(label[order], [*classes, len(task.kept)])
        score = np.concatenate([one.score for one in found])[order]
        false = np.concatenate([one.false for one in found])[order]
        counted: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        for one in found:
            for place, *counts in one.counted:
                counted.setdefault(place, []).append(tuple(counts))
        return _Curves(task, classes, starts, score, false, counted)


def _class_roc(curves: _Curves, place: int) -> tuple[float, psd_roc.Roc]:
    """PSDS and curve of one class, from the changes that lie within `max_efpr`."""
    task, label = curves.task, int(curves.classes[place])
    rows = slice(*curves.starts[place : place + 2])
    score, false = curves.score[rows].astype(np.float64), curves.false[rows]
    order = np.argsort(-score)
    score, false = score[order], false[order].astype(np.int64)
    last = np.append(score[1:] != score[:-1], True)[: len(score)]
    within = last & ~psd_roc.beyond(np.cumsum(false), task.total_s, task.max_efpr)
    n_kept = within.nonzero()[0].max(initial=-1) + 1
    floor = score[n_kept] if n_kept < len(score) else -np.inf  # from here on too many are false
    parts = [(score[:n_kept], np.zeros(n_kept), false[:n_kept]), *curves.counted[label]]
    score, found, false = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    matters = score > floor
    score, found, false = score[matters], found[matters], false[matters]
    n_ref = int(np.count_nonzero(task.table.label == task.kept[label]))
    return psd_roc.class_roc(score, found, false, n_ref, task.total_s, task.max_efpr)


_inherited: Any = None


def _inherit(state: Any) -> None:
    global _inherited
    _inherited = state


def _call(function: Callable[[Any, Any], Any], item: Any) -> Any:
    return function(_inherited, item)


def _mapped(
    function: Callable[[Any, Any], Any], state: Any, items: Sequence[Any], jobs: int
) -> Iterator[Any]:
    """`function(state, item)` of each item, in order. Forked processes share `state`'s memory."""
    if jobs == 1:
        yield from (function(state, item) for item in items)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, context, _inherit, (state,)) as pool:
        chunk = max(1, len(items) // (8 * jobs))
        yield from pool.map(_call, [function] * len(items), items, chunksize=chunk)
