"""Area under the ROC curve of segments: sed_scores_eval's `segment_based.auroc`, streamed.

Rules, from sed_scores_eval 0.0.4 (`segment_based/intermediate_statistics.py`, `base_modules/
roc.py`, `curves.py`):

- A clip has ceil(duration / segment length) segments, the last one as long as the others. A
  segment's score is the highest one of the frames that reach into it, and **0** where there are
  none (the duration is longer than the scores), whatever the scale of the scores.
- A class is active in every segment that one of its events shares time with, or in which an event
  without length lies (not on its borders). Times are compared after rounding frames and segments,
  but not events, to 1 us.
- The curve has a point at every distinct score and is a staircase: between two points, and up to
  `max_fpr` after the last one within it, the true positive rate is that of the lower false positive
  rate. The area is divided by `max_fpr`: chance is about `max_fpr` / 2.

scikit-learn joins points by lines and rescales the area so that chance is 0.5 (McClish 1989).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from downstream.metrics.event_table import Events, first_few
from downstream.metrics.expected_clips import ExpectedClips
from downstream.metrics.matching import in_ranges
from downstream.metrics.score import Score, class_score

_DECIMALS = 6  # that times are rounded to: 1 us


def segment_auroc(
    scores: Mapping[str, np.ndarray],
    frame_s: float,
    labels: Sequence[str],
    reference: Events,
    durations_s: Mapping[str, float],
    *,
    segment_s: float = 1.0,
    max_fpr: float | None = 0.1,
    mcclish: bool = False,
) -> Score:
    """Area under the ROC curve of segments, up to a false positive rate of `max_fpr`.

    Scores are {file: (frames, classes)}; frame i is from i to (i + 1) * `frame_s`. `macro` is the
    mean over classes, `micro` pools all segments of all classes. Divided by `max_fpr` as in
    sed_scores_eval (PretrainedSED's evaluation on AudioSet Strong); with `mcclish` what scikit-
    learn's `roc_auc_score(max_fpr=...)` gives: areas under lines, rescaled so that chance is 0.5.
    `max_fpr=None` is the whole area.

    Every file of `reference` must have scores; files with scores and no events are silence. A class
    that is active in no segment (sed_scores_eval refuses it), or in all of them (NaN there too),
    is NaN and not in `macro`. Events of one class may overlap.

    Raises `ValueError` for bad events, files without scores or duration, scores of the wrong shape
    or with NaN, and a `segment_s` or `max_fpr` out of range.
    """
    known = set(scores)  # asking a lazy mapping whether it has a file may read it
    if missing := [name for name in reference if name not in known]:
        raise ValueError(f"no scores of {first_few(missing)}")
    clips = {name: reference.get(name, ()) for name in scores}
    setting = dict(segment_s=segment_s, max_fpr=max_fpr, mcclish=mcclish)
    stream = StreamedSegmentAUROC(frame_s, labels, clips, durations_s, **setting)
    for name in scores:
        stream.add(name, scores[name])
    return stream.result()


class StreamedSegmentAUROC:
    """`segment_auroc` of scores that are handed over clip by clip: `add` each, then `result`.

    Keeps one score a segment and class: 17 000 clips of 10 s x 447 classes are 0.3 GB (0.6 GB if
    scores come in float64). `reference` names every clip to come; `skip` leaves one out.
    """

    def __init__(
        self,
        frame_s: float,
        labels: Sequence[str],
        reference: Events,
        durations_s: Mapping[str, float],
        *,
        segment_s: float = 1.0,
        max_fpr: float | None = 0.1,
        mcclish: bool = False,
    ) -> None:
        if not 0 < segment_s < float("inf"):
            raise ValueError(f"segment_s is a time above 0 seconds, got {segment_s}")
        if max_fpr is not None and not 0 < max_fpr <= 1:
            raise ValueError(f"max_fpr is None or above 0 and at most 1, got {max_fpr}")
        self.clips = ExpectedClips(frame_s, labels, reference, durations_s)
        self.max_fpr, self.mcclish = max_fpr, mcclish
        counts = np.ceil(self.clips.duration_s / segment_s).astype(np.int64)
        self.ends = np.cumsum(counts)  # of each file's segments, which are laid end to end
        self.starts = self.ends - counts
        self.bounds = np.round(np.arange(counts.max(initial=0) + 1) * segment_s, _DECIMALS)
        self.scores: np.ndarray | None = None

    def add(self, file: str, scores: np.ndarray) -> None:
        """Scores (frames, classes) of a clip; frame i is from i to (i + 1) * `frame_s`."""
        scores = self.clips.checked(file, scores)
        number = self.clips.take(file)
        rows = slice(self.starts[number], self.ends[number])
        if self.scores is None or scores.dtype.itemsize > self.scores.itemsize:
            self._make_room(scores.dtype)
        self.scores[rows] = self._highest(scores, rows.stop - rows.start)

    def skip(self, file: str) -> None:
        """Leave a clip out."""
        self.clips.skip(file)

    def result(self) -> Score:
        """The score of all clips; `ValueError` names those that are still to come."""
        self.clips.finish()
        n_labels = len(self.clips.labels)
        counted = np.repeat(self.clips.taken, self.ends - self.starts)
        if self.scores is None or not counted.any():
            raise ValueError("no clips")
        active = np.zeros((len(counted), n_labels), bool)
        active[self._active()] = True
        scores = self.scores
        if not counted.all():
            scores, active = scores[counted], active[counted]
        setting = (self.max_fpr, self.mcclish)
        values = [partial_area(scores[:, i], active[:, i], *setting) for i in range(n_labels)]
        micro = partial_area(scores.ravel(), active.ravel(), *setting)
        return class_score(micro, np.array(values, dtype=np.float64), self.clips.labels)

    def _make_room(self, dtype: np.dtype) -> None:
        new = np.empty((self.ends[-1], len(self.clips.labels)), dtype)
        if self.scores is not None:
            new[:] = self.scores
        self.scores = new

    def _highest(self, scores: np.ndarray, n_segments: int) -> np.ndarray:
        """Frames (frames, classes) -> segments (n_segments, classes)."""
        times = np.round(np.arange(len(scores) + 1) * self.clips.frame_s, _DECIMALS)
        bounds = self.bounds[: n_segments + 1]
        first = np.maximum(np.searchsorted(times, bounds[:-1], "right") - 1, 0)
        end = np.minimum(np.searchsorted(times, bounds[1:], "left"), len(scores))
        highest = np.zeros((n_segments, scores.shape[1]), scores.dtype)
        for segment in np.flatnonzero(first < end).tolist():
            highest[segment] = scores[first[segment] : end[segment]].max(axis=0)
        return highest

    def _active(self) -> tuple[np.ndarray, np.ndarray]:
        """Segments and classes that events are in, as indices; some may come twice."""
        table = self.clips.table
        first = np.searchsorted(self.bounds[1:], table.onset_s, "right")
        end = np.searchsorted(self.bounds[:-1], table.offset_s, "left")
        n_segments = (self.ends - self.starts)[table.file]
        row, segment = in_ranges(first, np.minimum(end, n_segments))
        return self.starts[table.file[row]] + segment, table.label[row]


def partial_area(
    scores: np.ndarray, active: np.ndarray, max_fpr: float | None, mcclish: bool = False
) -> float:
    """Area under the ROC curve of scores (n,) against activity (n,); see `segment_auroc`.

    NaN if all or none are active.
    """
    found, silent = np.sort(scores[active]), scores[~active]
    n_found, n_silent = len(found), len(silent)
    if not n_found or not n_silent:
        return float("nan")
    limit = n_silent * (1.0 if max_fpr is None else max_fpr)
    n_top = min(int(np.ceil(limit)), n_silent)
    top = np.partition(silent, n_silent - n_top)[n_silent - n_top :]
    top = np.sort(top)[::-1]
    width = np.clip(limit - np.arange(n_top), 0, 1)  # the last one may count in part
    height = (n_found - np.searchsorted(found, top, "right")).astype(np.float64)
    if mcclish:
        height += _rise(found, silent, top, width)
    area = float((height * width).sum()) / n_found / n_silent
    share = limit / n_silent
    if not mcclish or share >= 1:
        return area / share
    chance = share**2 / 2
    return 0.5 * (1 + (area - chance) / (share - chance))


def _rise(found: np.ndarray, silent: np.ndarray, top: np.ndarray, width: np.ndarray) -> np.ndarray:
    """How much higher lines are than the staircase, on average over each width (top,).

    Where n silent segments share a score with m active ones, the curve rises by m over n.
    """
    _, first, group, n_silent = np.unique(
        -top, return_index=True, return_inverse=True, return_counts=True
    )
    n_silent[-1] = np.count_nonzero(silent == top[-1])  # the limit may cut the last group
    n_found = np.searchsorted(found, top, "right") - np.searchsorted(found, top, "left")
    place = np.arange(len(top)) - first[group]
    return n_found * (place + width / 2) / n_silent[group]
