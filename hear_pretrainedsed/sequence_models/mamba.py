"""`mamba`: Mamba2 in plain PyTorch (Dao and Gu 2024, arXiv 2405.21060; EfficientSED)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hear_pretrainedsed.sequence_models.base import SequenceModel, head_size

N_LAYERS, STATE, KERNEL, EXPANSION = 2, 64, 3, 2
CHUNK = 64


def state_space_scan(
    x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor, chunk: int = CHUNK
) -> Tensor:
    """S_t = exp(rate step_t) S_(t-1) + step_t x_t (outer) b_t; y_t = S_t c_t; S_(-1) = 0.

    Within a chunk every output sees every input through a matrix of decays; between chunks only
    the state passes. Memory grows linearly with the number of frames.

    Args:
        x: (batch, frames, heads, size).
        step: (batch, frames, heads), positive.
        rate: (heads,), negative.
        b, c: (batch, frames, state), shared by the heads.
        chunk: frames in a chunk.

    Returns:
        y (batch, frames, heads, size).
    """
    n_frames = x.shape[1]
    extra = -n_frames % chunk  # a step of zero neither decays nor adds
    x = F.pad(x * step[..., None], (0, 0, 0, 0, 0, extra))
    decay, b, c = (F.pad(v, (0, 0, 0, extra)) for v in (step * rate, b, c))
    x, decay, b, c = (v.unflatten(1, (-1, chunk)) for v in (x, decay, b, c))
    x = x.transpose(2, 3)  # (batch, chunks, heads, chunk, size)
    decay = decay.transpose(2, 3)  # (batch, chunks, heads, chunk)
    total = decay.cumsum(dim=3)
    between = sums_between(decay)
    y = ((c @ b.mT)[:, :, None] * between.exp()) @ x

    left = between[..., -1, :].exp()[..., None]
    added = (x * left).mT @ b[:, :, None]  # (batch, chunks, heads, size, state)
    kept = total[..., -1].exp()[..., None, None]
    states = [torch.zeros_like(added[:, 0])]
    for i in range(added.shape[1] - 1):
        states.append(torch.addcmul(added[:, i], kept[:, i], states[-1]))
    y = y + (c[:, :, None] @ torch.stack(states, dim=1).mT) * total.exp()[..., None]
    return y.transpose(2, 3).flatten(1, 2)[:, :n_frames]


def sums_between(decay: Tensor) -> Tensor:
    """Sums over j < k <= i of decay (..., chunk), as (..., i, j); -inf where j > i.

    Each is summed by itself: a difference of two long sums would lose the digits of short ones.
    """
    n = decay.shape[-1]
    later = torch.ones(n, n, dtype=torch.bool, device=decay.device).tril(-1)
    sums = (decay[..., :, None] * later).cumsum(dim=-2)
    return sums.masked_fill(later.mT, -math.inf)


class Mamba2(nn.Module):
    """State-space mixer with scalar decay for each head and a SiLU gate; one group, no norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = EXPANSION * dim
        self.size = 32 if dim == 128 else 64
        if self.inner < self.size or self.inner % self.size:
            raise ValueError(
                f"width {dim} of mamba-{dim} does not make whole heads of {self.size} channels: "
                f"take a multiple of {self.size // EXPANSION}"
            )
        n_heads = self.inner // self.size
        mixed = self.inner + 2 * STATE
        self.in_proj = nn.Linear(dim, self.inner + mixed + n_heads, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, KERNEL, groups=mixed, padding=KERNEL - 1)
        self.out_proj = nn.Linear(self.inner, dim, bias=False)
        # steps log-uniform in 1e-3..0.1, through the inverse of softplus; rates uniform in 1..16
        step = torch.empty(n_heads).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(n_heads))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> the same."""
        n_frames, exact = x.shape[1], torch.promote_types(x.dtype, torch.float32)
        z, mixed, dt = self.in_proj(x).split(
            [self.inner, self.conv1d.in_channels, len(self.D)], dim=2
        )
        # the right surplus of the padding is cut: each output sees the present and the past
        mixed = F.silu(self.conv1d(mixed.mT)[..., :n_frames].mT)
        u, b, c = mixed.to(exact).split([self.inner, STATE, STATE], dim=2)
        u = u.unflatten(2, (-1, self.size))
        step = F.softplus(dt.to(exact) + self.dt_bias)
        y = state_space_scan(u, step, -self.A_log.to(exact).exp(), b, c)
        y = (y + self.D[:, None] * u).flatten(2).to(x.dtype)
        return self.out_proj(y * F.silu(z))

    def macs(self, x: Tensor) -> int:
        """Of the scan, in the single-chunk quadratic form that published counts use."""
        return len(x) * len(self.D) * x.shape[1] ** 2 * (STATE + self.size)


class MambaLayers(nn.Module):
    """x += norm(mixer(x)), `n_layers` times."""

    def __init__(self, dim: int, n_layers: int = N_LAYERS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(Mamba2(dim), nn.LayerNorm(dim)) for _ in range(n_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> the same."""
        for layer in self.layers:
            x = x + layer(x)
        return x


class Mamba(SequenceModel):
    """Linear projection, LayerNorm and Mamba2 layers, two unless told."""

    def __init__(self, inputs: int, dim: int, n_layers: int = N_LAYERS) -> None:
        head_size("mamba", dim, 1)
        super().__init__(nn.Linear(inputs, dim), nn.LayerNorm(dim), MambaLayers(dim, n_layers))
        self.out_dim, self.n_layers = dim, n_layers
