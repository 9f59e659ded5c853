"""What is wanted of frames: the labels of the events that their centres lie in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from downstream.tasks.task import Clip
from hear_pretrainedsed.frames import FrameGrid

GRID = FrameGrid()
_END_MS = 1e-4  # heareval counts an event's end as inside


def frame_targets(clip: Clip, labels: Sequence[str], n_frames: int) -> np.ndarray:
    """Labels of a clip's frames (frames, classes), uint8: 1 where start <= t < end + 0.0001 ms.

    t are frame centres in ms; heareval's rule, and PretrainedSED's for DCASE 2016.
    """
    centres = GRID.timestamps_ms(n_frames).double().numpy()
    out = np.zeros((n_frames, len(labels)), np.uint8)
    column = {label: i for i, label in enumerate(labels)}
    for start, end, label in clip.in_ms():
        first, last = np.searchsorted(centres, (start, end + _END_MS), side="left")
        out[first:last, column[label]] = 1
    return out
