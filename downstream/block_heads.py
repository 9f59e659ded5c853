"""Heads on what the blocks of a backbone emit: a learned convex sum, then prototypes.

The sum is SUPERB's (Yang et al., Interspeech 2021) with ELMo's softmax weights; prototypes compared
by cosine are those of prototypical probing (Chen et al. 2019 for images, Rauch et al. 2025 for
audio), pooled smoothly instead of by their maximum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from downstream.probe import Heads, LabelledFrames, Standard

_STATISTICS_PIECES = 200
_SHARPNESS = 10.0  # of cosines, at the start
_TINY = 1e-5


@dataclass(frozen=True)
class Layout:
    """How the columns of frames are made up: groups of (blocks, width), one after the other.

    Blocks of one group are summed; the sums of groups stand side by side. So a transformer's
    blocks, all of one width, become one sum, and those of a MobileNet one sum for each width.
    """

    groups: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, widths: Sequence[int], apart: Sequence[int] = ()) -> Layout:
        """Neighbouring blocks of one width are a group, and each of `apart` is one by itself."""
        groups = [(len(list(same)), width) for width, same in groupby(widths)]
        return cls((*groups, *((1, width) for width in apart)))

    @property
    def n_blocks(self) -> int:
        """Blocks in all."""
        return sum(n for n, _ in self.groups)

    @property
    def in_dim(self) -> int:
        """Columns of frames."""
        return sum(n * width for n, width in self.groups)

    @property
    def out_dim(self) -> int:
        """Columns of the sums."""
        return sum(width for _, width in self.groups)


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation (dim,) of frames, and how often classes (classes,) are active."""

    mean: Tensor
    std: Tensor
    prior: Tensor

    @classmethod
    def of(cls, data: LabelledFrames, generator: torch.Generator) -> Statistics:
        """Those of an epoch's crops, or of the first 200 of them."""
        sums: list[tuple[Tensor, Tensor, Tensor]] = []
        buffer, n_rows = data.buffer(1), 0
        for crop in data.crops(generator)[:_STATISTICS_PIECES]:
            x, y = data.gather([crop], buffer)
            squares = torch.linalg.vector_norm(x, dim=0, dtype=torch.float64) ** 2
            sums.append((x.sum(dim=0, dtype=torch.float64), squares, y.sum(dim=0)))
            n_rows += len(x)
        total, squares, n_active = (
            torch.stack(column).sum(dim=0) for column in zip(*sums, strict=True)
        )
        mean = total / n_rows
        std = (squares / n_rows - mean**2).clamp(min=0).sqrt()
        return cls(mean.float(), std.float() + _TINY, (n_active + 1) / (n_rows + 2))


class _Sum(torch.autograd.Function):
    """Shares (heads, blocks), frames (rows, blocks, width) -> sums (rows, heads, width).

    Frames are read once forth and once back, and nothing of their size is written: for stacks of
    a transformer's blocks that is most of the time. Always in fp32: a cast would be one pass more.
    """

    @staticmethod
    def forward(ctx: Any, shares: Tensor, frames: Tensor) -> Tensor:
        ctx.save_for_backward(frames)
        with torch.autocast(frames.device.type, enabled=False):
            return torch.bmm(shares.expand(len(frames), *shares.shape), frames)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (frames,) = ctx.saved_tensors
        return torch.bmm(gradients[0], frames.transpose(1, 2)).sum(dim=0), None


class _Cosines(torch.autograd.Function):
    """x (rows, heads, dim), y (heads, k, dim) -> cosines times lengths of y (rows, heads, k).

    So y that are unit vectors times a sharpness give sharpened cosines in one product.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        inverse = 1 / torch.linalg.vector_norm(x, dim=2, keepdim=True).clamp(min=_TINY)
        x, y = x.to(dtype), y.to(dtype)
        cosines = torch.stack([x[:, i] @ y[i].T for i in range(len(y))], dim=1) * inverse
        ctx.save_for_backward(x, y, inverse, cosines)
        return cosines

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, y, inverse, cosines = ctx.saved_tensors
        # a cosine does not grow along x: what the products say of that direction is taken out
        along = torch.linalg.vecdot(gradients[0], cosines).unsqueeze(2) * inverse**2
        gradient = (gradients[0] * inverse).to(x.dtype)
        to_x, to_y = x * -along, torch.empty_like(y)
        for i in range(len(y)):
            _add_product(to_x[:, i], gradient[:, i], y[i])
            torch.mm(gradient[:, i].T, x[:, i], out=to_y[i])
        return to_x, to_y.to(to_x.dtype)


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    if out.dtype == a.dtype:
        out.addmm_(a, b)
    else:
        out += a @ b


class BlockHeads(Heads):
    """Standardised blocks, summed by learned shares; then prototypes, or a linear map.

    n_prototypes: of each class. Its logit is log mean exp over them of sharpness * cosine, plus a
    bias. None: a linear map instead.
    """

    def __init__(
        self,
        layout: Layout,
        statistics: Statistics,
        n_heads: int,
        n_prototypes: int | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.layout, self.n_prototypes = layout, n_prototypes
        self.standard = Standard(statistics.mean, 1 / statistics.std)
        n_classes, dim = len(statistics.prior), layout.out_dim
        start = {"shares": torch.zeros(layout.n_blocks), "biases": statistics.prior.logit()}
        if n_prototypes is None:
            start["weights"] = torch.zeros(n_classes, dim)
        else:
            start["weights"] = torch.randn(n_classes * n_prototypes, dim, generator=generator)
            start["weights"] /= math.sqrt(dim)
            start["sharpness"] = torch.full((n_classes,), math.log(_SHARPNESS))
        self.names = tuple(start)
        for name, value in start.items():
            setattr(self, name, nn.ParameterList(value.clone() for _ in range(n_heads)))
        self._group()

    def _group(self) -> None:
        lists = [getattr(self, name) for name in self.names]
        self.groups = [list(group) for group in zip(*lists, strict=True)]

    def keep(self, state: Sequence[Tensor]) -> None:
        """Leave one head only, with these values of its parameters, ordered as in `groups`."""
        for name, value in zip(self.names, state, strict=True):
            setattr(self, name, nn.ParameterList([nn.Parameter(value.clone())]))
        self._group()

    def forward(self, frames: Tensor) -> Tensor:
        """Standardised frames (rows, dim) -> logits (rows, heads, classes)."""
        sums, weights = self.sums(frames), torch.stack(list(self.weights))
        biases = torch.stack(list(self.biases))
        if self.n_prototypes is None:
            return torch.einsum("rhw,hkw->rhk", sums, weights) + biases
        sharpness = torch.stack(list(self.sharpness)).exp()
        lengths = sharpness.repeat_interleave(self.n_prototypes, dim=1).unsqueeze(2)
        sharp = _Cosines.apply(sums, nn.functional.normalize(weights, dim=2) * lengths)
        pooled = sharp.unflatten(2, (-1, self.n_prototypes)).logsumexp(dim=3)
        return pooled + (biases - math.log(self.n_prototypes))

    def convex(self) -> Tensor:
        """The share of each block (heads, blocks): not negative, 1 together."""
        return torch.stack(list(self.shares)).softmax(dim=1)

    def sums(self, x: Tensor) -> Tensor:
        """Standardised frames (rows, dim) -> sums of blocks (rows, heads, sum of widths)."""
        shares = self.convex()
        parts, block, column = [], 0, 0
        for n, width in self.layout.groups:
            stacked = x[:, column : column + n * width].unflatten(1, (n, width))
            parts.append(_Sum.apply(shares[:, block : block + n], stacked))
            block, column = block + n, column + n * width
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
