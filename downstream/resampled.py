"""PSDS and frame mAP of resampled clips, exactly, without computing them from the beginning.

What a clip adds to the counts at each threshold does not depend on the other clips. So the changes
of the counts are found and sorted by score once, and a draw is a cumulative sum of them, each times
how often its clip was drawn. The results are those of `downstream.metrics` for a set in which the
clips are repeated as often (equal to rounding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from downstream.metrics import psd_roc
from downstream.tasks.task import Triple

_HOUR_S = 3600.0
_MOST_DRAWS, _FEWEST_DRAWS = 1000, 200
_LARGEST = 1e8  # frames x classes
_MAP_VALUES = 2e9  # frames x classes x draws


def n_draws(scores: Mapping[str, np.ndarray], values: float = np.inf) -> int:
    """How many draws are worth their time, if one goes through all frames and classes.

    `values` are gone through in some seconds. None are drawn from sets of AudioSet Strong's size.
    """
    size = sum(np.size(one) for one in scores.values())
    if size > _LARGEST:
        return 0
    return int(np.clip(values / size, _FEWEST_DRAWS, _MOST_DRAWS))


def frame_map_draws(
    scores: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray], weights: np.ndarray
) -> np.ndarray:
    """`frame_map(...).macro` if file i occurred `weights[:, i]` times, for the first `n_draws`.

    Scores and targets {file: (frames, classes)} in the order of the weights' files.
    """
    weights = weights[: n_draws(scores, _MAP_VALUES)].astype(np.int32)
    clip = np.repeat(np.arange(len(scores)), [len(one) for one in scores.values()])
    score = np.concatenate(list(scores.values()))
    active = np.concatenate([targets[file] for file in scores]) > 0
    values = [
        _average_precisions(score[:, label], active[:, label], clip, weights)
        for label in range(score.shape[1])
    ]
    return _mean_over_classes(np.array(values))


def _average_precisions(
    score: np.ndarray, active: np.ndarray, clip: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Average precision of one class (draws,); NaN where it is active nowhere.

    Recall grows at active frames alone, so precision is wanted at the ends of their ties only.
    """
    if not active.any():
        return np.full(len(weights), np.nan)
    order = np.argsort(-score, kind="stable")
    score, clip, active = score[order], clip[order], np.flatnonzero(active[order])
    ends = np.searchsorted(-score, -score[active], side="right") - 1
    last = np.flatnonzero(np.append(np.diff(ends) > 0, True))  # active frame of each tie
    ends, clip, clip_active = ends[last], clip[: ends[-1] + 1], clip[active]
    found = np.empty(len(weights))
    for number, weight in enumerate(weights):
        hits = np.cumsum(weight[clip_active])[last]
        rank = np.maximum(np.cumsum(weight[clip])[ends], 1)
        steps = np.diff(hits, prepend=0)
        found[number] = steps @ (hits / rank) / hits[-1] if hits[-1] else np.nan
    return found


def _mean_over_classes(values: np.ndarray) -> np.ndarray:
    """(classes, draws) -> means over the classes that have a value (draws,)."""
    known = ~np.isnan(values)
    n_known = known.sum(axis=0)
    total = np.where(known, values, 0).sum(axis=0)
    return np.where(n_known > 0, total / np.maximum(n_known, 1), np.nan)


@dataclass(frozen=True)
class _Changes:
    """How one class's counts change where the threshold falls below `score`, highest first.

    clip, found, false: (changes,). crossed: (changes, classes). ends: the last of equal scores.
    """

    score: np.ndarray
    clip: np.ndarray
    found: np.ndarray
    false: np.ndarray
    crossed: csr_array
    ends: np.ndarray

    @classmethod
    def sorted(cls, columns: list[np.ndarray], crossed: csr_array) -> _Changes:
        """Of unsorted columns score, clip, found and false."""
        order = np.argsort(-columns[0], kind="stable")
        score, clip, found, false = (column[order] for column in columns)
        ends = np.flatnonzero(np.append(np.diff(score) != 0, True)) if len(score) else order
        return cls(score, clip, found, false, crossed[order], ends)

    def above(self, floor: float) -> _Changes:
        """The changes at scores above `floor`."""
        n = int(np.searchsorted(-self.score, -floor, side="left"))
        columns = (self.score[:n], self.clip[:n], self.found[:n], self.false[:n])
        return _Changes(*columns, self.crossed[:n], self.ends[self.ends < n])


@dataclass(frozen=True)
class _Clips:
    """What the counts are divided by: duration (clips,); events and their seconds by class."""

    duration_s: np.ndarray
    n_reference: np.ndarray  # (clips, classes)
    reference_s: np.ndarray  # (clips, classes)


def psds_draws(
    scores: Mapping[str, np.ndarray],
    frame_s: float,
    labels: Sequence[str],
    reference: Mapping[str, Sequence[Triple]],
    durations_s: Mapping[str, float],
    weights: np.ndarray,
    dtc: float,
    gtc: float,
    *,
    cttc: float | None = None,
    alpha_ct: float = 0.0,
    alpha_st: float = 0.0,
    max_efpr: float = 100.0,
) -> np.ndarray:
    """`psds(...).micro` if file i occurred `weights[:, i]` times, for the first `n_draws`.

    Takes what `psds` takes and has accepted, files in the order of the weights'. A draw without
    any reference event is NaN.
    """
    weights = weights[: n_draws(scores)].astype(np.float64)
    if not len(weights):
        return np.zeros(0)
    clips = _clips(labels, reference, durations_s)
    there = np.flatnonzero(clips.n_reference.any(axis=0))
    clips = _Clips(clips.duration_s, clips.n_reference[:, there], clips.reference_s[:, there])
    part = {file: np.asarray(score)[:, there] for file, score in scores.items()}
    classes = {labels[label]: psd_roc.class_name(i) for i, label in enumerate(there)}
    events = {f: _named(row, classes) for f, row in reference.items()}
    changes = _all_changes(part, frame_s, events, (dtc, gtc, cttc if alpha_ct else None))
    most_false = max_efpr * (weights @ clips.duration_s) / _HOUR_S
    highest = np.stack([score.max(axis=0) for score in part.values()])
    highest[clips.n_reference > 0] = -np.inf
    changes = [
        one.above(_floor(highest[:, i], weights, most_false)) for i, one in enumerate(changes)
    ]
    setting = (alpha_ct, alpha_st, max_efpr)
    return np.array([_psds(changes, clips, weight, *setting) for weight in weights])


def _clips(
    labels: Sequence[str],
    reference: Mapping[str, Sequence[Triple]],
    durations_s: Mapping[str, float],
) -> _Clips:
    place = {label: i for i, label in enumerate(labels)}
    n_reference, reference_s = np.zeros((2, len(reference), len(labels)))
    for number, row in enumerate(reference.values()):
        for onset_s, offset_s, label in row:
            n_reference[number, place[label]] += offset_s > onset_s
            reference_s[number, place[label]] += offset_s - onset_s
    return _Clips(np.array([durations_s[f] for f in reference]), n_reference, reference_s)


def _named(row: Sequence[Triple], classes: Mapping[str, str]) -> list[Triple]:
    lasting = [event for event in row if event[1] > event[0]]
    return [(onset_s, offset_s, classes[label]) for onset_s, offset_s, label in lasting]


def _all_changes(
    scores: Mapping[str, np.ndarray],
    frame_s: float,
    events: Mapping[str, list[Triple]],
    criteria: tuple[float, float, float | None],
) -> list[_Changes]:
    """sed_scores_eval's changes of every class, those of all clips together."""
    import pandas as pd

    n_classes = next(iter(scores.values())).shape[1]
    names = [psd_roc.class_name(i) for i in range(n_classes)]
    dtc, gtc, cttc = criteria
    frames, found = {}, {}
    for file, score in scores.items():
        if cttc is None and psd_roc.is_long(score):
            found[file] = _of_long_clip(score, frame_s, events[file], names, dtc, gtc)
            continue
        times = np.arange(len(score) + 1) * frame_s
        columns = np.column_stack((times[:-1], times[1:], score))
        frames[file] = pd.DataFrame(columns, columns=["onset", "offset", *names])
    if frames:
        found |= psd_roc.sed_scores_eval().intermediate_statistics_deltas(
            frames,
            {file: events[file] for file in frames},
            dtc_threshold=dtc,
            gtc_threshold=gtc,
            cttc_threshold=cttc,
        )
    by_clip = [found[file] for file in scores]
    return [_class_changes([one[name] for one in by_clip], name, names) for name in names]


def _of_long_clip(
    scores: np.ndarray,
    frame_s: float,
    events: list[Triple],
    names: Sequence[str],
    dtc: float,
    gtc: float,
) -> dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]:
    """What sed_scores_eval would give for a clip, without cross-triggers."""
    found = {}
    for i, name in enumerate(names):
        times = np.array(sorted(e[:2] for e in events if e[2] == name)).reshape(-1, 2)
        score, *counts = psd_roc.clip_changes(scores[:, i], frame_s, *times.T, dtc, gtc)
        found[name] = (score, dict(zip(("tps", "fps"), counts, strict=True)))
    return found


def _class_changes(by_clip: list, name: str, names: Sequence[str]) -> _Changes:
    """One class's changes from sed_scores_eval's of each clip, (score, {count: change})."""
    clip = np.repeat(np.arange(len(by_clip)), [len(score) for score, _ in by_clip])
    columns = [np.concatenate([score for score, _ in by_clip]), clip]
    for key in ("tps", "fps"):
        columns.append(np.concatenate([change[key] for _, change in by_clip]).astype(np.float64))
    crossed = csr_array((len(clip), len(names)))
    keys = {f"cts\\{other}": i for i, other in enumerate(names) if other != name}
    if keys and next(iter(keys)) in by_clip[0][1]:
        parts = {i: np.concatenate([c[key] for _, c in by_clip]) for key, i in keys.items()}
        rows = [(np.flatnonzero(part), i, part[part != 0]) for i, part in parts.items()]
        row, value = (np.concatenate([one[k] for one in rows]) for k in (0, 2))
        column = np.repeat([i for _, i, _ in rows], [len(one) for one, *_ in rows])
        crossed = csr_array((value.astype(np.float64), (row, column)), shape=crossed.shape)
    return _Changes.sorted(columns, crossed)


def _floor(highest: np.ndarray, weights: np.ndarray, most_false: np.ndarray) -> float:
    """A score at and below which no draw of a class is within the limit.

    A clip without the class has a false positive at every threshold below its highest score.
    """
    order = np.argsort(-highest, kind="stable")
    n_false = np.cumsum(weights[:, order], axis=1)
    beyond = n_false > most_false[:, None] + 1e-6
    last = np.where(beyond.any(axis=1), beyond.argmax(axis=1), len(order))
    return float(np.append(highest[order], -np.inf)[last.max()])


def _psds(
    changes: Sequence[_Changes],
    clips: _Clips,
    weight: np.ndarray,
    alpha_ct: float,
    alpha_st: float,
    max_efpr: float,
) -> float:
    """PSDS of one draw, weight (clips,), as sed_scores_eval computes it from the counts."""
    n_reference, reference_s = weight @ clips.n_reference, weight @ clips.reference_s
    there = np.flatnonzero(n_reference)
    if not len(there):
        return float("nan")
    per_false = _HOUR_S / (weight @ clips.duration_s)
    per_cross = np.zeros(len(n_reference))
    if alpha_ct and len(there) > 1:
        per_cross[there] = alpha_ct * _HOUR_S / (len(there) - 1) / reference_s[there]
    curves = []
    for label in there:
        one = changes[label]
        rows = weight[one.clip]
        rate = rows * one.false * per_false
        if one.crossed.nnz:
            rate += rows * (one.crossed @ per_cross)
        efpr = np.cumsum(rate)[one.ends]
        ratio = np.cumsum(rows * one.found)[one.ends] / n_reference[label]
        curves.append(_best_so_far(efpr, ratio, max_efpr))
    edges = np.unique(np.concatenate([efpr for efpr, _ in curves]))
    heights = np.stack([y[np.searchsorted(x, edges, side="right") - 1] for x, y in curves])
    height = np.maximum(heights.mean(axis=0) - alpha_st * heights.std(axis=0), 0)
    return float(height @ np.diff(edges, append=max_efpr) / max_efpr)


def _best_so_far(
    efpr: np.ndarray, ratio: np.ndarray, max_efpr: float
) -> tuple[np.ndarray, np.ndarray]:
    """The highest ratio at no more false positives, as steps from 0 on."""
    within = efpr <= max_efpr
    efpr, ratio = np.append(0.0, efpr[within]), np.append(0.0, ratio[within])
    order = np.lexsort((ratio, efpr))
    return efpr[order], np.maximum.accumulate(ratio[order])
