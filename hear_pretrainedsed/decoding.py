"""How a model's scores become events, where that was found for it class by class."""

from __future__ import annotations

from dataclasses import dataclass


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
