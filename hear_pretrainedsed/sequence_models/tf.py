"""`tf`: a transformer with rotary embedding and gated heads (EfficientSED, arXiv 2503.11373)."""

from __future__ import annotations

from torch import Tensor, nn

from hear_pretrainedsed.sequence_models.base import (
    GatedAttention,
    RMSNorm,
    SequenceModel,
    init_linears,
)

N_LAYERS, DROPOUT = 2, 0.2


class FeedForward(nn.Module):
    """RMSNorm, linear to four times the width, exact GELU, linear back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            RMSNorm(dim),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(4 * dim, dim),
            nn.Dropout(DROPOUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> the same."""
        return self.net(x)


class TfLayers(nn.Module):
    """x += attention(x); x += feed_forward(x), `n_layers` times; RMSNorm."""

    def __init__(self, dim: int, n_layers: int = N_LAYERS) -> None:
        super().__init__()
        n_heads = 8 if dim >= 128 else 4
        self.layers = nn.ModuleList(
            nn.ModuleList([GatedAttention("tf", dim, n_heads, DROPOUT), FeedForward(dim)])
            for _ in range(n_layers)
        )
        self.norm = RMSNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> the same."""
        for attention, feed_forward in self.layers:
            x = x + attention(x)
            x = x + feed_forward(x)
        return self.norm(x)


class Tf(SequenceModel):
    """Linear projection and a transformer: 8 heads, 4 below a width of 128."""

    def __init__(self, inputs: int, dim: int, n_layers: int = N_LAYERS) -> None:
        layers = TfLayers(dim, n_layers)
        super().__init__(nn.Linear(inputs, dim), layers)
        self.out_dim, self.n_layers = dim, n_layers
        init_linears(self)
