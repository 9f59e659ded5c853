"""`attn`: gated rotary self-attention alone (EfficientSED, arXiv 2503.11373)."""

from __future__ import annotations

from torch import Tensor, nn

from hear_pretrainedsed.sequence_models.base import GatedAttention, SequenceModel, init_linears

N_LAYERS, N_HEADS = 2, 8


class AttnLayers(nn.Module):
    """x += attention(x), twice."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GatedAttention("attn", dim, N_HEADS) for _ in range(N_LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> the same."""
        for attention in self.layers:
            x = x + attention(x)
        return x


class Attn(SequenceModel):
    """Linear projection and two layers of attention; no feed-forward part, no final norm."""

    def __init__(self, inputs: int, dim: int) -> None:
        layers = AttnLayers(dim)
        super().__init__(nn.Linear(inputs, dim), layers)
        self.out_dim = dim
        init_linears(self)
