"""What every sequence model has in common, and the blocks that several of them share.

Morocutti et al. 2025 (EfficientSED, arXiv 2503.11373).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shape = tuple[int, ...]


class SequenceModel(nn.Sequential):
    """Frames (batch, frames, inputs) -> (batch, frames, out_dim), any number of frames.

    Parameters are named as in published files below `seq_model.`, so `key_map` lists only what is
    called differently there.
    """

    out_dim: int
    n_layers: int | None = None  # where that may be chosen
    #: batches of the backbone that are run as one
    n_together: ClassVar[int] = 1
    #: (pattern, replacement) pairs for `re.sub`: names in a file, below the prefix -> names here
    key_map: ClassVar[tuple[tuple[str, str], ...]] = ()

    @classmethod
    def rename(cls, name: str) -> str:
        """Name in a published file, below its prefix -> name here."""
        for pattern, replacement in cls.key_map:
            name = re.sub(pattern, replacement, name)
        return name

    def release_names(self, name: str) -> list[str]:
        """Name here -> every name under which a published file holds the tensor."""
        return [name]

    def constants(self) -> dict[str, Tensor]:
        """Tensors that files may hold and that are computed here, by name."""
        return {
            f"{name}.{key}": value
            for name, module in self.named_modules()
            if isinstance(module, GatedAttention)
            for key, value in module.constants().items()
        }

    def file_shapes(self, given: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes that a file has to have; `given` are the file's, where it has a choice."""
        return {name: tuple(value.shape) for name, value in self.state_dict().items()}


def head_size(model: str, dim: int, n_heads: int) -> int:
    """Channels of each head; `ValueError` when the width does not divide."""
    if dim < n_heads or dim % n_heads:
        raise ValueError(
            f"width {dim} of {model}-{dim} does not divide by its {n_heads} heads: "
            f"take a multiple of {n_heads}"
        )
    return dim // n_heads


def init_linears(model: nn.Module) -> None:
    """Start of `tf` and `attn`: every linear layer N(0, 0.02), biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class RMSNorm(nn.Module):
    """x / ||x|| * sqrt(dim) * gamma over the last axis."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> the same."""
        return F.normalize(x, dim=-1) * (self.gamma * self.gamma.numel() ** 0.5)


def rotary_frequencies(head_dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Angle per frame of each channel pair: 10000^(-2 i / head_dim), (head_dim // 2,) float32."""
    pairs = torch.arange(0, head_dim - head_dim % 2, 2, device=device).float()
    return 1 / 10000 ** (pairs / head_dim)


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding of x (..., frames, head_dim) (Su et al. 2021, arXiv 2104.09864).

    Neighbouring channels are a pair, turned by frame * frequency; a last odd channel stays. The
    angles are float32 whatever x is: half precision does not hold the angle of frame 249.
    """
    frequencies = rotary_frequencies(x.shape[-1], x.device)
    angles = torch.arange(x.shape[-2], device=x.device).float()[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    paired, last = x.split([2 * len(frequencies), x.shape[-1] % 2], dim=-1)
    a, b = paired.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    return torch.cat([turned.to(x.dtype), last], dim=-1)


class GatedAttention(nn.Module):
    """RMSNorm, rotary self-attention without mask, a sigmoid gate for each head, projection."""

    def __init__(self, model: str, dim: int, n_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.head_dim = head_size(model, dim, n_heads)
        self.dropout = dropout
        self.norm = RMSNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_gates = nn.Linear(dim, n_heads)
        self.to_out = nn.Sequential(nn.Linear(dim, dim, bias=False), nn.Dropout(dropout))

    def constants(self) -> dict[str, Tensor]:
        """The rotary frequencies, under the name that published files give them."""
        return {"pos_encoding.freqs": rotary_frequencies(self.head_dim)}

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> the same."""
        x = self.norm(x)
        q, k, v = split_heads(self.to_qkv(x), self.head_dim)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(rotate(q), rotate(k), v, dropout_p=dropout)
        gates = self.to_gates(x).sigmoid()
        return self.to_out((out.transpose(1, 2) * gates[..., None]).flatten(2))


def split_heads(qkv: Tensor, head_dim: int) -> tuple[Tensor, ...]:
    """(batch, frames, 3 dim), q before k before v -> three of (batch, heads, frames, head_dim)."""
    return qkv.unflatten(2, (3, -1, head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
