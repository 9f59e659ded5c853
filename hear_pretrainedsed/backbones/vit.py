"""The pre-norm transformer block that ATST-Frame, fPaSST, ASiT and M2D share.

Dosovitskiy et al. 2021 (ViT-Base): width 768, 12 heads of 64, MLP 3072, exact GELU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hear_pretrainedsed.backbones.base import Backbone

EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for q, k and v (in that order, heads inside)."""

    def __init__(self, dim: int, n_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) -> the same."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.n_heads, dim // self.n_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) -> the same."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, dim: int = 768, n_heads: int = 12, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, n_heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) -> the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(Backbone):
    """A backbone whose blocks are twelve of `Block`."""

    embed_dim = 768
    width = 768

    def __init__(self, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(self.width, qkv_bias=qkv_bias) for _ in range(12))

    @property
    def blocks_(self) -> nn.ModuleList:
        """The twelve blocks."""
        return self.blocks

    def layer_of(self, name: str) -> int:
        """Embeddings count as block 0, the final norm as the last block."""
        return self._layer_by_pattern(name, r"blocks\.(\d+)\.", r"norm")


class PatchEmbed(nn.Module):
    """Non-overlapping square patches by convolution, as one flat sequence in row-major order."""

    def __init__(self, width: int, patch: int = 16) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 1, rows, columns) -> (batch, patches, width)."""
        return self.proj(image).flatten(2).transpose(1, 2)


def token_parameter(*shape: int) -> nn.Parameter:
    """A learned token or position table, at its usual small random start."""
    return nn.Parameter(torch.randn(*shape) * 0.02)
