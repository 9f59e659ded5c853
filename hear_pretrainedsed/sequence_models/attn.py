"""`attn`: gated rotary self-attention alone (EfficientSED, arXiv 2503.11373)."""

from __future__ import annotations

from torch import Tensor, nn

from hear_pretrainedsed.sequence_models.base import GatedAttention, SequenceModel, init_linears

N_LAYERS, N_HEADS = 2, 8


class AttnLayers(nn.Module):
    """x += attention(x), `n_layers` times."""

    def __init__(self, dim: int, n_layers: int = N_LAYERS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GatedAttention("attn", dim, N_HEADS) for _ in range(n_layers))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> the same."""
        for attention in self.layers:
            x = x + attention(x)
        return x


class Attn(SequenceModel):
    """Linear projection, two layers of attention unless told; no feed-forward part or last norm."""

    def __init__(self, inputs: int, dim: int, n_layers: int = N_LAYERS) -> None:
        layers = AttnLayers(dim, n_layers)
        super().__init__(nn.Linear(inputs, dim), layers)
        self.out_dim, self.n_layers = dim, n_layers
        init_linears(self)
