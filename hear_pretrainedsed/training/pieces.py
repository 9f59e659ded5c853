"""Recordings of any length -> 10 s pieces with targets, in an order that is known for every step.

An epoch has of each recording as many pieces as it has whole ones, anywhere in it, on a frame.
Their audio is read by seeking. Recordings shorter than 10 s are followed by silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hear_pretrainedsed.audio import read_part
from hear_pretrainedsed.frames import FrameGrid
from hear_pretrainedsed.training.batch import Batch
from hear_pretrainedsed.training.chance import generator_for
from hear_pretrainedsed.training.material import OwnSteps

GRID = FrameGrid()

Crop = tuple[int, int]  # number of a recording, the piece's first frame in it
Run = tuple[int, int, int]  # number of a recording, first frame and end of an event in it


@dataclass(frozen=True)
class Recording:
    """A recording to learn from: `targets` (frames, classes), uint8, are of all its frames."""

    file: str
    path: Path
    targets: np.ndarray

    @property
    def n_pieces(self) -> int:
        """Whole pieces in it, at least one."""
        return max(1, len(self.targets) // GRID.window_frames)


@dataclass(frozen=True)
class Pieces(Dataset):
    """Audio (160000,) and targets (250, classes), float32, and the file's name, by `Crop`."""

    recordings: Sequence[Recording]

    def __getitem__(self, crop: Crop) -> tuple[Tensor, Tensor, str]:
        number, first = crop
        recording = self.recordings[number]
        audio = torch.zeros(GRID.window_samples)
        part = read_part(recording.path, first * GRID.hop_samples, GRID.window_samples)
        audio[: len(part)] = part
        rows = recording.targets[first : first + GRID.window_frames]
        targets = torch.zeros(GRID.window_frames, rows.shape[1])
        targets[: len(rows)] = torch.from_numpy(rows)
        return audio, targets, recording.file

    def batch(self, rows: Sequence[tuple[Tensor, Tensor, str]]) -> Batch:
        """Pieces as a batch, which may be empty."""
        if not rows:
            n_classes = self.recordings[0].targets.shape[1]
            shape = (0, GRID.window_frames, n_classes)
            return Batch(torch.zeros(0, GRID.window_samples), torch.zeros(shape))
        audio, targets, files = zip(*rows, strict=True)
        return Batch(torch.stack(audio), torch.stack(targets), files=files)


@dataclass(frozen=True)
class Order:
    """Which pieces each step sees: a function of seed and step (a `Material`).

    balanced: the share of an epoch's pieces that are drawn by class: a class, each as likely as any
    other; one of its events; a place in it, around which the piece lies anywhere. The rest is drawn
    from all there is. None: no piece is drawn by class. Rare classes are thus *seen* more often; a
    weight on their loss instead would scale the few steps that see them at all.
    """

    recordings: Sequence[Recording]
    batch_pieces: int
    seed: int
    balanced: float | None = None
    _made: dict[int, list[Crop]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.recordings:
            raise ValueError("no recording to train on")
        if self.balanced is not None and not 0 <= self.balanced <= 1:
            raise ValueError(f"balanced is {self.balanced}; it is a share, from 0 to 1")

    @cached_property
    def n_pieces(self) -> int:
        """Pieces in an epoch."""
        return sum(recording.n_pieces for recording in self.recordings)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch, of which the last may have fewer pieces."""
        return -(-self.n_pieces // self.batch_pieces)

    def step(self, step: int) -> list[Crop]:
        """The pieces of a step, counted from 0 on over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        first = place * self.batch_pieces
        if epoch not in self._made:
            self._made.clear()
            self._made[epoch] = self._epoch(epoch)
        return self._made[epoch][first : first + self.batch_pieces]

    def loader(
        self, first_step: int, n_steps: int, *, rank: int = 0, world: int = 1, n_workers: int = 0
    ) -> DataLoader:
        """Batches of a process's rows from `first_step` on to `n_steps`."""
        pieces = Pieces(self.recordings)
        return DataLoader(
            pieces,
            batch_sampler=OwnSteps(self, first_step, n_steps, rank, world),
            collate_fn=pieces.batch,
            num_workers=n_workers,
            persistent_workers=n_workers > 0,
        )

    def name(self, item: Crop) -> str:
        """A recording's file and the piece's place in it."""
        number, first = item
        return f"{self.recordings[number].file} from {first * GRID.hop_s:.2f} s"

    def _epoch(self, number: int) -> list[Crop]:
        generator = generator_for(self.seed, "pieces", number)
        crops = self._anywhere(generator)
        crops = [crops[i] for i in torch.randperm(len(crops), generator=generator).tolist()]
        n_drawn = round((self.balanced or 0) * len(crops)) if self.events else 0
        crops[:n_drawn] = self._by_class(n_drawn, generator)
        return [crops[i] for i in torch.randperm(len(crops), generator=generator).tolist()]

    def _anywhere(self, generator: torch.Generator) -> list[Crop]:
        """Of each recording as many pieces as it has whole ones."""
        numbers = [i for i, one in enumerate(self.recordings) for _ in range(one.n_pieces)]
        places = torch.rand(len(numbers), generator=generator).tolist()
        return [
            (i, int(place * (self._last_start(i) + 1)))
            for i, place in zip(numbers, places, strict=True)
        ]

    def _by_class(self, n: int, generator: torch.Generator) -> list[Crop]:
        """`n` pieces, each around a place in an event of a class."""
        draws = torch.rand(n, 4, generator=generator, dtype=torch.float64).tolist()
        crops = []
        for which_class, which_event, inside, before in draws:
            events = self.events[int(which_class * len(self.events))]
            number, first, end = events[int(which_event * len(events))]
            frame = first + int(inside * (end - first))
            start = frame - int(before * GRID.window_frames)
            crops.append((number, min(max(0, start), self._last_start(number))))
        return crops

    def _last_start(self, number: int) -> int:
        return max(0, len(self.recordings[number].targets) - GRID.window_frames)

    @cached_property
    def events(self) -> list[list[Run]]:
        """Events of each class that has any: runs of its frames."""
        by_class: dict[int, list[Run]] = {}
        for number, recording in enumerate(self.recordings):
            edges = np.pad(recording.targets.T > 0, ((0, 0), (1, 1))).astype(np.int8)
            steps = np.diff(edges, axis=1)
            columns, first = np.nonzero(steps == 1)
            end = np.nonzero(steps == -1)[1]  # of the same columns, in the same order
            for column, a, b in zip(*(x.tolist() for x in (columns, first, end)), strict=True):
                by_class.setdefault(column, []).append((number, a, b))
        return [by_class[column] for column in sorted(by_class)]
