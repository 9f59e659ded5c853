"""Frame scores that come clip by clip: which clips are to come, and what their scores must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from downstream.metrics import psd_roc
from downstream.metrics.event_table import Events, EventTable, event_pair, first_few
from hear_pretrainedsed.registry import unknown


class ExpectedClips:
    """The clips of a reference, each of which gives its scores once or is left out.

    Attributes: `files`, `labels`, `table` (reference events, sorted by file and onset, files and
    labels numbered as in those), `duration_s` (files,), `frame_s`, `taken` (files,) bool.

    Raises `ValueError` for bad events (`event_pair`), files without a duration, and a `frame_s`
    that is no time.
    """

    def __init__(
        self,
        frame_s: float,
        labels: Sequence[str],
        reference: Events,
        durations_s: Mapping[str, float],
    ) -> None:
        if not 0 < frame_s < float("inf"):
            raise ValueError(f"frame_s is a time above 0 seconds, got {frame_s}")
        pair = event_pair(reference, {}, labels)
        psd_roc.total_duration(durations_s, pair.files)
        self.frame_s = frame_s
        self.files, self.labels = pair.files, pair.labels
        self.table = pair.reference.rows(np.lexsort((pair.reference.onset_s, pair.reference.file)))
        self.duration_s = np.array([durations_s[name] for name in self.files], dtype=np.float64)
        self.taken = np.zeros(len(self.files), bool)
        self._waiting = {name: i for i, name in enumerate(self.files)}

    def take(self, file: str) -> int:
        """The number of a file that gives its scores now.

        Raises `ValueError` for a file that is not expected or had its turn.
        """
        number = self._turn(file)
        self.taken[number] = True
        return number

    def skip(self, file: str) -> None:
        """Leave a file out, as if the reference did not have it."""
        self._turn(file)

    def _turn(self, file: str) -> int:
        if file not in self._waiting:
            if file in set(self.files):
                raise ValueError(f"{file!r} comes a second time")
            raise ValueError(unknown("file", file, self.files[:3]) + " and so on")
        return self._waiting.pop(file)

    def finish(self) -> None:
        """Raise `ValueError` if files have not had their turn."""
        if self._waiting:
            raise ValueError(f"no scores of {first_few(self._waiting)}")

    def events(self, number: int) -> EventTable:
        """The reference events of one file."""
        first, end = np.searchsorted(self.table.file, (number, number + 1))
        return self.table.rows(np.arange(first, end))

    def named_events(self, number: int) -> list[tuple[float, float, str]]:
        """Those of one file as sed_scores_eval gets them, under `psd_roc.class_name`s."""
        events = self.events(number)
        columns = (events.onset_s.tolist(), events.offset_s.tolist(), events.label.tolist())
        return [(a, b, psd_roc.class_name(label)) for a, b, label in zip(*columns, strict=True)]

    def checked(self, file: str, scores: np.ndarray) -> np.ndarray:
        """Scores (frames, classes) in float32, or in float64 if they came so.

        Raises `ValueError` for other shapes and types, and for NaN.
        """
        scores, n_classes = np.asarray(scores), len(self.labels)
        if scores.ndim != 2 or scores.shape[1] != n_classes or not len(scores):
            raise ValueError(f"{file!r}: scores {scores.shape}, wanted (frames, {n_classes})")
        if not np.issubdtype(scores.dtype, np.floating):
            raise ValueError(f"{file!r}: scores are floating point, got {scores.dtype}")
        if np.isnan(scores.max()):
            raise ValueError(f"{file!r}: NaN in the scores")
        return scores.astype(np.float32, copy=False) if scores.itemsize < 4 else scores
