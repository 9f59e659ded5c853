"""Metrics by name, and the scores of a task's test clips under them.

A score is the mean over rotations of the metric on each rotation's test clips (heareval's
`test_score_mean`). Beside it comes what intervals and comparisons need: the value on resampled
test units (`intervals`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from downstream import intervals, resampled
from downstream.metrics import (
    PSDS1,
    PSDS2,
    Events,
    Score,
    frame_map,
    psds,
    segment_auroc,
)
from downstream.metrics.event_based import event_counts
from downstream.metrics.intersection_based import intersection_counts
from downstream.metrics.score import class_score, error_rate, f_measure
from downstream.metrics.segment_based import segment_counts
from downstream.tasks.task import Clip, Task, Triple
from hear_pretrainedsed.events import GRID, events_to_frames, merge_events
from hear_pretrainedsed.registry import unknown

if TYPE_CHECKING:
    from downstream.protocols.base import Found

N_DRAWS = 1000


@dataclass(frozen=True)
class Sample:
    """Some clips: reference events, and what is said about them. Times are in seconds.

    `scores` are {file: (frames, classes)} on the 40 ms grid. Each mapping has every file, in one
    order, but for what no metric asks for.
    """

    labels: Sequence[str]
    reference: Mapping[str, Sequence[Triple]]
    events: Mapping[str, Sequence[Triple]] = field(default_factory=dict)
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    durations_s: Mapping[str, float] | None = None

    @classmethod
    def of(
        cls,
        task: Task,
        clips: Sequence[Clip],
        scores: Mapping[str, np.ndarray],
        events: Mapping[str, Sequence[Triple]],
    ) -> Sample:
        """The sample of a task's clips; `ValueError` for one without scores or events."""
        files = [clip.file for clip in clips]
        for what, mapping in (("scores", scores), ("events", events)):
            if missing := [file for file in files if file not in mapping]:
                raise ValueError(f"{len(missing)} clips without {what}, the first: {missing[0]!r}")
        return cls(
            task.labels,
            {clip.file: clip.events for clip in clips},
            {file: events[file] for file in files},
            {file: scores[file] for file in files},
            {clip.file: clip.duration_s for clip in clips},
        )


Values = tuple[np.ndarray, np.ndarray, np.ndarray]
"""micro (...,), macro (...,), per class (..., classes)."""


@dataclass(frozen=True)
class Metric(ABC):
    """A metric: whether it is to grow, its headline value, what it is computed from.

    headline: `micro` or `macro`, the field of `Score` that is quoted. needs: `events` or `scores`.
    """

    maximize: bool = True
    headline: str = "micro"
    needs: str = "events"

    @abstractmethod
    def score(self, sample: Sample) -> Score:
        """The metric on a sample."""

    @abstractmethod
    def measure(self, sample: Sample, weights: np.ndarray) -> tuple[Score, np.ndarray]:
        """The metric on a sample, and on resampled clips.

        The draws are headline values (draws,) if file i occurred `weights[:, i]` times, weights
        (draws, files). Where they take long they are of the first weights only, of all samples of
        one size equally many.
        """

    def value(self, sample: Sample) -> float:
        """Its headline value on a sample."""
        return getattr(self.score(sample), self.headline)

    def micro_of_events(self, reference: Events, events: Events, labels: Sequence[str]) -> float:
        """`micro` of a metric that needs events: what heareval calls the score."""
        if self.needs != "events":
            raise ValueError(f"this metric is of {self.needs}, not of events")
        return self.score(Sample(labels, reference, events)).micro


@dataclass(frozen=True)
class OfCounts(Metric):
    """A metric of counts that are summed over files: `values` of the sum of `counts`.

    counts: a sample -> (files, counts). values: counts (..., counts), number of classes -> micro,
    macro and per class of each.
    """

    counts: Callable[[Sample], np.ndarray] = field(kw_only=True)
    values: Callable[[np.ndarray, int], Values] = field(kw_only=True)

    def score(self, sample: Sample) -> Score:
        """The metric on a sample."""
        return self._of_sums(self.counts(sample).sum(axis=0), sample.labels)

    def measure(self, sample: Sample, weights: np.ndarray) -> tuple[Score, np.ndarray]:
        """The metric on a sample, and its headline value on resampled clips (draws,)."""
        counts = self.counts(sample)
        sums = weights.astype(np.float64) @ counts.astype(np.float64)
        micro, macro, _ = self.values(sums, len(sample.labels))
        score = self._of_sums(counts.sum(axis=0), sample.labels)
        return score, micro if self.headline == "micro" else macro

    def _of_sums(self, sums: np.ndarray, labels: Sequence[str]) -> Score:
        micro, _, per_class = self.values(sums, len(labels))
        return class_score(float(micro), per_class, labels)


@dataclass(frozen=True)
class OfScores(Metric):
    """A metric that has to be computed anew for other files.

    whole: a sample -> its score. drawn: a sample, weights (draws, files) -> headline values.
    """

    needs: str = "scores"
    whole: Callable[[Sample], Score] = field(kw_only=True)
    drawn: Callable[[Sample, np.ndarray], np.ndarray] = field(kw_only=True)

    def score(self, sample: Sample) -> Score:
        """The metric on a sample."""
        return self.whole(sample)

    def measure(self, sample: Sample, weights: np.ndarray) -> tuple[Score, np.ndarray]:
        """The metric on a sample, and its headline value on the first resampled clips (draws,)."""
        return self.whole(sample), self.drawn(sample, weights)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN if nothing is."""
    known = ~np.isnan(values)
    n_known = known.sum(axis=-1)
    total = np.where(known, values, 0).sum(axis=-1)
    return np.where(n_known > 0, total / np.maximum(n_known, 1), np.nan)


def _f1(zero_if_silent: bool, counts: np.ndarray, n_classes: int) -> Values:
    """F1 of hits, reference and estimated events a class."""
    counts = counts.reshape(*counts.shape[:-1], n_classes, 3)
    per_class = f_measure(*np.moveaxis(counts, -1, 0), zero_if_silent)
    micro = f_measure(*np.moveaxis(counts.sum(axis=-2), -1, 0), zero_if_silent)
    return micro, _mean_of_known(per_class), per_class


def _error_rate(counts: np.ndarray, n_classes: int) -> Values:
    """Error rate of `_f1`'s counts and, after them, all classes' errors by kind."""
    by_class = counts[..., :-3].reshape(*counts.shape[:-1], n_classes, 3)
    n_hits, n_ref, n_est = np.moveaxis(by_class, -1, 0)
    per_class = error_rate(n_ref, np.zeros_like(n_ref), n_ref - n_hits, n_est - n_hits)
    micro = error_rate(n_ref.sum(axis=-1), *np.moveaxis(counts[..., -3:], -1, 0))
    return micro, _mean_of_known(per_class), per_class


def _intersection(counts: np.ndarray, n_classes: int) -> Values:
    """F1 of found and reference events and false positives a class; see `intersection_f1`."""
    counts = counts.reshape(*counts.shape[:-1], n_classes, 3)
    counts = np.where(counts[..., 1:2] > 0, counts, 0)
    per_class = _intersection_f1(counts)
    return _intersection_f1(counts.sum(axis=-2)), _mean_of_known(per_class), per_class


def _intersection_f1(counts: np.ndarray) -> np.ndarray:
    n_found, n_ref = counts[..., 0], counts[..., 1]
    return np.where(n_ref > 0, 2 * n_found / np.maximum(counts.sum(axis=-1), 1), np.nan)


def _flat(counts: np.ndarray) -> np.ndarray:
    return counts.reshape(len(counts), counts.shape[1] * counts.shape[2])


def _event_metric(
    collar_s: float, offset_fraction: float | None = None, *, zero_if_silent: bool = False, **more
) -> OfCounts:
    def counts(sample: Sample) -> np.ndarray:
        sides = (sample.reference, sample.events, collar_s, offset_fraction)
        return _flat(event_counts(*sides, labels=sample.labels))

    return OfCounts(counts=counts, values=partial(_f1, zero_if_silent), **more)


def _segment_f1_counts(sample: Sample) -> np.ndarray:
    return _flat(segment_counts(sample.reference, sample.events, labels=sample.labels)[0])


def _segment_error_counts(sample: Sample) -> np.ndarray:
    by_class, errors = segment_counts(sample.reference, sample.events, labels=sample.labels)
    return np.concatenate((_flat(by_class), errors), axis=1)


def _intersection_counts(sample: Sample) -> np.ndarray:
    sides = ({f: _apart(row) for f, row in s.items()} for s in (sample.reference, sample.events))
    kwargs: dict[str, Any] = {"durations_s": sample.durations_s, "labels": sample.labels}
    return _flat(intersection_counts(*sides, 0.5, 0.5, **kwargs))


def _apart(events: Sequence[Triple]) -> Sequence[Triple]:
    """Events with those of one class that overlap joined; if there are none, as they are."""
    ends: dict[str, float] = {}
    lasting = (event[:3] for event in events if event[0] < event[1])
    for onset_s, offset_s, label in sorted(lasting):
        if onset_s < ends.get(label, 0.0):
            return [event[:3] for event in merge_events(events)]
        ends[label] = offset_s
    return events


def _joined(sample: Sample) -> dict[str, list[Triple]]:
    """Reference events with those of one class that overlap or touch joined, as PSDS wants them."""
    return {f: [e[:3] for e in merge_events(row)] for f, row in sample.reference.items()}


def _psds_metric(setting: Mapping[str, Any]) -> OfScores:
    def facts(sample: Sample) -> tuple[Any, ...]:
        return sample.scores, GRID.hop_s, sample.labels, _joined(sample), sample.durations_s

    def whole(sample: Sample) -> Score:
        return psds(*facts(sample), **setting)

    def drawn(sample: Sample, weights: np.ndarray) -> np.ndarray:
        return resampled.psds_draws(*facts(sample), weights, **setting)

    return OfScores(whole=whole, drawn=drawn)


def _segment_auroc(sample: Sample) -> Score:
    facts = (sample.labels, _joined(sample), sample.durations_s)
    return segment_auroc(sample.scores, GRID.hop_s, *facts)


def _no_draws(sample: Sample, weights: np.ndarray) -> np.ndarray:
    return np.empty(0)


def _targets(sample: Sample) -> dict[str, np.ndarray]:
    return {
        file: events_to_frames(sample.reference[file], sample.labels, len(scores))
        for file, scores in sample.scores.items()
    }


def _frame_map(sample: Sample) -> Score:
    return frame_map(sample.scores, _targets(sample), sample.labels)


def _frame_map_draws(sample: Sample, weights: np.ndarray) -> np.ndarray:
    return resampled.frame_map_draws(sample.scores, _targets(sample), weights)


METRICS: dict[str, Metric] = {
    "event_onset_200ms_fms": _event_metric(0.2),
    "event_onset_50ms_fms": _event_metric(0.05),
    "event_onset_offset_50ms_20perc_fms": _event_metric(0.05, 0.2),
    "segment_1s_er": OfCounts(False, counts=_segment_error_counts, values=_error_rate),
    "segment_1s_f1": OfCounts(counts=_segment_f1_counts, values=partial(_f1, False)),
    "psds1": _psds_metric(PSDS1),
    "psds1_macro": _psds_metric(PSDS1 | {"alpha_st": 0.0}),
    "psds2": _psds_metric(PSDS2),
    "intersection_f1": OfCounts(True, "macro", counts=_intersection_counts, values=_intersection),
    "collar_f1": _event_metric(0.2, 0.2, zero_if_silent=True, headline="macro"),
    "segment_auroc": OfScores(True, "macro", whole=_segment_auroc, drawn=_no_draws),
    "frame_map": OfScores(True, "macro", whole=_frame_map, drawn=_frame_map_draws),
}
"""HEAR's names and settings for the first four; DESED's baseline for `intersection_f1` (dtc and gtc
0.5) and `collar_f1` (200 ms, 20 % of the length; a class that is never named has 0); AudioSet
Strong's for `psds1_macro` (mean over classes: no penalty for unequal ones) and `segment_auroc`
(1 s, false positive rate up to 0.1), which has no draws."""


@dataclass(frozen=True)
class Result:
    """A metric on the test clips of a task: means over rotations.

    value: `micro` or `macro`, whichever is the metric's headline. per_class: means over the
    rotations in which a class has a value. draws: `value` on resampled units (draws,); see
    `intervals`.
    """

    value: float
    micro: float
    macro: float
    per_class: dict[str, float]
    draws: np.ndarray
    sampling: intervals.Sampling


def score_task(task: Task, found: Found) -> dict[str, Result]:
    """Every metric of a task on what a protocol says about its test clips.

    Raises `ValueError` for a metric that nobody knows, and for test clips that are none of the
    task's, are in no rotation, or have no scores or events.
    """
    clips = {clip.file: clip for clip in task.clips(task.splits)}
    if not found.folds or not all(found.folds):
        raise ValueError(f"{task.name}: a rotation without test clips")
    if strange := [file for fold in found.folds for file in fold if file not in clips]:
        raise ValueError(f"{task.name}: no clip {strange[0]!r} in it")
    folds = [[clips[file] for file in fold] for fold in found.folds]
    samples = [Sample.of(task, fold, found.scores, found.events) for fold in folds]
    units = intervals.Units.of([[clip.unit for clip in fold] for fold in folds])
    weights = units.weights(N_DRAWS, units.generator())
    return {name: _result(get_metric(name), samples, units, weights) for name in task.metrics}


def _result(
    metric: Metric, samples: Sequence[Sample], units: intervals.Units, weights: np.ndarray
) -> Result:
    measured = [
        metric.measure(sample, weights[:, members])
        for sample, members in zip(samples, units.members, strict=True)
    ]
    scores, draws = zip(*measured, strict=True)
    n_draws = min(map(len, draws))
    micro, macro = (float(np.mean([getattr(s, n) for s in scores])) for n in ("micro", "macro"))
    by_class = np.array([list(score.per_class.values()) for score in scores])
    return Result(
        {"micro": micro, "macro": macro}[metric.headline],
        micro,
        macro,
        dict(zip(samples[0].labels, _mean_of_known(by_class.T).tolist(), strict=True)),
        np.mean([each[:n_draws] for each in draws], axis=0),
        units.sampling,
    )


def get_metric(name: str) -> Metric:
    """A metric by name; an unknown one is a `ValueError`."""
    if name not in METRICS:
        raise ValueError(unknown("metric", name, METRICS))
    return METRICS[name]


def main_score(
    task: Task,
    clips: Sequence[Clip],
    scores: Mapping[str, np.ndarray],
    events: Mapping[str, Sequence[Triple]],
) -> float:
    """The headline value of a task's main metric on some of its clips."""
    return get_metric(task.metrics[0]).value(Sample.of(task, clips, scores, events))
