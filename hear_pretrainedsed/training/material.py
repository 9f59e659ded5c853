"""What a training learns from, as far as the runner knows it: items in an order that is fixed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch.utils.data import DataLoader


class Material(Protocol):
    """Clips of a corpus, or pieces of recordings, in the order that a run sees them.

    seed: of all chance in the order. n_pieces: items in an epoch. What a step sees is a function of
    the seed and the step alone, so that a run can go on from any step.
    """

    seed: int

    @property
    def n_pieces(self) -> int:
        """Items in an epoch."""
        ...

    def step(self, step: int) -> Sequence[Any]:
        """The items of a step, counted from 0 on over all epochs, of all processes."""
        ...

    def loader(
        self, first_step: int, n_steps: int, *, rank: int = 0, world: int = 1, n_workers: int = 0
    ) -> DataLoader:
        """A `Batch` of a process's rows for each step from `first_step` on to `n_steps`."""
        ...

    def name(self, item: Any) -> str:
        """What an item is called in messages."""
        ...


@dataclass(frozen=True)
class OwnSteps:
    """The items of one process's rows, step after step: a batch sampler."""

    material: Material
    first_step: int
    n_steps: int
    rank: int = 0
    world: int = 1

    def __iter__(self) -> Iterator[list[Any]]:
        for step in range(self.first_step, self.n_steps):
            items = self.material.step(step)
            yield list(items[own_rows(len(items), self.rank, self.world)])


def own_rows(n: int, rank: int, world: int) -> slice:
    """Rows of a batch of `n` that belong to process `rank` of `world`; the last may have fewer."""
    size = -(-n // world)
    return slice(min(n, rank * size), min(n, (rank + 1) * size))
