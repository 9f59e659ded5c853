"""`hybrid`: attention and minimal GRUs side by side (EfficientSED, arXiv 2503.11373).

Minimal GRU: Feng et al. 2024 (arXiv 2410.01201).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hear_pretrainedsed.sequence_models.base import (
    RMSNorm,
    SequenceModel,
    Shape,
    head_size,
    split_heads,
)

N_LAYERS, N_HEADS = 2, 8


def linear_scan(keep: Tensor, add: Tensor) -> Tensor:
    """y_t = keep_t y_(t-1) + add_t with y_(-1) = 0, along axis 1 of (batch, frames, dim).

    About sqrt(frames) stretches are run side by side, then joined: twice sqrt(frames) steps in
    place of `frames`. Nothing is divided and no logarithm taken, so that the float32 result is as
    good after hours as after a second.
    """
    n_frames = keep.shape[1]
    length = math.isqrt(n_frames - 1) + 1
    extra = -n_frames % length
    keep, add = (F.pad(x, (0, 0, 0, extra)).unflatten(1, (-1, length)) for x in (keep, add))
    state, factor = add[:, :, 0], keep[:, :, 0]
    states, factors = [state], [factor]
    for i in range(1, length):
        state = torch.addcmul(add[:, :, i], keep[:, :, i], state)
        factor = factor * keep[:, :, i]
        states.append(state)
        factors.append(factor)
    before = [torch.zeros_like(state[:, 0])]
    for i in range(state.shape[1] - 1):
        before.append(torch.addcmul(state[:, i], factor[:, i], before[-1]))
    start = torch.stack(before, dim=1)[:, :, None]
    y = torch.addcmul(torch.stack(states, dim=2), torch.stack(factors, dim=2), start)
    return y.flatten(1, 2)[:, :n_frames]


class MinGru(nn.Module):
    """The one linear layer of a minimal GRU: dim -> candidates and gates (batch, frames, 2 dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_hidden_and_gate = nn.Linear(dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, dim) -> candidate and gate before their non-linearities."""
        return self.to_hidden_and_gate(x).chunk(2, dim=2)


class BiMinGru(nn.Module):
    """A minimal GRU forward, another on the reversed frames, and a projection of both.

    z = sigmoid(gate); y_t = (1 - z_t) y_(t-1) + z_t g(candidate_t).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.forward_minGRU = MinGru(dim)
        self.backward_minGRU = MinGru(dim)
        self.to_out = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> the same."""
        ahead = self.forward_minGRU(x)
        back = (y.flip(1) for y in self.backward_minGRU(x))
        hidden, gate = (
            torch.cat(pair, dim=2).to(torch.promote_types(x.dtype, torch.float32))
            for pair in zip(ahead, back, strict=True)
        )
        # 1 - sigmoid(gate) would lose the digits of a gate near one
        y = linear_scan(torch.sigmoid(-gate), gate.sigmoid() * candidate(hidden))
        forward, backward = y.to(x.dtype).chunk(2, dim=2)
        return self.to_out(torch.cat([forward, backward.flip(1)], dim=2))


def candidate(x: Tensor) -> Tensor:
    """g: x + 0.5 where x >= 0, else sigmoid(x); positive, continuous."""
    return torch.where(x >= 0, x + 0.5, x.sigmoid())


class Mix(nn.Module):
    """Attention and minimal GRUs on the same input; the mean of both, normalised head by head.

    The number of heads shows in the size of the norms, and a file's size is taken: 8 heads at
    width 104 have norms of 13, files with norms of 26 have 4 heads.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        size = head_size("hybrid", dim, N_HEADS)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.rnn = BiMinGru(dim)
        self.rnn_out_norm = RMSNorm(size)
        self.attn_out_norm = RMSNorm(size)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.register_load_state_dict_pre_hook(take_head_size)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> the same."""
        size = self.attn_out_norm.gamma.numel()
        attention = F.scaled_dot_product_attention(*split_heads(self.to_qkv(x), size))
        attention = self.attn_out_norm(attention.transpose(1, 2))
        recurrent = self.rnn_out_norm(self.rnn(x).unflatten(2, (-1, size)))
        return self.to_out((0.5 * attention + 0.5 * recurrent).flatten(2))

    def fits(self, sizes: set[Shape]) -> bool:
        """Whether shapes given for the two norms agree and make whole heads."""
        size = next(iter(sizes)) if len(sizes) == 1 else ()
        return len(size) == 1 and size[0] > 0 and self.to_out.in_features % size[0] == 0


NORMS = ("rnn_out_norm", "attn_out_norm")


def take_head_size(mix: Mix, state: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """Before a state is loaded: give the norms of `mix` the size they have there."""
    gammas = [state.get(f"{prefix}{norm}.gamma") for norm in NORMS]
    if all(isinstance(x, Tensor) for x in gammas) and mix.fits({tuple(x.shape) for x in gammas}):
        for norm, gamma in zip(NORMS, gammas, strict=True):
            old = getattr(mix, norm).gamma
            if old.shape != gamma.shape:
                getattr(mix, norm).gamma = nn.Parameter(old.new_ones(gamma.shape))


class HybridLayers(nn.Module):
    """x += mix(norm(x)); x += feed_forward(norm(x)), twice; RMSNorm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    RMSNorm(dim),
                    Mix(dim),
                    RMSNorm(dim),
                    nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)),
                ]
            )
            for _ in range(N_LAYERS)
        )
        self.norm = RMSNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> the same."""
        for mix_norm, mix, norm, feed_forward in self.layers:
            x = x + mix(mix_norm(x))
            x = x + feed_forward(norm(x))
        return self.norm(x)


class Hybrid(SequenceModel):
    """Linear projection and two hybrid layers of 8 heads, at every width that divides by 8."""

    def __init__(self, inputs: int, dim: int) -> None:
        layers = HybridLayers(dim)
        super().__init__(nn.Linear(inputs, dim), layers)
        self.out_dim = dim

    def file_shapes(self, given: Mapping[str, Shape]) -> dict[str, Shape]:
        """The norms of the heads may have any size that makes whole heads, one for all of them."""
        shapes = super().file_shapes(given)
        names = [name for name in shapes if name.split(".")[-2] in NORMS]
        sizes = {given[name] for name in names if name in given}
        if self[1].layers[0][1].fits(sizes):
            shapes |= dict.fromkeys(names, next(iter(sizes)))
        return shapes
