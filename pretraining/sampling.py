"""Which clips each step sees: sampling weights and an order that is known for every step.

Weights need labels alone, no audio. Two million clips take seconds and 1.2 GiB of memory, libraries
and labels included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from hear_pretrainedsed.registry import unknown
from hear_pretrainedsed.training.batch import Batch
from hear_pretrainedsed.training.chance import generator_for, seed_of
from hear_pretrainedsed.training.material import OwnSteps, own_rows
from pretraining.clip_index import ClipIndex
from pretraining.clips import MAX_BROKEN, Clips, Draw, Row, broken_line
from pretraining.corpus import CorpusError
from pretraining.encoding import active_frames

_FEWEST = 1000  # clips of which the share of broken ones says something, or all there are


def strong_weights(index: ClipIndex, n_classes: int, offset: float = 30) -> np.ndarray:
    """Weights (clips,) for AudioSet Strong: rare classes by their active frames.

    The sum over classes of count * 1000 / (offset + total count of the class), count being active
    frames; 0 for a clip without events (PretrainedSED, EfficientSED).
    """
    counts = active_frames(index, n_classes)
    totals = np.bincount(counts.label, weights=counts.amount, minlength=n_classes)
    parts = counts.amount * 1000 / (offset + totals)[counts.label]
    return np.bincount(counts.clip, weights=parts, minlength=len(index)).astype(np.float64)


def psla_weights(index: ClipIndex, n_classes: int) -> np.ndarray:
    """Weights (clips,) by clip labels: the sum over them of 1000 / (clips with it + 0.01)."""
    return _weak_weights(index, n_classes, 0.01)


def weak_weights(index: ClipIndex, n_classes: int) -> np.ndarray:
    """Weights (clips,) by clip labels: the sum over them of 1000 / (100 + clips with it).

    EfficientSED's, for the weak half of online distillation.
    """
    return _weak_weights(index, n_classes, 100)


def _weak_weights(index: ClipIndex, n_classes: int, offset: float) -> np.ndarray:
    counts = np.bincount(index.weak_class, minlength=n_classes)
    parts = (1000 / (offset + counts))[index.weak_class]
    return np.bincount(index.weak_clip, weights=parts, minlength=len(index)).astype(np.float64)


WEIGHTS: dict[str, Callable[[ClipIndex, int], np.ndarray]] = {
    "strong": strong_weights,
    "psla": psla_weights,
    "weak": weak_weights,
}


def weights_of(sampling: str, index: ClipIndex, n_classes: int) -> np.ndarray | None:
    """Weights by the name of a rule of `WEIGHTS`; None for `uniform`.

    Raises `ValueError` for another name, and where no clip has a weight.
    """
    if sampling == "uniform":
        return None
    if sampling not in WEIGHTS:
        raise ValueError(unknown("sampling", sampling, ["uniform", *WEIGHTS]))
    weights = WEIGHTS[sampling](index, n_classes)
    if not weights.any():
        what = "events" if sampling == "strong" else "labels of whole clips"
        raise ValueError(f"sampling {sampling!r} needs {what}, and no clip has any")
    return weights


def n_drawable(weights: np.ndarray | None, n_clips: int) -> int:
    """How many of `n_clips` can be drawn: those of weight 0 never are."""
    return n_clips if weights is None else int((weights > 0).sum())


@dataclass(frozen=True, eq=False)
class ClipOrder:
    """What a run sees of a corpus: a function of seed and step, the same in every process.

    batch_clips: clips of a step, of all processes together. epoch_clips: clips in an epoch; None:
    as many as there are that can be drawn. weights: (clips,), a clip of weight 0 is never drawn;
    None: all alike. replacement: whether an epoch may have a clip twice.

    Without replacement and with weights, clips are drawn one after another, so that likely ones
    come early in the epoch: an order and a choice, as torch's WeightedRandomSampler in the
    originals. `broken` has name and reason of the clips that could not be decoded so far.
    """

    clips: Clips
    batch_clips: int
    seed: int
    epoch_clips: int | None = None
    weights: np.ndarray | None = None
    replacement: bool = False
    broken: dict[str, str] = field(default_factory=dict, repr=False)
    _made: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in ("batch_clips", "epoch_clips"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it is a number of clips, at least 1")
        n_clips = len(self.clips.corpus)
        if self.weights is not None:
            if self.weights.shape != (n_clips,):
                raise ValueError(f"weights of {self.weights.shape} for {n_clips} clips")
            if not (np.isfinite(self.weights) & (self.weights >= 0)).all() or self._n_drawable == 0:
                raise ValueError("weights are finite, not negative, and not all 0")
        if not self.replacement and (self.epoch_clips or 0) > self._n_drawable:
            raise ValueError(
                f"epoch_clips is {self.epoch_clips}, and without replacement "
                f"{self._n_drawable} of {n_clips} clips can be drawn"
            )

    @property
    def _n_drawable(self) -> int:
        return n_drawable(self.weights, len(self.clips.corpus))

    @property
    def n_pieces(self) -> int:
        """Clips in an epoch."""
        return self.epoch_clips or self._n_drawable

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch, of which the last may have fewer clips."""
        return -(-self.n_pieces // self.batch_clips)

    def step(self, step: int) -> list[Draw]:
        """The clips of a step, counted from 0 on over all epochs, of all processes."""
        epoch, place = divmod(step, self.steps_per_epoch)
        first = place * self.batch_clips
        chosen = self.epoch(epoch)[first : first + self.batch_clips].tolist()
        return [
            Draw(number, seed_of(self.seed, "draw", epoch, first + i))
            for i, number in enumerate(chosen)
        ]

    def name(self, draw: Draw) -> str:
        """The clip that a draw gives; it is read again to tell whether another one stood for it."""
        return replace(self.clips, weights=self.weights).name(draw)

    def epoch(self, number: int) -> np.ndarray:
        """The clips of an epoch in order (epoch_clips,), int64."""
        if number not in self._made:
            self._made.clear()
            generator = generator_for(self.seed, "clips", number)
            self._made[number] = self._drawn(generator)
        return self._made[number]

    def _drawn(self, generator: torch.Generator) -> np.ndarray:
        n_clips = len(self.clips.corpus)
        if self.weights is None and self.replacement:
            return torch.randint(n_clips, (self.n_pieces,), generator=generator).numpy()
        if self.weights is None:
            return torch.randperm(n_clips, generator=generator)[: self.n_pieces].numpy()
        weights = torch.from_numpy(np.asarray(self.weights, np.float64))
        if self.replacement:
            heights = weights.cumsum(0)
            places = torch.rand(self.n_pieces, generator=generator, dtype=torch.float64)
            found = torch.searchsorted(heights, places * heights[-1], right=True)
            return found.clamp(max=int(weights.nonzero()[-1])).numpy()  # a place may round up to 1
        # The first n of a race of exponential clocks are n draws without replacement (Efraimidis
        # and Spirakis 2006), all computed at once.
        times = torch.empty_like(weights).exponential_(generator=generator) / weights
        return times.topk(self.n_pieces, largest=False, sorted=True).indices.numpy()

    def loader(
        self, first_step: int, n_steps: int, *, rank: int = 0, world: int = 1, n_workers: int = 0
    ) -> DataLoader:
        """A `Batch` of a process's rows for each step from `first_step` on to `n_steps`.

        Raises `CorpusError` with the names when more than 1 % of the clips are broken.
        """
        clips = replace(self.clips, weights=self.weights)
        steps = OwnSteps(self, first_step, n_steps, rank, world)
        return _Loader(clips, steps, n_workers, self.broken)


def in_order(
    clips: Clips,
    batch_clips: int,
    *,
    first_clip: int = 0,
    rank: int = 0,
    world: int = 1,
    n_workers: int = 0,
    broken: dict[str, str] | None = None,
) -> DataLoader:
    """Every clip once, from `first_clip` on, in batches of a process's own rows.

    Broken clips are left out of their batch and added to `broken`. Raises as `ClipOrder.loader`.
    """
    steps = _Sweep(len(clips.corpus), batch_clips, first_clip, rank, world)
    clips = replace(clips, replaces=False)
    return _Loader(clips, steps, n_workers, {} if broken is None else broken)


@dataclass(frozen=True)
class _Sweep:
    """All clips in order: a batch sampler."""

    n_clips: int
    batch_clips: int
    first_clip: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[list[Draw]]:
        for first in range(self.first_clip, self.n_clips, self.batch_clips):
            draws = [Draw(i, i) for i in range(first, min(first + self.batch_clips, self.n_clips))]
            yield draws[own_rows(len(draws), self.rank, self.world)]

    def __len__(self) -> int:
        return max(0, -(-(self.n_clips - self.first_clip) // self.batch_clips))


@dataclass(frozen=True)
class _Collate:
    """Rows -> their batch and what was broken, in a worker."""

    clips: Clips

    def __call__(self, rows: list[Row]) -> tuple[Batch, int, tuple[tuple[str, str], ...]]:
        broken = tuple(pair for row in rows for pair in row.broken)
        return self.clips.batch(rows), len(rows), broken


class _Loader(DataLoader):
    """Batches; broken clips are counted where all workers' come together."""

    def __init__(self, clips: Clips, steps: Any, n_workers: int, broken: dict[str, str]) -> None:
        super().__init__(
            clips,
            batch_sampler=steps,
            collate_fn=_Collate(clips),
            num_workers=n_workers,
            persistent_workers=n_workers > 0,
        )
        self.broken = broken

    def __iter__(self) -> Iterator[Batch]:
        n_seen, n_clips = 0, len(self.dataset.corpus)
        for batch, n_rows, broken in _in_one_line(super().__iter__()):
            n_seen += n_rows
            self.broken.update(broken)
            n_counted = max(min(n_seen, n_clips), min(_FEWEST, n_clips))
            if len(self.broken) > MAX_BROKEN * n_counted:
                raise CorpusError(
                    f"{self.dataset.corpus.folder}: more than {MAX_BROKEN:.0%} of its clips are "
                    f"broken: {broken_line(self.broken)}"
                )
            yield batch


def _in_one_line(batches: Iterator[Any]) -> Iterator[Any]:
    """Batches; a worker's `ValueError` without the traceback that torch puts into its message."""
    try:
        yield from batches
    except ValueError as error:
        lines = str(error).strip().splitlines()
        if not lines[0].startswith("Caught "):
            raise
        name = f"{type(error).__module__}.{type(error).__qualname__}: "
        line = lines[-1].removeprefix(name).removeprefix("ValueError: ")
        raise type(error)(line) from None
