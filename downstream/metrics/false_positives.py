"""False positives at every threshold, class by class, of clips that come one at a time.

A clip in which a class does not occur can only add false positives: its detections, of which there
is one more where the threshold falls below a local maximum of the scores and one less at a minimum
(Ebbers, Serizel, Haeb-Umbach 2022). All clips together have far more of these changes than memory
holds. But a curve that ends at a number of false positives needs no counts beyond it, and since no
clip counts below 0, a threshold that is beyond the end stays there, whatever comes. So of a run of
thresholds beyond the end, only the first and the change over the whole run are kept: what is left
does not grow with the number of clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CHANGES_AT_ONCE = 2_000_000  # collected before they are sorted in


@dataclass(frozen=True)
class Changes:
    """Changes in counts where the threshold falls below a score, each array (changes,)."""

    label: np.ndarray
    score: np.ndarray
    change: np.ndarray

    @staticmethod
    def joined(parts: list[Changes]) -> Changes:
        """Those of several, one after the other."""
        columns = zip(*((one.label, one.score, one.change) for one in parts), strict=True)
        return Changes(*(np.concatenate(column) for column in columns))

    def rows(self, wanted: np.ndarray) -> Changes:
        """Those that a mask or an array of row numbers picks."""
        return Changes(self.label[wanted], self.score[wanted], self.change[wanted])


class FalsePositives:
    """Counts of each class as far as they are up to `limit`; above it they are only known to be so.

    `low` and `high` (classes,) bound a run of thresholds that is beyond the limit: what changes
    between them is only summed up, in `net` (classes,), before it is ever stored.
    """

    def __init__(self, n_classes: int, limit: int) -> None:
        self.n_classes, self.limit = n_classes, limit
        self.numbers = np.min_scalar_type(n_classes)  # small ones are sorted faster
        labels = np.zeros(0, self.numbers)
        self.kept = Changes(labels, np.zeros(0, np.float32), np.zeros(0, np.int32))
        self.low = np.full(n_classes, -np.inf)
        self.high = np.full(n_classes, -np.inf)
        self.net = np.zeros(n_classes, np.int64)
        self.new: list[Changes] = []
        self.n_new = 0

    def add(self, scores: np.ndarray, occurring: np.ndarray) -> None:
        """A clip's scores (frames, classes), without the classes that occur in it (numbers)."""
        steps = detection_steps(scores)
        steps[:, occurring] = 0
        beyond = (scores < self.high) & (scores > self.low)
        self.net += (steps * beyond).sum(axis=0, dtype=np.int32)
        steps[beyond] = 0
        frame, label = np.nonzero(steps)
        changed = (scores[frame, label], steps[frame, label])
        self._append(Changes(label.astype(self.numbers), *changed))

    def merge(self, other: FalsePositives) -> None:
        """Add what another one has counted in other clips."""
        other.compact()
        self._append(other.kept)

    def curve(self, label: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores, falling, and the change in false positives at each."""
        first, end = np.searchsorted(self.kept.label, (label, label + 1))
        return self.kept.score[first:end], self.kept.change[first:end]

    def _append(self, changes: Changes) -> None:
        self.new.append(changes)
        self.n_new += len(changes.label)
        if self.n_new > max(_CHANGES_AT_ONCE, len(self.kept.label) // 2):
            self.compact()

    def compact(self) -> None:
        """Sort in what is new, and drop what is beyond the limit."""
        label = np.flatnonzero((self.low > -np.inf) & (self.net != 0))
        low = self.low[label].astype(self.kept.score.dtype)  # which it came from
        over_runs = Changes(label.astype(self.numbers), low, self.net[label])
        found = _sorted(Changes.joined([self.kept, *self.new, over_runs]))
        self.new, self.n_new = [], 0
        self.net[:] = 0
        if len(found.label):
            self._keep(found)

    def _keep(self, found: Changes) -> None:
        """Keep those outside of runs beyond the limit, with what the runs' counts end with."""
        count = _counts(found)
        beyond = count > self.limit
        same = np.append(False, found.label[1:] == found.label[:-1])
        inner = beyond & same & np.append(False, beyond[:-1])
        outer = np.flatnonzero(~inner)
        self._choose_runs(found, outer, inner)
        label, count = found.label[outer], count[outer]
        before = np.where(np.append(False, label[1:] == label[:-1]), np.append(0, count[:-1]), 0)
        kept = Changes(label, found.score[outer], (count - before).astype(np.int32))
        self.kept = kept.rows(kept.change != 0)

    def _choose_runs(self, found: Changes, outer: np.ndarray, inner: np.ndarray) -> None:
        """One run of each class: that which holds the earlier choice, else the longest."""
        size = np.diff(outer, append=len(inner)) - 1
        place = np.flatnonzero(size)
        first = outer[place]
        label, high = found.label[first], found.score[first].astype(np.float64)
        after = np.append(outer, 0)[place + 1]  # a run at the very end has no class after it
        same = (np.append(outer, -1)[place + 1] >= 0) & (found.label[after] == label)
        low = np.where(same, found.score[after], -np.inf)
        holds = (high >= self.high[label]) & (low <= self.low[label])
        holds &= self.high[label] > -np.inf
        order = np.lexsort((size[place], holds, label))
        label, low, high = label[order], low[order], high[order]
        last = np.append(label[1:] != label[:-1], True)[: len(label)]
        self.low[label[last]], self.high[label[last]] = low[last], high[last]


def detection_steps(scores: np.ndarray) -> np.ndarray:
    """Change in the number of detections where the threshold falls below a score, like `scores`.

    1 where a frame is above the one before, less 1 where the next one is above it: the frames of
    a plateau add up. A score of -inf is never detected.
    """
    steps = np.zeros(scores.shape, np.int8)
    rises = scores[1:] > scores[:-1]
    steps[1:] += rises
    steps[:-1] -= rises
    steps[0] += 1
    steps[scores == -np.inf] = 0
    return steps


def _sorted(changes: Changes) -> Changes:
    """By class, scores falling; changes at one score added up."""
    order = np.argsort(changes.label, kind="stable")
    ends = np.flatnonzero(np.diff(changes.label[order])) + 1
    rising = -changes.score[order]
    for part in np.split(np.arange(len(order)), ends):
        order[part] = order[part[np.argsort(rising[part])]]
    changes = changes.rows(order)
    label, score = changes.label, changes.score
    differs = (label[1:] != label[:-1]) | (score[1:] != score[:-1])
    first = np.flatnonzero(np.append(True, differs)[: len(label)])
    if not len(first):
        return changes
    sums = np.add.reduceat(changes.change, first, dtype=np.int64)
    return Changes(label[first], score[first], sums)


def _counts(changes: Changes) -> np.ndarray:
    """False positives where the threshold is just below each score (changes,)."""
    total = np.cumsum(changes.change)
    first = np.searchsorted(changes.label, changes.label)
    return total - total[first] + changes.change[first]
