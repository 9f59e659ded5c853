"""Scores part by part -> events as they end; the rules are those of `events.scores_to_events`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hear_pretrainedsed.events import Event, frame_times, median_sizes, scores_to_events


class EventTracker:
    """`scores_to_events` for scores that come in parts: the same events, as soon as they end.

    Keeps a run's start and sum for each class, and the `ahead_frames` that the median filter needs.
    """

    def __init__(
        self,
        labels: Sequence[str],
        threshold: float | Sequence[float] = 0.5,
        median_frames: int | Sequence[int] | None = None,
        min_duration_s: float | None = None,
    ) -> None:
        decoding = dict(median_frames=median_frames, min_duration_s=min_duration_s)
        nothing = np.zeros((0, len(labels)), np.float32)
        scores_to_events(nothing, labels, threshold=threshold, **decoding)  # refuse wrong values
        self.labels = tuple(labels)
        self._limits = np.asarray(threshold, np.float32)
        self._median = _Medians(median_sizes(median_frames, len(labels)))
        self._shortest_s = 0.0 if min_duration_s is None else min_duration_s - 1e-9
        self._waiting = nothing  # scores of frames that the filter has not decided
        self._frame = 0
        self._first = np.full(len(labels), -1)  # frame of each open run; -1: none
        self._sum = np.zeros(len(labels))

    @property
    def ahead_frames(self) -> int:
        """How many later frames it takes to decide on one."""
        return self._median.ahead

    def feed(self, scores: np.ndarray) -> list[Event]:
        """Scores (frames, classes), float32, of the next frames -> the events that ended."""
        if np.isnan(scores).any():
            frame, number = np.argwhere(np.isnan(scores))[0]
            frame += self._frame + len(self._waiting)
            raise ValueError(f"NaN in the scores at frame {frame}, class {number}")
        self._waiting = np.concatenate((self._waiting, scores))
        return self._decide(self._median.feed(scores > self._limits))

    def close(self, duration_s: float | None = None) -> list[Event]:
        """The events that the end of the stream ends, at `duration_s` at the latest."""
        found = self._decide(self._median.close())
        return found + self._ended(self._first >= 0, duration_s)

    def _decide(self, active: np.ndarray) -> list[Event]:
        found = []
        for row, on in zip(self._waiting, active, strict=False):
            found += self._ended(~on & (self._first >= 0))
            self._first[on & (self._first < 0)] = self._frame
            self._sum[on] += row[on]
            self._frame += 1
        self._waiting = self._waiting[len(active) :]
        return found

    def _ended(self, which: np.ndarray, duration_s: float | None = None) -> list[Event]:
        """Close the runs of some classes (classes,) before the present frame."""
        if not which.any():  # nearly always
            return []
        numbers = np.flatnonzero(which)
        first = self._first[numbers]
        onset_s = frame_times(first, duration_s)
        offset_s = float(frame_times(self._frame, duration_s))
        mean = self._sum[numbers] / (self._frame - first)
        kept = (offset_s > onset_s) & (offset_s - onset_s >= self._shortest_s)
        columns = (x[kept].tolist() for x in (onset_s, numbers, mean))
        found = [
            Event(a, offset_s, self.labels[i], score) for a, i, score in zip(*columns, strict=True)
        ]
        self._first[which] = -1
        self._sum[which] = 0
        return sorted(found)


class _Medians:
    """A `_Median` for each of the classes' `sizes` (classes,); all of them decide a frame."""

    def __init__(self, sizes: np.ndarray) -> None:
        self._columns = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
        self._filters = [_Median(sizes[same[0]], len(same)) for same in self._columns]
        self._decided = [np.zeros((0, len(same)), bool) for same in self._columns]

    @property
    def ahead(self) -> int:
        """How many later frames it takes to decide on one."""
        return max((one.ahead for one in self._filters), default=0)

    def feed(self, active: np.ndarray) -> np.ndarray:
        """The next frames (frames, classes) -> those that are now decided."""
        new = [
            one.feed(active[:, same])
            for one, same in zip(self._filters, self._columns, strict=True)
        ]
        return self._joined(new, active)

    def close(self) -> np.ndarray:
        """The frames that were waiting."""
        n_classes = sum(map(len, self._columns))
        return self._joined([one.close() for one in self._filters], np.zeros((0, n_classes), bool))

    def _joined(self, new: list[np.ndarray], like: np.ndarray) -> np.ndarray:
        known = [np.concatenate(pair) for pair in zip(self._decided, new, strict=True)]
        n_decided = min(map(len, known), default=len(like))
        out = np.zeros((n_decided, like.shape[1]), bool)
        for same, rows in zip(self._columns, known, strict=True):
            out[:, same] = rows[:n_decided]
        self._decided = [rows[n_decided:] for rows in known]
        return out


class _Median:
    """The median filter of `scores_to_events` on active frames (frames, classes), in parts.

    A frame is active when at least size - size // 2 of the `size` frames around it are: size // 2
    before it, the rest from it on. Both ends of the stream are mirrored.
    """

    def __init__(self, size: int, n_classes: int) -> None:
        self.size = int(size)
        self.before = self.size // 2
        self.ahead = self.size - 1 - self.before
        self._known = np.zeros((0, n_classes), bool)  # what frames to come still look back at
        self._mirrored = False  # at the start

    def feed(self, active: np.ndarray) -> np.ndarray:
        """The next frames -> those that are now decided."""
        self._known = np.concatenate((self._known, active))
        if not self._mirrored:
            if len(self._known) < max(1, self.before):
                return self._known[:0]
            self._known = np.concatenate((self._known[: self.before][::-1], self._known))
            self._mirrored = True
        return self._filtered()

    def close(self) -> np.ndarray:
        """The frames that were waiting."""
        n = len(self._known)
        if n == 0:
            return self._known
        if self._mirrored:
            self._known = np.concatenate((self._known, self._known[n - self.ahead :][::-1]))
        else:  # shorter than half the filter: mirrored as often as needed
            pads = ((self.before, self.ahead), (0, 0))
            self._known = np.pad(self._known, pads, mode="symmetric")
        return self._filtered()

    def _filtered(self) -> np.ndarray:
        counts = np.zeros((len(self._known) + 1, self._known.shape[1]), np.int32)
        np.cumsum(self._known, axis=0, out=counts[1:])
        n_decided = max(0, len(self._known) - self.size + 1)
        sums = counts[self.size :] - counts[:n_decided]
        self._known = self._known[n_decided:]
        return sums >= self.size - self.before
