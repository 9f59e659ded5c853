"""`tcn`: causal dilated convolutions (Bai et al. 2018, arXiv 1803.01271; EfficientSED)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hear_pretrainedsed.sequence_models.base import SequenceModel, head_size

N_LAYERS, KERNEL, DILATIONS, DROPOUT = 2, 3, (1, 2, 4, 8, 16), 0.2


class CausalConv(nn.Module):
    """Weight-normalised convolution that sees the present and the past.

    weight = g v / ||v||, with one norm for each output channel.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        bound = 1 / math.sqrt(channels * KERNEL)
        self.weight_v = nn.Parameter(
            torch.empty(channels, channels, KERNEL).uniform_(-bound, bound)
        )
        self.weight_g = nn.Parameter(self.weight_v.detach().norm(dim=(1, 2), keepdim=True))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    @property
    def context(self) -> int:
        """Frames of the past that an output depends on."""
        return (KERNEL - 1) * self.dilation

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, frames) -> the same."""
        norm = self.weight_v.norm(dim=(1, 2), keepdim=True)
        weight = self.weight_v * (self.weight_g / norm)
        return F.conv1d(F.pad(x, (self.context, 0)), weight, self.bias, dilation=self.dilation)

    def macs(self, x: Tensor) -> int:
        """Of the published form: padded at both ends, the surplus on the right cut off."""
        return len(x) * self.weight_v.numel() * (x.shape[2] + self.context)


class TcnBlock(nn.Module):
    """Two convolutions with ReLU, and ReLU over their sum with the input."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = CausalConv(channels, dilation)
        self.conv2 = CausalConv(channels, dilation)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, frames) -> the same."""
        y = self.dropout(self.conv1(x).relu())
        y = self.dropout(self.conv2(y).relu())
        return (x + y).relu()


class TcnNetwork(nn.Module):
    """Five blocks, each looking twice as far back as the one before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.network = nn.Sequential(*(TcnBlock(channels, dilation) for dilation in DILATIONS))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> the same."""
        return self.network(x.transpose(1, 2)).transpose(1, 2)


class TcnLayers(nn.Module):
    """x += network(x), twice."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TcnNetwork(dim) for _ in range(N_LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> the same."""
        for network in self.layers:
            x = x + network(x)
        return x


class Tcn(SequenceModel):
    """Linear projection and two causal networks."""

    # Published files list every convolution twice: by name, and by its place in the block.
    key_map = ((r"\.net\.0\.", ".conv1."), (r"\.net\.4\.", ".conv2."))

    def __init__(self, inputs: int, dim: int) -> None:
        head_size("tcn", dim, 1)
        super().__init__(nn.Linear(inputs, dim), TcnLayers(dim))
        self.out_dim = dim

    def release_names(self, name: str) -> list[str]:
        """Both names of a convolution."""
        place = name.replace(".conv1.", ".net.0.").replace(".conv2.", ".net.4.")
        return [name] if place == name else [name, place]
