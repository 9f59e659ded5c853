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


def segment_counts(
    reference: Events,
    estimated: Events,
    resolution_s: float = 1.0,
    *,
    labels: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What `segment_f1` and `segment_error_rate` sum up, by file, files as in `event_counts`.

    Hits, reference and estimated activity (files, classes, 3); substitutions, deletions and
    insertions over all classes (files, 3).
    """
    pair = event_pair(reference, estimated, labels)
    size = (len(pair.files), len(pair.labels))
    length, *cells = _cells(pair, resolution_s)
    file = np.repeat(np.arange(len(pair.files)), length)
    columns = max(size[1], 1)
    by_class = [
        np.bincount(file[c // columns] * columns + c % columns, minlength=size[0] * size[1])
        for c in cells
    ]
    h, n, m = (np.bincount(c // columns, minlength=len(file)) for c in cells)
    wrong = (np.minimum(n, m) - h, np.maximum(0, n - m), np.maximum(0, m - n))
    totals = [np.bincount(file, each, minlength=size[0]).astype(np.int64) for each in wrong]
    by_class = [each[: size[0] * size[1]].reshape(size) for each in by_class]
    return np.stack(by_class, axis=-1), np.stack(totals, axis=-1)


def _count(pair: EventPair, resolution_s: float) -> _Counts:
    length, *cells = _cells(pair, resolution_s)
    n_labels, n_segments = len(pair.labels), int(length.sum())
    columns = max(n_labels, 1)
    h, n, m = (np.bincount(each // columns, minlength=n_segments) for each in cells)
    return _Counts(
        *(np.bincount(each % columns, minlength=n_labels) for each in cells),
        n_segments,
        (np.minimum(n, m) - h).sum(),
        np.maximum(0, n - m).sum(),
        np.maximum(0, m - n).sum(),
    )


def _cells(
    pair: EventPair, resolution_s: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Segments of each file (files,); active cells of both sides, of either side (`_active`)."""
    if not 0 < resolution_s < float("inf"):
        raise ValueError(f"resolution_s is a time above 0 seconds, got {resolution_s}")
    tables = (pair.reference, pair.estimated)
    ends = [np.ceil(table.offset_s / resolution_s).astype(np.int64) for table in tables]
    length = np.zeros(len(pair.files), np.int64)
    for table, end in zip(tables, ends, strict=True):
        np.maximum.at(length, table.file, end)
    before = np.cumsum(length) - length  # files are laid end to end
    ref, est = (
        _active(table, before, end, resolution_s, len(pair.labels))
        for table, end in zip(tables, ends, strict=True)
    )
    return length, np.intersect1d(ref, est, assume_unique=True), ref, est


def _active(
    table: EventTable, before: np.ndarray, end: np.ndarray, resolution_s: float, n_labels: int
) -> np.ndarray:
    """Active cells, segment * n_labels + label, sorted, each once."""
    first = np.floor(table.onset_s / resolution_s).astype(np.int64)
    row, segment = in_ranges(first, end)
    return np.unique((before[table.file[row]] + segment) * n_labels + table.label[row])
