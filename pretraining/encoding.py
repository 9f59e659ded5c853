"""Events -> frame targets, for one clip and, as counts, for millions at once.

The rounding is PretrainedSED's: a time t is at frame t * 16000 / 640, clipped to the clip; an event
fills the frames from the floor of its onset to the ceiling of its offset, end excluded, in float64
(8.04 s is at 200.99999999999997). EfficientSED's t / 0.04 rounds otherwise at a few times
(docs/pretraining.md, "Where it departs"); its presets have this one, too. Events of one class that
overlap or touch are one event there; their union fills the same frames, so nothing has to be merged
here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hear_pretrainedsed.events import GRID
from pretraining.clip_index import ClipIndex, IndexEvent


@dataclass(frozen=True, eq=False)
class Counts:
    """How much of a class is in a clip, for every pair of them: columns (pairs,)."""

    clip: np.ndarray
    label: np.ndarray
    amount: np.ndarray


def frame_edges(
    onset_s: np.ndarray, offset_s: np.ndarray, n_frames: int | np.ndarray = GRID.window_frames
) -> tuple[np.ndarray, np.ndarray]:
    """First frame and end of events (events,), int64; end <= first where an event fills none."""
    first, end = (
        np.clip(np.asarray(times, np.float64) * GRID.sample_rate / GRID.hop_samples, 0, n_frames)
        for times in (onset_s, offset_s)
    )
    return first.astype(np.int64), np.ceil(end).astype(np.int64)


def encode(
    events: Iterable[IndexEvent], n_classes: int, n_frames: int = GRID.window_frames
) -> np.ndarray:
    """Events of a clip -> targets (frames, classes), float32, 1 where a class is active."""
    targets = np.zeros((n_frames, n_classes), np.float32)
    rows = list(events)
    if rows:
        onset_s, offset_s, classes = zip(*rows, strict=True)
        edges = frame_edges(np.array(onset_s), np.array(offset_s), n_frames)
        for first, end, number in zip(*(e.tolist() for e in edges), classes, strict=True):
            targets[first:end, number] = 1
    return targets


def encode_weak(classes: Iterable[int], n_classes: int) -> np.ndarray:
    """Classes of a clip -> (classes,), float32."""
    targets = np.zeros(n_classes, np.float32)
    targets[list(classes)] = 1
    return targets


def active_frames(index: ClipIndex, n_classes: int) -> Counts:
    """Active frames of every class in every clip that has any; frames of two events count once.

    Clips longer than 10 s count with all of their frames.
    """
    lengths = np.nan_to_num(index.duration_s) * GRID.sample_rate
    n_frames = np.maximum(GRID.window_frames, np.ceil(lengths / GRID.hop_samples))
    clip = index.event_clip
    edges = frame_edges(index.onset_s, index.offset_s, n_frames[clip])
    return _united(clip, index.event_class, n_classes, *edges)


def active_seconds(index: ClipIndex, n_classes: int) -> Counts:
    """Seconds of every class in every clip that has any; what two events share counts once."""
    columns = (index.event_clip, index.event_class, n_classes, index.onset_s, index.offset_s)
    return _united(*columns)


def _united(
    clip: np.ndarray, label: np.ndarray, n_classes: int, first: np.ndarray, end: np.ndarray
) -> Counts:
    """Length of the union of intervals of each pair of clip and class."""
    filled = end > first
    pair = (clip * n_classes + label)[filled]
    first, end = first[filled], end[filled]
    order = np.lexsort((first, pair))
    pair, first, end = pair[order], first[order], end[order]
    begins = np.diff(pair, prepend=-1) > 0
    group = np.cumsum(begins) - 1
    # Each pair on a stretch of its own: a running maximum then never reaches into the next one.
    stretch = (end.max() + 1 if len(end) else 1) * group
    reach = np.maximum.accumulate(end + stretch) - stretch if len(end) else end
    before = np.where(begins, first, np.roll(reach, 1))
    new = np.maximum(0, reach - np.maximum(first, before))
    amount = np.bincount(group, weights=new) if len(new) else np.zeros(0)
    return Counts(pair[begins] // n_classes, pair[begins] % n_classes, amount)
