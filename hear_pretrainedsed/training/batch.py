"""A training batch: what must stay together when clips are mixed, shifted or masked."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Clips of one length with what is to be learned of them.

    audio: (batch, samples). targets: (batch, frames, classes) in 0..1. spec: (batch, 1, mels,
    spec_frames), once the front end has seen the audio. pseudo: a teacher's scores, shaped as
    `targets`, where there is a teacher. files: the clips' names, for messages.
    """

    audio: Tensor
    targets: Tensor
    spec: Tensor | None = None
    pseudo: Tensor | None = None
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)
