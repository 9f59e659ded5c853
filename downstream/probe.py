"""Heads on frozen frames: what they learn from, how several are trained side by side.

All heads of a run see the same batches, so that frames are read once for a whole grid of learning
rates, and linear heads share one product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from downstream.embeddings import GRID
from downstream.targets import frame_targets
from downstream.tasks.task import Clip
from hear_pretrainedsed.training.schedule import warmup_cosine

PIECE_FRAMES = GRID.window_frames
_ROWS_AT_ONCE = 4096  # frames scored at a time
_CACHED = 1 << 17  # values, half a megabyte

Crop = tuple[int, int]  # number of a clip, its first frame
Arrays = Sequence[np.ndarray]  # of one clip


class Source(Protocol):
    """What gives the frames (frames, dim) of a clip: `embeddings.Frames`, or a part of it."""

    dim: int

    def clip(self, file: str) -> np.ndarray:
        """Frames of one clip."""
        ...


def arrays_of(sources: Sequence[Source], clip: Clip) -> Arrays:
    """A clip's frames from every source."""
    return [source.clip(clip.file) for source in sources]


@dataclass(frozen=True)
class Standard:
    """What makes columns of frames have mean 0 and deviation 1: (frame - mean) * scale."""

    mean: Tensor
    scale: Tensor

    def apply(self, rows: Tensor) -> None:
        """Standardise rows (rows, dim) in place."""
        rows.sub_(self.mean).mul_(self.scale)


def side_by_side(arrays: Arrays, rows: slice, out: Tensor, standard: Standard | None = None) -> int:
    """Write some rows of arrays into the first rows of `out`, as float32; how many there are.

    They are written and standardised few at a time, while they are in the processor's cache.
    """
    parts = [torch.from_numpy(array[rows]) for array in arrays]
    n_rows, at_once = len(parts[0]), max(1, _CACHED // out.shape[1])
    for start in range(0, n_rows, at_once):
        some, column = out[start : min(start + at_once, n_rows)], 0
        for part in parts:
            some[:, column : column + part.shape[1]] = part[start : start + at_once]
            column += part.shape[1]
        if standard is not None:
            standard.apply(some)
    return n_rows


@dataclass(frozen=True)
class LabelledFrames:
    """Frames of clips and their targets (frames, classes).

    The frames of a clip are arrays (frames, dim), which may lie on disk, to be put side by side.
    """

    frames: Sequence[Arrays]
    targets: Sequence[np.ndarray]

    @classmethod
    def of(
        cls, sources: Sequence[Source], clips: Sequence[Clip], labels: Sequence[str]
    ) -> LabelledFrames:
        """Those of some clips of a task."""
        arrays = [arrays_of(sources, clip) for clip in clips]
        targets = [
            frame_targets(clip, labels, len(x[0])) for clip, x in zip(clips, arrays, strict=True)
        ]
        return cls(arrays, targets)

    @property
    def dim(self) -> int:
        """Width of a frame."""
        return sum(part.shape[1] for part in self.frames[0])

    @property
    def n_pieces(self) -> int:
        """How many crops an epoch has: as many as whole 10 s pieces, one a clip at least."""
        return sum(map(_n_pieces, self.targets))

    def crops(self, generator: torch.Generator) -> list[Crop]:
        """An epoch: of each clip as many crops as it has whole pieces, anywhere, shuffled."""
        clips = [i for i, x in enumerate(self.targets) for _ in range(_n_pieces(x))]
        places = torch.rand(len(clips), generator=generator).tolist()
        crops = [
            (i, int(place * (max(0, len(self.targets[i]) - PIECE_FRAMES) + 1)))
            for i, place in zip(clips, places, strict=True)
        ]
        return [crops[i] for i in torch.randperm(len(crops), generator=generator).tolist()]

    def buffer(self, n_pieces: int) -> tuple[Tensor, Tensor]:
        """Room for frames and targets of as many crops; memory that is new costs more to fill."""
        n_rows = n_pieces * PIECE_FRAMES
        return torch.empty(n_rows, self.dim), torch.empty(n_rows, self.targets[0].shape[1])

    def gather(
        self,
        crops: Sequence[Crop],
        buffer: tuple[Tensor, Tensor],
        standard: Standard | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Frames and targets of crops one after the other, (rows, dim) and (rows, classes).

        They lie in `buffer`, whose last content is lost.
        """
        x, y = buffer
        start = 0
        for i, first in crops:
            rows = slice(first, first + PIECE_FRAMES)
            end = start + side_by_side(self.frames[i], rows, x[start:], standard)
            y[start:end] = torch.from_numpy(self.targets[i][rows])
            start = end
        return x[:start], y[:start]


def _n_pieces(targets: np.ndarray) -> int:
    return max(1, len(targets) // PIECE_FRAMES)


class Heads(nn.Module):
    """Several heads on the same frames; `groups` are the parameters of each.

    standard: what their frames are to be standardised by; it stays on the CPU, as `gather` does.
    """

    groups: list[list[nn.Parameter]]
    standard: Standard | None = None

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (rows, dim) -> logits (rows, heads, classes)."""
        raise NotImplementedError


class LinearHeads(Heads):
    """Linear heads, all at torch's usual random start, the same for each of them."""

    def __init__(self, n_heads: int, dim: int, n_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(dim)
        weight = torch.empty(dim, n_classes).uniform_(-bound, bound, generator=generator)
        bias = torch.empty(n_classes).uniform_(-bound, bound, generator=generator)
        self.weights = nn.ParameterList(weight.clone() for _ in range(n_heads))
        self.biases = nn.ParameterList(bias.clone() for _ in range(n_heads))
        self.groups = [list(pair) for pair in zip(self.weights, self.biases, strict=True)]

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (rows, dim) -> logits (rows, heads, classes), in one product."""
        weight, bias = torch.cat(list(self.weights), dim=1), torch.cat(list(self.biases))
        return torch.addmm(bias, frames, weight).unflatten(1, (len(self.groups), -1))


@dataclass(frozen=True)
class Run:
    """How heads are trained.

    lrs: the maximum lr of each. n_steps, n_warmup_steps: of the cosine. batch_pieces: 10 s pieces
    a step. weight_decay: AdamW's; None: Adam. bf16: products in that precision. check_steps: after
    how many steps `check` of `train` is called; None: never.
    """

    lrs: tuple[float, ...]
    n_steps: int
    n_warmup_steps: int
    batch_pieces: int
    weight_decay: float | None = None
    bf16: bool = False
    check_steps: int | None = None


def train(
    heads: Heads,
    data: LabelledFrames,
    run: Run,
    generator: torch.Generator,
    tell: Callable[[str], None],
    check: Callable[[int], None] | None = None,
) -> None:
    """Train heads, in place, on binary cross-entropy; each as if it were alone.

    `tell` is called with lines on the progress, `check` with the number of steps done.
    """
    optimizer = _optimizer(heads, run)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, warmup_cosine(run.n_warmup_steps, run.n_steps)
    )
    device = heads.groups[0][0].device
    batches = _batches(data, run.batch_pieces, generator)
    buffer = data.buffer(min(run.batch_pieces, data.n_pieces))
    for step in range(run.n_steps):
        x, y = (part.to(device) for part in data.gather(next(batches), buffer, heads.standard))
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=run.bf16):
            logits = heads(x)
        losses = bce(logits.float(), y)
        losses.sum().backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 9 or step + 1 == run.n_steps:
            tell(f"step {step + 1} of {run.n_steps}, loss {losses.min().item():.4f}")
        if check and run.check_steps and (step + 1) % run.check_steps == 0:
            check(step + 1)


def _optimizer(heads: Heads, run: Run) -> torch.optim.Optimizer:
    groups = [{"params": p, "lr": lr} for p, lr in zip(heads.groups, run.lrs, strict=True)]
    if run.weight_decay is None:
        return torch.optim.Adam(groups)
    return torch.optim.AdamW(groups, weight_decay=run.weight_decay)


def _batches(
    data: LabelledFrames, size: int, generator: torch.Generator
) -> Iterator[Sequence[Crop]]:
    """Batches of crops, epoch after epoch; an epoch's last one may be smaller."""
    while True:
        crops = data.crops(generator)
        yield from (crops[i : i + size] for i in range(0, len(crops), size))


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy (heads,) of logits (rows, heads, classes)."""
    wanted = targets[:, None].expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=(0, 2))


@torch.no_grad()
def logits_of(heads: Heads, arrays: Arrays) -> np.ndarray:
    """Logits (heads, frames, classes) of one clip, float32."""
    device = heads.groups[0][0].device
    n_frames, dim = len(arrays[0]), sum(part.shape[1] for part in arrays)
    buffer = torch.empty(min(n_frames, _ROWS_AT_ONCE), dim)
    parts = []
    for i in range(0, n_frames, _ROWS_AT_ONCE):
        n = side_by_side(arrays, slice(i, i + _ROWS_AT_ONCE), buffer, heads.standard)
        parts.append(heads(buffer[:n].to(device)).float())
    return torch.cat(parts).transpose(0, 1).cpu().numpy()
