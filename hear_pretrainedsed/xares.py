"""X-ARES adapter: any checkpoint as an audio encoder of the X-ARES benchmark.

X-ARES (Zhang et al., X-ARES: A Comprehensive Framework for Assessing Audio Encoder Performance,
2025) takes a Python file with one class whose name ends in "Encoder" and needs no arguments:

    from hear_pretrainedsed.xares import encoder
    BeatsEncoder = encoder("beats.strong")
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hear_pretrainedsed.api import load_model
from hear_pretrainedsed.frames import FrameGrid
from hear_pretrainedsed.registry import get_checkpoint


class SEDEncoder(nn.Module):
    """Frames of a checkpoint under X-ARES' contract.

    Attributes: `sampling_rate` (Hz), `output_dim`, `hop_size_in_ms` (40). `options` are those of
    `hear_pretrainedsed.load_model`, `model_file_path` among them.
    """

    checkpoint = ""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.model = load_model(checkpoint=self.checkpoint, **options)
        self.sampling_rate = self.model.sample_rate
        self.output_dim = self.model.timestamp_embedding_size
        self.hop_size_in_ms = round(1000 * FrameGrid().hop_s)

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """Padded audio (batch, samples) or (samples,) -> frames (batch, frames, output_dim)."""
        return self.model.embeddings(audio if audio.ndim > 1 else audio[None])


def encoder(checkpoint: str) -> type[SEDEncoder]:
    """The encoder class of a checkpoint; X-ARES files its results under the class's name."""
    facts = get_checkpoint(checkpoint)
    words = facts.module.split("_")
    name = "".join(word.capitalize() for word in words) + "Encoder"
    doc = f"X-ARES encoder of the checkpoint {facts.name}."
    return type(name, (SEDEncoder,), {"checkpoint": facts.name, "__doc__": doc})
