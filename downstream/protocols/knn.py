"""Mode `knn`: frames of train vote for the labels of their nearest neighbours in test; no training.

Cosine similarity, k = 20, a class's score is the share of neighbours that have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from downstream.embeddings import Frames
from downstream.targets import frame_targets
from downstream.tasks.task import Clip, Task

K = 20
_TEST_ROWS = 1024  # similarities held at a time: this many rows x ...
_TRAIN_ROWS = 16_384  # ... this many columns, 64 MB

Rows = Tensor | Sequence[np.ndarray]


def knn_scores(train: Rows, targets: Rows, test: Rows, k: int = K, device: str = "cpu") -> Tensor:
    """Share of the `k` nearest train frames with each class: (test frames, classes) in 0..1.

    train (frames, dim), targets (frames, classes) in 0..1, test (test frames, dim): a tensor each,
    or the arrays of clips one after the other, which may lie on disk: what is held in memory at a
    time does not grow with their number, but for what is returned and `k` indices a test frame.

    Nearest is by cosine, exactly, in float32; of equal similarities any may be taken. With fewer
    than `k` train frames all of them vote.

    Raises `ValueError` for k below 1, no train frames, or dims that don't fit.
    """
    train, targets, test = _Table.of(train), _Table.of(targets), _Table.of(test)
    _check(train, targets, test, k)
    k = min(k, train.n_rows)
    best = torch.full((test.n_rows, k), -torch.inf)
    index = torch.zeros((test.n_rows, k), dtype=torch.int64)
    for first in range(0, train.n_rows, _TRAIN_ROWS):  # outer: train is read once
        columns = _unit(train.rows(first, first + _TRAIN_ROWS).to(device)).T.contiguous()
        for row in range(0, test.n_rows, _TEST_ROWS):
            part = slice(row, row + _TEST_ROWS)
            similarity = _unit(test.rows(row, row + _TEST_ROWS).to(device)) @ columns
            near, where = similarity.topk(min(k, similarity.shape[1]), dim=1)
            near = torch.cat((best[part], near.cpu()), dim=1)
            where = torch.cat((index[part], where.cpu() + first), dim=1)
            best[part], order = near.topk(k, dim=1)
            index[part] = where.gather(1, order)
    return _vote(targets, index)


def _check(train: _Table, targets: _Table, test: _Table, k: int) -> None:
    if k < 1:
        raise ValueError(f"k is a whole number from 1, got {k}")
    if not train.n_rows:
        raise ValueError("no train frames: nothing can be near")
    if train.n_rows != targets.n_rows:
        raise ValueError(f"{train.n_rows} train frames, but targets of {targets.n_rows}")
    if test.n_rows and train.width != test.width:
        raise ValueError(f"train frames have {train.width} dims, test frames {test.width}")


@dataclass(frozen=True)
class _Table:
    """Rows of several arrays as if they were one."""

    parts: Sequence[Tensor | np.ndarray]
    starts: np.ndarray  # row number of each part's first, and the number of all

    @classmethod
    def of(cls, rows: Rows) -> _Table:
        parts = [rows] if isinstance(rows, Tensor) else list(rows)
        return cls(parts, np.cumsum([0, *map(len, parts)]))

    @property
    def n_rows(self) -> int:
        return int(self.starts[-1])

    @property
    def width(self) -> int:
        return self.parts[0].shape[1] if self.parts else 0

    def rows(self, first: int, end: int) -> Tensor:
        """Rows [first, end), or those that there are, float32."""
        pieces = []
        at = int(np.searchsorted(self.starts, first, side="right")) - 1
        while at < len(self.parts) and self.starts[at] < end:
            start = self.starts[at]
            piece = self.parts[at][max(0, first - start) : end - start]
            pieces.append(torch.as_tensor(piece).float())
            at += 1
        return torch.cat(pieces)


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1, eps=1e-12)


def _vote(targets: _Table, index: Tensor) -> Tensor:
    """Mean targets of neighbours: targets (frames, classes), index (test frames, k)."""
    every = torch.cat([torch.as_tensor(part) for part in targets.parts])
    out = torch.empty(len(index), targets.width)
    for row in range(0, len(index), _TEST_ROWS):
        part = slice(row, row + _TEST_ROWS)
        out[part] = every[index[part]].float().mean(dim=1)
    return out


def clip_scores(
    task: Task, frames: Frames, train: Sequence[Clip], test: Sequence[Clip], device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Votes of some clips' frames on others, {file: (frames, classes)}."""
    known = [frames.clip(clip.file) for clip in train]
    wanted = [frames.clip(clip.file) for clip in test]
    targets = [
        frame_targets(clip, task.labels, len(x)) for clip, x in zip(train, known, strict=True)
    ]
    votes = knn_scores(known, targets, wanted, device=device).numpy()
    ends = np.cumsum([len(x) for x in wanted])[:-1]
    return {clip.file: part for clip, part in zip(test, np.split(votes, ends), strict=True)}
