"""Segment error rate, F1 and accuracy: sed_eval's SegmentBasedMetrics.

Rules, from sed_eval 0.2.1 (`sound_event.py`, `util/event_roll.py`) and Mesaros, Heittola,
Virtanen, "Metrics for polyphonic sound event detection", 2016:

- An event is active in segments floor(onset / resolution) to ceil(offset / resolution), end
  excluded: a zero-length event on a segment's edge is active nowhere, within a segment in it.
- A file ends with the last segment of either side; its real length is not looked at, so events
  beyond the clip count like others, and silence at the end is no true negative.
- In each segment with N reference classes and M estimated ones, of which H agree, there are
  min(N, M) - H substitutions, max(0, N - M) deletions and max(0, M - N) insertions; error rate is
  their sum over all segments and files, divided by the sum of N.

heareval's `segment_1s_er` is `segment_error_rate(...).micro`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from downstream.metrics.event_table import EventPair, Events, EventTable, event_pair
from downstream.metrics.matching import in_ranges
from downstream.metrics.score import EPSILON, Score, class_score, error_rate, f_measure


@dataclass(frozen=True)
class _Counts:
    """Per class (classes,) but for the last four, which are over all classes."""

    n_hits: np.ndarray
    n_reference: np.ndarray
    n_estimated: np.ndarray
    n_segments: int
    n_substituted: np.int64
    n_deleted: np.int64
    n_added: np.int64


def segment_error_rate(
    reference: Events,
    estimated: Events,
    resolution_s: float = 1.0,
    *,
    labels: Sequence[str] | None = None,
) -> Score:
    """(Substitutions + deletions + insertions) / reference activity, in segments.

    `per_class` knows no substitutions. Without reference activity a rate is 0, or 4.5e15 an
    insertion, as in sed_eval (`error_rate`). Raises `ValueError` as `event_pair` does.
    """
    pair = event_pair(reference, estimated, labels)
    n = _count(pair, resolution_s)
    micro = error_rate(n.n_reference.sum(), n.n_substituted, n.n_deleted, n.n_added)
    missed, added = n.n_reference - n.n_hits, n.n_estimated - n.n_hits
    per_class = error_rate(n.n_reference, np.zeros_like(missed), missed, added)
    return class_score(float(micro), per_class, pair.labels)


def segment_f1(
    reference: Events,
    estimated: Events,
    resolution_s: float = 1.0,
    *,
    labels: Sequence[str] | None = None,
    zero_if_silent: bool = False,
) -> Score:
    """F1 of segments x classes; NaN and `zero_if_silent` as in `event_f1`."""
    pair = event_pair(reference, estimated, labels)
    n = _count(pair, resolution_s)
    counts = (n.n_hits, n.n_reference, n.n_estimated)
    micro = f_measure(*(count.sum() for count in counts), zero_if_silent)
    return class_score(float(micro), f_measure(*counts, zero_if_silent), pair.labels)


def segment_accuracy(
    reference: Events,
    estimated: Events,
    resolution_s: float = 1.0,
    *,
    labels: Sequence[str] | None = None,
) -> Score:
    """Share of segments x classes that are decided right: mostly that of silence."""
    pair = event_pair(reference, estimated, labels)
    n = _count(pair, resolution_s)
    wrong = n.n_reference + n.n_estimated - 2 * n.n_hits
    right = n.n_segments - wrong
    micro = right.sum() / (n.n_segments * len(pair.labels) + EPSILON)
    return class_score(float(micro), right / (n.n_segments + EPSILON), pair.labels)


def _count(pair: EventPair, resolution_s: float) -> _Counts:
    if not 0 < resolution_s < float("inf"):
        raise ValueError(f"resolution_s is a time above 0 seconds, got {resolution_s}")
    tables = (pair.reference, pair.estimated)
    ends = [np.ceil(table.offset_s / resolution_s).astype(np.int64) for table in tables]
    length = np.zeros(len(pair.files), np.int64)
    for table, end in zip(tables, ends, strict=True):
        np.maximum.at(length, table.file, end)
    before = np.cumsum(length) - length  # files are laid end to end
    n_labels, n_segments = len(pair.labels), int(length.sum())
    ref, est = (
        _active(table, before, end, resolution_s, n_labels)
        for table, end in zip(tables, ends, strict=True)
    )
    hits = np.intersect1d(ref, est, assume_unique=True)
    columns = max(n_labels, 1)
    h, n, m = (np.bincount(cells // columns, minlength=n_segments) for cells in (hits, ref, est))
    return _Counts(
        *(np.bincount(cells % columns, minlength=n_labels) for cells in (hits, ref, est)),
        n_segments,
        (np.minimum(n, m) - h).sum(),
        np.maximum(0, n - m).sum(),
        np.maximum(0, m - n).sum(),
    )


def _active(
    table: EventTable, before: np.ndarray, end: np.ndarray, resolution_s: float, n_labels: int
) -> np.ndarray:
    """Active cells, segment * n_labels + label, sorted, each once."""
    first = np.floor(table.onset_s / resolution_s).astype(np.int64)
    row, segment = in_ranges(first, end)
    return np.unique((before[table.file[row]] + segment) * n_labels + table.label[row])
