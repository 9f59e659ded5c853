"""frames -> logits or scores. A head declares which of the two it emits.

It also declares what `clip` pools over: frames, or the backbone's tokens at their own steps.
"""

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
    pools: ClassVar[str] = "frames"

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
    pools: ClassVar[str] = "frames"

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.strong = nn.Linear(dim, n_classes)
        self.weak = nn.Linear(dim, n_classes)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (batch, frames, dim) -> scores (batch, frames, classes)."""
        return torch.sigmoid(self.strong(frames))

    def clip(self, frames: Tensor) -> Tensor:
        """Frames (batch, frames, dim) -> clip scores (batch, classes)."""
        attention = self.weak(frames).softmax(dim=-1).clamp(1e-7, 1.0)
        return (self.forward(frames) * attention).sum(dim=1) / attention.sum(dim=1)


class TokenAttentionHead(AttentionHead):
    """The same, the clip pooled over the backbone's tokens, as it was trained (ATST-SED)."""

    pools: ClassVar[str] = "tokens"


class MultiHeadPooling(nn.Module):
    """PSLA's attention pooling with four heads (Gong et al. 2021). Emits probabilities.

    With c_h = sigmoid(class map h) and a_h = sigmoid(attention map h), a_h clamped to
    [1e-7, 1 - 1e-7] and divided by its sum over time, the clip's score is
    sum_h w_h sum_t a_h(t) c_h(t); w is learned and starts at 1/4. The score of a frame, which
    the paper does not define, is what that average is taken of: sum_h w_h c_h(t). Since w need not
    sum to one, both are clamped to [0, 1], as PSLA does before its loss.
    """

    emits: ClassVar[str] = "probabilities"
    pools: ClassVar[str] = "tokens"

    def __init__(self, dim: int, n_classes: int, n_heads: int = 4) -> None:
        super().__init__()
        self.head_weight = nn.Parameter(torch.full((n_heads,), 1 / n_heads))
        self.att = nn.ModuleList(nn.Conv2d(dim, n_classes, 1) for _ in range(n_heads))
        self.cla = nn.ModuleList(nn.Conv2d(dim, n_classes, 1) for _ in range(n_heads))

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (batch, frames, dim) -> scores (batch, frames, classes)."""
        x = frames.transpose(1, 2)[..., None]
        maps = [w * c(x).sigmoid() for w, c in zip(self.head_weight, self.cla, strict=True)]
        return sum(maps)[..., 0].transpose(1, 2).clamp(0, 1)

    def clip(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, tokens, dim), at the backbone's own steps -> clip scores."""
        x = tokens.transpose(1, 2)[..., None]
        score = x.new_zeros(())
        for weight, att, cla in zip(self.head_weight, self.att, self.cla, strict=True):
            a = att(x).sigmoid().clamp(1e-7, 1 - 1e-7)
            pooled = (a * cla(x).sigmoid()).sum(dim=2) / a.sum(dim=2)
            score = score + weight * pooled[..., 0]
        return score.clamp(0, 1)


#: name -> class
HEADS = {
    "linear": LinearHead,
    "attention": AttentionHead,
    "token_attention": TokenAttentionHead,
    "multihead": MultiHeadPooling,
}
