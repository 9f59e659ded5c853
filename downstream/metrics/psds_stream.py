"""PSDS of clips whose scores come one at a time, in bounded memory, without cross-triggers.

Without cross-triggers classes don't depend on each other. Clips in which a class does not occur are
counted for all classes at once (`false_positives`); those in which it occurs by sed_scores_eval or,
where they are long, by `score_runs`. Every count is exact, and so is the result: what
`sed_scores_eval` computes from all scores at once.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any

import numpy as np

from downstream.metrics import psd_roc
from downstream.metrics.event_table import Events, with_length
from downstream.metrics.expected_clips import ExpectedClips
from downstream.metrics.false_positives import FalsePositives
from downstream.metrics.intersection_based import check_apart
from downstream.metrics.score import Score, class_score
from hear_pretrainedsed.end_with_parent import end_with_parent

Progress = Callable[[int, int], None]
"""Is told how many clips are done, and of how many."""

_POLL_S = 0.2  # between two looks at what worker processes have done


class StreamedPSDS:
    """PSDS of scores that are handed over clip by clip: `add` each, then `result`.

    Takes what `psds` takes but for the scores and cross-triggers, and gives the same `Score`.
    `reference` names every clip to come, those without events too; `skip` leaves one out. Memory
    does not grow with the clips but with what lies within `max_efpr`: 447 classes of 17 000 clips
    of 250 frames take some 0.3 GB.

    Raises `ValueError` as `psds` does.
    """

    def __init__(
        self,
        frame_s: float,
        labels: Sequence[str],
        reference: Events,
        durations_s: Mapping[str, float],
        dtc: float,
        gtc: float,
        *,
        alpha_st: float = 0.0,
        max_efpr: float = 100.0,
    ) -> None:
        psd_roc.check_parameters(dtc, gtc, None, 0.0, alpha_st, max_efpr)
        psd_roc.sed_scores_eval()  # imported now: it takes seconds
        self.clips = psds_clips(frame_s, labels, reference, durations_s)
        self.alpha_st, self.max_efpr = alpha_st, max_efpr
        limit = int(max_efpr * sum(self.clips.duration_s.tolist()) / 3600) + 1  # 1: rounding
        self.counts = ClipCounts(self.clips, dtc, gtc, limit)

    def add(self, file: str, scores: np.ndarray) -> None:
        """Scores (frames, classes) of a clip; frame i is from i to (i + 1) * `frame_s`."""
        scores = self.clips.checked(file, scores)
        self.counts.add(self.clips.take(file), scores)

    def skip(self, file: str) -> None:
        """Leave a clip out: it is no silence but not part of the set."""
        self.clips.skip(file)

    def result(self) -> Score:
        """The score of all clips; `ValueError` names those that are still to come."""
        self.clips.finish()
        taken = self.clips.taken
        total_s = sum(self.clips.duration_s[taken].tolist())
        table = self.clips.table.rows(taken[self.clips.table.file])
        n_ref = table.count(len(self.clips.labels))
        there = np.flatnonzero(n_ref)
        if not len(there):
            raise ValueError("no reference events")
        self.counts.false.compact()
        values = np.full(len(n_ref), np.nan)
        curves = []
        for label in there.tolist():
            parts = self.counts.of_class(label)
            values[label], curve = class_psds(parts, int(n_ref[label]), total_s, self.max_efpr)
            curves.append(curve)
        value = psd_roc.joined_psds(curves, self.alpha_st, self.max_efpr)
        return class_score(value, values, self.clips.labels)


def psds_clips(
    frame_s: float, labels: Sequence[str], reference: Events, durations_s: Mapping[str, float]
) -> ExpectedClips:
    """The clips of a reference that PSDS can be had of; without zero-length events."""
    clips = ExpectedClips(frame_s, labels, reference, durations_s)
    clips.table = with_length(clips.table)
    check_apart("reference", clips.table, clips.files, clips.labels, may_touch=False)
    if not len(clips.table):
        raise ValueError("no reference events")
    return clips


Counted = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Scores, and the changes in true and in false positives there, each (changes,)."""


class ClipCounts:
    """What clips have added to the curves so far."""

    def __init__(self, clips: ExpectedClips, dtc: float, gtc: float, limit: int) -> None:
        self._clips, self._dtc, self._gtc = clips, dtc, gtc
        self._absent = np.flatnonzero(clips.table.count(len(clips.labels)) == 0)
        self.false = FalsePositives(len(clips.labels), limit)
        self.occurring: dict[int, list[Counted]] = {}

    def add(self, number: int, scores: np.ndarray) -> None:
        """Count in the scores (frames, classes) of the clip of this number."""
        events = self._clips.events(number)
        classes = np.unique(events.label)
        self.false.add(scores, np.append(classes, self._absent))
        for label in classes.tolist():
            own = events.rows(events.label == label)
            times = (self._clips.frame_s, own.onset_s, own.offset_s)
            changes = psd_roc.clip_changes(scores[:, label], *times, self._dtc, self._gtc)
            kinds = (scores.dtype, np.int32, np.int32)
            counted = tuple(x.astype(kind) for x, kind in zip(changes, kinds, strict=True))
            self.occurring.setdefault(label, []).append(counted)

    def empty(self) -> ClipCounts:
        """One alike that has counted nothing."""
        return ClipCounts(self._clips, self._dtc, self._gtc, self.false.limit)

    def merge(self, other: ClipCounts) -> None:
        """Add what was counted in other clips."""
        self.false.merge(other.false)
        for label, parts in other.occurring.items():
            self.occurring.setdefault(label, []).extend(parts)

    def of_class(self, label: int) -> list[Counted]:
        """All changes of a class; the first ones are those of clips without it, scores falling."""
        score, false = self.false.curve(label)
        return [(score, np.zeros(len(score), np.int8), false), *self.occurring.get(label, [])]


def class_psds(
    parts: list[Counted], n_ref: int, total_s: float, max_efpr: float
) -> tuple[float, psd_roc.Roc]:
    """PSDS and curve of one class, from the changes that lie within `max_efpr`."""
    score, _, false = parts[0]
    within = np.flatnonzero(~psd_roc.beyond(np.cumsum(false), total_s, max_efpr))
    n_kept = within.max(initial=-1) + 1
    floor = score[n_kept] if n_kept < len(score) else -np.inf  # from here on too many are false
    score, found, false = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    matters = score > floor
    score, found, false = (x[matters].astype(np.float64) for x in (score, found, false))
    return psd_roc.class_roc(score, found, false, n_ref, total_s, max_efpr)


def add_all(
    stream: StreamedPSDS, scores: Mapping[str, np.ndarray], jobs: int, progress: Progress | None
) -> None:
    """Add every clip of a mapping, by `jobs` processes that read and count a share each."""
    files = stream.clips.files
    if jobs == 1:
        for i, file in enumerate(files):
            stream.add(file, scores[file])
            if progress is not None:
                progress(i + 1, len(files))
        return
    context = multiprocessing.get_context("fork")  # the scores' memory is shared
    done = context.Value("q", 0)
    state = (stream, scores, done)
    with ProcessPoolExecutor(jobs, context, _begin, (os.getpid(), state)) as pool:
        left = {pool.submit(_share, files[first::jobs]) for first in range(jobs)}
        while left:
            ended, left = wait(left, _POLL_S, FIRST_COMPLETED)
            if progress is not None:
                progress(done.value, len(files))
            for future in ended:
                try:
                    stream.counts.merge(future.result())
                except BaseException:
                    done.value = _STOP
                    raise
    for file in files:
        stream.clips.take(file)


_STOP = -(1 << 62)  # clips "done" when another process has failed
_inherited: Any = None


def _begin(parent: int, state: Any) -> None:
    global _inherited
    _inherited = state
    end_with_parent(parent)


def _share(files: Sequence[str]) -> ClipCounts:
    """In a worker process: the counts of some clips."""
    stream, scores, done = _inherited
    stream.counts = stream.counts.empty()  # this process may have had another share
    for file in files:
        if done.value < 0:
            break
        stream.add(file, scores[file])
        with done.get_lock():
            done.value += 1
    stream.counts.false.compact()
    return stream.counts
