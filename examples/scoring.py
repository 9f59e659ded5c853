"""Event scores as HEAR's event tasks report them: onset F and segment error rate.

Both are summed over all classes and files before a ratio is taken, as in `sed_eval` (Mesaros et
al., Metrics for Polyphonic Sound Event Detection, 2016), which the tests hold them against.
Events are lists of (onset_s, offset_s, label, ...), one list a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Events = Sequence[Sequence[tuple]]


def onset_f(reference: Events, estimated: Events, collar_s: float = 0.2) -> float:
    """F of events found: same class, onset within the collar, each matched once; 0..1."""
    n_hits = sum(
        _n_matched(_onsets(ours, label), _onsets(theirs, label), collar_s)
        for ours, theirs in zip(reference, estimated, strict=True)
        for label in {event[2] for event in ours}
    )
    n_all = sum(map(len, reference)) + sum(map(len, estimated))
    return 2 * n_hits / n_all if n_all else 0.0


def _onsets(events: Sequence[tuple], label: str) -> list[float]:
    return sorted(event[0] for event in events if event[2] == label)


def _n_matched(reference: list[float], estimated: list[float], collar_s: float) -> int:
    """The most pairs within the collar; with one collar for all, pairing in order finds it."""
    n = i = j = 0
    while i < len(reference) and j < len(estimated):
        if math.fabs(reference[i] - estimated[j]) <= collar_s:
            n, i, j = n + 1, i + 1, j + 1
        elif reference[i] < estimated[j]:
            i += 1
        else:
            j += 1
    return n


def segment_error_rate(reference: Events, estimated: Events, resolution_s: float = 1.0) -> float:
    """Substitutions, deletions and insertions over active classes, in segments; 0 is perfect.

    Predicting nothing gives exactly 1.
    """
    n_errors = n_active = 0
    for ours, theirs in zip(reference, estimated, strict=True):
        active, found = _segments(ours, resolution_s), _segments(theirs, resolution_s)
        for segment in active.keys() | found.keys():
            a, b = active.get(segment, set()), found.get(segment, set())
            n_errors += max(len(a), len(b)) - len(a & b)
            n_active += len(a)
    return n_errors / n_active if n_active else 0.0


def _segments(events: Sequence[tuple], resolution_s: float) -> dict[int, set[str]]:
    """Number of a segment -> classes that sound in it."""
    segments: dict[int, set[str]] = {}
    for onset_s, offset_s, label, *_ in events:
        first, end = math.floor(onset_s / resolution_s), math.ceil(offset_s / resolution_s)
        for segment in range(first, end):
            segments.setdefault(segment, set()).add(label)
    return segments
