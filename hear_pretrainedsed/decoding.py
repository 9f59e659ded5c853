"""How a model's scores become events, where that was found for it class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hear_pretrainedsed.events import label_indices

if TYPE_CHECKING:
    from hear_pretrainedsed.model import SEDModel

THRESHOLD = 0.5  # where neither the user nor the model's file says another


@dataclass(frozen=True)
class Decoding:
    """What was calibrated on validation data, in the order of the head's classes.

    thresholds: scores above are events. median_frames: widths of the median filter before that, odd
    numbers of 40 ms frames (1: none).
    """

    thresholds: tuple[float, ...]
    median_frames: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.thresholds) != len(self.median_frames):
            raise ValueError(
                f"{len(self.thresholds)} thresholds and {len(self.median_frames)} median lengths: "
                "there is one of both for each class"
            )
        if bad := [x for x in self.thresholds if not 0 <= x <= 1]:
            raise ValueError(f"a threshold is a score from 0 to 1, got {bad[0]}")
        if bad := [n for n in self.median_frames if n < 1 or n % 2 == 0]:
            raise ValueError(f"a median length is an odd number of frames from 1 on, got {bad[0]}")


def decoding_for(
    model: SEDModel,
    labels: Sequence[str],
    threshold: float | Sequence[float] | None = None,
    median_frames: int | Sequence[int] | None = None,
) -> dict[str, Any]:
    """`threshold` and `median_frames` of `scores_to_events`, for some of a model's classes.

    What is given stays; what is None is what was calibrated for the model, one value for each of
    `labels`; else 0.5, and no filter.
    """
    if (own := model.decoding) is not None:
        places = label_indices(model.labels, labels)
        if threshold is None:
            threshold = [own.thresholds[i] for i in places]
        if median_frames is None:
            median_frames = [own.median_frames[i] for i in places]
    threshold = THRESHOLD if threshold is None else threshold
    return {"threshold": threshold, "median_frames": median_frames}
