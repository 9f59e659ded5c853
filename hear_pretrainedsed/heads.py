"""frames -> logits or scores. A head declares which of the two it emits."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


class NoHeadError(ValueError):
    """The checkpoint has no trained head that could give what was asked for."""


class LinearHead(nn.Module):
    """Independent linear maps for frames (`strong`) and for the whole clip (`weak`).

    Emits logits. Either part may be missing: then what needs it raises `NoHeadError`.
    """

    emits: ClassVar[str] = "logits"

    def __init__(self, dim: int, n_classes: int, *, strong: bool = True, weak: bool = True) -> None:
        super().__init__()
        self.strong = nn.Linear(dim, n_classes) if strong else None
        self.weak = nn.Linear(dim, n_classes) if weak else None

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (batch, frames, dim) -> logits (batch, frames, classes)."""
        if self.strong is None:
            raise NoHeadError("the checkpoint's file has no strong head: frame scores are not had")
        return self.strong(frames)

    def clip(self, frames: Tensor) -> Tensor:
        """Frames (batch, frames, dim) -> clip logits (batch, classes), from the mean frame."""
        if self.weak is None:
            raise NoHeadError("the checkpoint's file has no weak head: clip scores are not had")
        return self.weak(frames.mean(dim=1))


class AttentionHead(nn.Module):
    """Attention pooling over time. Emits probabilities.

    p = sigmoid(strong); a = softmax over classes of weak, clamped to [1e-7, 1];
    clip = sum_t(p a) / sum_t(a). DCASE baseline's head, as in PretrainedSED.
    """

    emits: ClassVar[str] = "probabilities"

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.strong = nn.Linear(dim, n_classes)
        self.weak = nn.Linear(dim, n_classes)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (batch, frames, dim) -> scores (batch, frames, classes)."""
        return torch.sigmoid(self.strong(frames))

    def clip(self, frames: Tensor) -> Tensor:
        """Frames (batch, frames, dim) -> clip scores (batch, classes)."""
        attention = self.weak(frames).softmax(dim=-1).clamp(1e-7, 1)
        return (self.forward(frames) * attention).sum(dim=1) / attention.sum(dim=1)
