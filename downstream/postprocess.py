"""Frame values -> events: smoothing, thresholds, change points; all classes (and clips) at once.

Everything works on columns of values (frames, columns), which are independent of each other:
classes of one clip, or of several clips of one length side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from downstream.median_network import running_median
from downstream.tasks.task import Triple
from hear_pretrainedsed.frames import FrameGrid

GRID = FrameGrid()
SPANS = ("centres", "edges")
_NETWORK_FRAMES = 31  # windows up to here are faster compared all at once


class Segments(NamedTuple):
    """Stretches of frames [first, end) in columns, by column, then time; `value`: their mean."""

    column: np.ndarray
    first: np.ndarray
    end: np.ndarray
    value: np.ndarray

    def take(self, kept: np.ndarray) -> Segments:
        """Some of them, by index or mask."""
        return Segments(*(field[kept] for field in self))


def median_filter(values: np.ndarray, n_frames: int | Sequence[int]) -> np.ndarray:
    """Running median of values (frames, columns) over `n_frames`, one number or one a column.

    SciPy's filter: edges are reflected, an even window reaches one frame further back than ahead
    and takes the upper of its two middle values (so do heareval and PretrainedSED). Windows of 0 or
    1 frame leave a column as it is.
    """
    sizes = np.broadcast_to(np.asarray(n_frames), values.shape[1:])
    out = np.array(values)  # a copy
    for size in np.unique(sizes[sizes > 1]).tolist():
        same = np.flatnonzero(sizes == size)
        if size <= _NETWORK_FRAMES or size > 2 * len(values):  # SciPy's errs in so short clips
            out[:, same] = running_median(values[:, same], size)
            continue
        for i in same:  # one-dimensional: SciPy's fast filter
            out[:, i] = ndimage.median_filter(np.ascontiguousarray(values[:, i]), size)
    return out


def runs(values: np.ndarray, threshold: float | Sequence[float]) -> Segments:
    """Stretches where values (frames, columns) are above (not at) a threshold, one or a column."""
    limits = np.broadcast_to(np.asarray(threshold, values.dtype), values.shape[1:])
    active = np.zeros((values.shape[1], values.shape[0] + 2), np.int8)
    active[:, 1:-1] = (values > limits).T
    steps = np.diff(active, axis=1)
    column, first = np.nonzero(steps == 1)
    end = np.nonzero(steps == -1)[1]  # of the same columns, in the same order
    return _with_means(values, column, first, end)


def change_points(values: np.ndarray, width_frames: int, merge_above: float) -> Segments:
    """Stretches between the jumps of scores (frames, columns) in 0..1, zero outside the clip.

    The jump at a border is the mean of the `width_frames` frames after it less that of as many
    before it. Where jumps stay positive, an onset is at the largest; where they stay negative, an
    offset is at the steepest. Then neighbours become one as long as the gap between them is above
    that share of the lower of the two (means of values). Which segments are events is for a
    threshold on `value` to say.

    After the sound event bounding boxes of Ebbers et al., Interspeech 2024; there merging goes from
    left to right, here all pairs that qualify are merged at once, again and again.

    Raises `ValueError` for a width below 1 and for values below 0.
    """
    if width_frames < 1:
        raise ValueError(f"width_frames is a whole number from 1, got {width_frames}")
    if values.size and values.min() < 0:
        raise ValueError(f"change points are of scores, from 0 on; got {values.min()}")
    column, border, rising = _extremes(_jumps(values, width_frames))
    assert np.array_equal(column[rising], column[~rising])  # a column begins and ends in silence
    found = _with_means(values, column[rising], border[rising], border[~rising])
    while len(found.first) > 1:
        together = np.flatnonzero(found.column[1:] == found.column[:-1])
        gap = _with_means(
            values, found.column[together], found.end[together], found.first[together + 1]
        )
        lower = np.minimum(found.value[together], found.value[together + 1])
        closed = together[gap.value > merge_above * lower]
        if not len(closed):
            break
        starts = np.ones(len(found.first), bool)
        starts[closed + 1] = False
        ends = np.append(starts[1:], True)
        found = _with_means(values, found.column[starts], found.first[starts], found.end[ends])
    return found


def boxes(values: np.ndarray, width_frames: int, merge_above: float) -> np.ndarray:
    """Scores (frames, columns) with each segment of `change_points` at its mean, 0 elsewhere."""
    found = change_points(values, width_frames, merge_above)
    steps = np.zeros((values.shape[1], len(values) + 1))
    steps[found.column, found.first] += found.value
    steps[found.column, found.end] -= found.value
    inside = np.zeros_like(steps, np.int8)
    inside[found.column, found.first] += 1
    inside[found.column, found.end] -= 1
    levels = np.where(inside.cumsum(axis=1) > 0, steps.cumsum(axis=1), 0)
    return levels[:, :-1].T.astype(values.dtype)


def _jumps(values: np.ndarray, width: int) -> np.ndarray:
    """Sum of the next less sum of the last `width` frames at every border (columns, frames + 1).

    In whole numbers of 2 ** -30, so that where nothing changes the jump is exactly 0.
    """
    n_frames, n_columns = values.shape
    whole = np.rint(np.asarray(values.T, np.float64) * 2**30).astype(np.int64)
    sums = np.zeros((n_columns, n_frames + 2 * width + 1), np.int64)
    np.cumsum(whole, axis=1, out=sums[:, width + 1 : width + 1 + n_frames])
    sums[:, width + 1 + n_frames :] = sums[:, width + n_frames, None]
    middle = sums[:, width : width + n_frames + 1]
    return sums[:, 2 * width :] - 2 * middle + sums[:, : n_frames + 1]


def _extremes(jumps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest jump of every stretch of one direction: (column, border, whether it rises).

    Borders without a jump belong to no stretch and divide none, so that directions alternate.
    """
    n_borders = jumps.shape[1]
    flat = jumps.ravel()
    moving = np.flatnonzero(flat)
    rising = flat[moving] > 0
    turn = np.ones(len(moving), bool)
    turn[1:] = (rising[1:] != rising[:-1]) | (np.diff(moving // n_borders) != 0)
    stretch = np.cumsum(turn) - 1
    order = np.lexsort((moving, -np.abs(flat[moving]), stretch))
    best = order[np.flatnonzero(np.diff(stretch[order], prepend=-1))]
    return moving[best] // n_borders, moving[best] % n_borders, rising[best]


def _with_means(
    values: np.ndarray, column: np.ndarray, first: np.ndarray, end: np.ndarray
) -> Segments:
    n_frames = len(values)
    flat = np.append(np.ascontiguousarray(values.T, np.float64).ravel(), 0.0)
    bounds = np.stack((column * n_frames + first, column * n_frames + end), axis=1).ravel()
    sums = np.add.reduceat(flat, bounds)[::2] if len(bounds) else np.zeros(0)
    mean = np.where(end > first, sums / np.maximum(end - first, 1), 0.0)
    return Segments(column, first, end, mean)


def to_events(
    segments: Segments,
    labels: Sequence[str],
    *,
    min_duration_s: float | None = None,
    spans: str = "centres",
) -> list[Triple]:
    """Segments of one clip, whose columns are classes -> its events, sorted by onset.

    spans: "centres": from the centre of the first frame to that of the last, as heareval and
    PretrainedSED have it, so that one frame alone has no length; "edges": all that the frames
    cover. Events shorter than `min_duration_s` are left out.
    """
    assert spans in SPANS
    hop_ms = 1000 * GRID.hop_samples // GRID.sample_rate  # exact: whole numbers of ms
    shift = hop_ms // 2 if spans == "centres" else 0
    start, end = segments.first * hop_ms + shift, segments.end * hop_ms - shift
    kept = np.flatnonzero(end - start >= 1000 * (min_duration_s or 0) - 1e-9)
    kept = kept[np.argsort(start[kept], kind="stable")]
    columns = (start[kept] / 1000, end[kept] / 1000, segments.column[kept])
    return [(a, b, labels[c]) for a, b, c in zip(*(x.tolist() for x in columns), strict=True)]
