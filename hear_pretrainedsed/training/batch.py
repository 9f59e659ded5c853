"""A training batch: what must stay together when clips are mixed, shifted or masked."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Clips of one length with what is to be learned of them.

    audio: (batch, samples). targets: (batch, frames, classes) in 0..1; None for clips that have
    labels of the whole clip alone. weak: those, (batch, classes) in 0..1. spec: (batch, 1, mels,
    spec_frames), once the front end has seen the audio. teacher_spec: what a teacher sees of the
    same audio, by its own front end. pseudo: a teacher's scores, shaped as `targets`. n_samples:
    (batch,) where each clip's own audio ends, before silence; None: nobody asks. files: the clips'
    names, for messages.
    """

    audio: Tensor
    targets: Tensor | None = None
    weak: Tensor | None = None
    spec: Tensor | None = None
    teacher_spec: Tensor | None = None
    pseudo: Tensor | None = None
    n_samples: Tensor | None = None
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.audio)
