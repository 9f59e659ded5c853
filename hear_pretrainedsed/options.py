"""What a user may set about a loaded model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hear_pretrainedsed.frames import WINDOWINGS
from hear_pretrainedsed.frontends import SAMPLE_RATE
from hear_pretrainedsed.registry import unknown

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

Layers = int | Sequence[int] | str | None


@dataclass(frozen=True)
class Options:
    """What a user may set about a loaded model.

    layer: None for the final output, a block's index, several, or "all"; for HEAR embeddings.
    windowing: "reference" (10 s after 10 s, as the originals) or "overlap" (every 5 s).
    sample_rate: of the audio that comes in, Hz; resampled inside when it is not 16 000.
    precision: "fp32" or "bf16", of backbone and sequence model; what comes out is float32.
    concat_mel: append the spec, averaged over each frame, to HEAR embeddings.
    batch_size: windows in the backbone at a time; None: 4, whose activations stay near a CPU's
        cache (8 at a time are up to a tenth slower), and 32 on a GPU.
    vocabulary: file with the head's class names, for checkpoints whose names are not known here.
    """

    layer: Layers = None
    windowing: str = "reference"
    sample_rate: int = SAMPLE_RATE
    precision: str = "fp32"
    concat_mel: bool = False
    batch_size: int | None = None
    vocabulary: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.windowing not in WINDOWINGS:
            raise ValueError(unknown("windowing", self.windowing, WINDOWINGS))
        if self.precision not in PRECISIONS:
            raise ValueError(unknown("precision", self.precision, PRECISIONS))
        for name in ("sample_rate", "batch_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}; it has to be a positive whole number")
