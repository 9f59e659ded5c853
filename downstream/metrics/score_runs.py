"""Intersection counts of one clip and class at every threshold, from nested runs of frames.

A run is a stretch of frames above a threshold: a detection. Where the threshold falls, runs appear,
grow and join, so those of all thresholds are nested, and there are no more of them than frames.
sed_scores_eval writes the detections of each threshold into a table (thresholds, detections,
events), which for an hour is a hundred GB; here each run is judged once and counts from the score
at which it appears down to the one at which it is part of a longer run. Counts are equal (Ebbers,
Serizel, Haeb-Umbach 2022), and so is the rounding of seconds to 6 decimals.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_DECIMALS = 6


class Runs(NamedTuple):
    """Runs of frames, each (runs,): first frame, end, where it appears, where a longer one does.

    A run is a detection at the thresholds above `low` and up to `high`.
    """

    first: np.ndarray
    end: np.ndarray
    high: np.ndarray
    low: np.ndarray


def runs_of(scores: np.ndarray) -> Runs:
    """The runs that scores (frames,) have at any threshold; those of -inf are in none."""
    ended: list[tuple[int, int, float, float]] = []
    begun: list[tuple[int, float]] = []  # runs that go on, scores rising
    for frame, score in enumerate([*scores.tolist(), -np.inf]):
        first = frame
        while begun and begun[-1][1] > score:
            first, high = begun.pop()
            low = max(score, begun[-1][1]) if begun else score
            ended.append((first, frame, high, low))
        if score > -np.inf and (not begun or begun[-1][1] < score):
            begun.append((first, score))
    first, end, high, low = zip(*ended, strict=True) if ended else ((), (), (), ())
    return Runs(np.array(first, int), np.array(end, int), np.array(high), np.array(low))


def clip_changes(
    scores: np.ndarray,
    frame_s: float,
    onset_s: np.ndarray,
    offset_s: np.ndarray,
    dtc: float,
    gtc: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Changes that one clip makes to the counts of one class.

    `scores` are (frames,), the reference events (events,) sorted and apart, each of some length.
    Gives the scores, rising, where counts change when the threshold falls below them, and by how
    much true and false positives do, each (changes,).
    """
    scores = scores.astype(np.float64)
    runs = runs_of(scores)
    start_s, end_s = runs.first * frame_s, runs.end * frame_s
    met_s = _before(end_s, onset_s, offset_s) - _before(start_s, onset_s, offset_s)
    relevant = np.round(met_s, _DECIMALS) >= np.round(dtc * (end_s - start_s), _DECIMALS)
    needed_s = np.round(gtc * (offset_s - onset_s), _DECIMALS)
    asks = needed_s > 0  # other events are found at any threshold, even by nothing
    onset_s, offset_s, needed_s = onset_s[asks], offset_s[asks], needed_s[asks]
    first = np.searchsorted(onset_s, start_s)
    held = np.maximum(np.searchsorted(offset_s, end_s, side="right") - first, 0) * relevant
    kept = Runs(*(column[relevant] for column in runs))
    edges = (start_s[relevant], end_s[relevant])
    part = _found_in_part(kept, *edges, onset_s, offset_s, needed_s)
    score = np.concatenate((scores.max(keepdims=True), runs.high, runs.low, part[0]))
    found = np.concatenate(([(~asks).sum()], held, -held, part[1]))
    false = np.concatenate(([0], ~relevant, -1 * ~relevant, np.zeros(len(part[0]))))
    score, place = np.unique(score, return_inverse=True)
    found, false = (np.rint(np.bincount(place, x)).astype(np.int64) for x in (found, false))
    changed = (found != 0) | (false != 0)
    if scores.max() > -np.inf:  # runs that are part of no longer one don't end
        changed &= score > -np.inf
    return score[changed], found[changed], false[changed]


def _before(time_s: np.ndarray, onset_s: np.ndarray, offset_s: np.ndarray) -> np.ndarray:
    """Seconds of events before each time (times,)."""
    n_begun = np.searchsorted(onset_s, time_s)
    total_s = np.append(0.0, np.cumsum(offset_s - onset_s))
    last_s = np.append(-np.inf, offset_s)
    return total_s[n_begun] - np.maximum(last_s[n_begun] - time_s, 0)


def _found_in_part(
    runs: Runs,
    start_s: np.ndarray,
    end_s: np.ndarray,
    onset_s: np.ndarray,
    offset_s: np.ndarray,
    needed_s: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Changes (score, found) by events that runs reach into, or lie in, but do not hold whole.

    A run has two edges and an edge lies in one event, so these are few; and where some run holds
    an event whole, no other one meets it.
    """
    inside = []
    for edge_s in (start_s, end_s):
        event = np.searchsorted(onset_s, edge_s) - 1
        inside.append(np.where(np.append(offset_s, -np.inf)[event] > edge_s, event, -1))
    inside[1][inside[1] == inside[0]] = -1
    run = np.concatenate([np.flatnonzero(event >= 0) for event in inside])
    event = np.concatenate([event[event >= 0] for event in inside])
    met_s = np.minimum(end_s[run], offset_s[event]) - np.maximum(start_s[run], onset_s[event])
    event, met_s = np.tile(event, 2), np.append(met_s, -met_s)
    score = np.append(runs.high[run], runs.low[run])
    order = np.lexsort((-score, event))
    event, score, met_s = event[order], score[order], met_s[order]
    starts = np.flatnonzero(np.diff(event, prepend=-1))
    total_s = np.concatenate([np.zeros(0), *map(np.cumsum, np.split(met_s, starts)[1:])])
    last = np.append((event[1:] != event[:-1]) | (score[1:] != score[:-1]), True)[: len(event)]
    event, score, total_s = event[last], score[last], total_s[last]
    is_found = np.round(total_s, _DECIMALS) >= needed_s[event]
    was_found = np.append(False, is_found[:-1])[: len(event)]
    was_found[np.diff(event, prepend=-1) != 0] = False
    return score, is_found.astype(int) - was_found
