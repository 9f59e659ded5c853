"""Units that are resampled."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Units:
    """The independent units of test clips, and the strata within which they are resampled.

    strata: (units,) numbers from 0: units that are tested in the same rotations. members: of each
    rotation, the number of the unit that each of its clips is part of (clips,).
    """

    names: tuple[str, ...]
    strata: np.ndarray = field(compare=False)
    members: tuple[np.ndarray, ...] = field(compare=False)

    @classmethod
    def of(cls, rotations: Sequence[Sequence[str]]) -> Units:
        """From the unit of every test clip of every rotation."""
        names = tuple(dict.fromkeys(unit for rotation in rotations for unit in rotation))
        number = {name: i for i, name in enumerate(names)}
        members = tuple(np.array([number[unit] for unit in rotation]) for rotation in rotations)
        where = np.stack([np.isin(np.arange(len(names)), one) for one in members], axis=1)
        strata = np.unique(where, axis=0, return_inverse=True)[1].reshape(-1)
        return cls(names, strata, members)

    @cached_property
    def digest(self) -> str:
        """sha256 of units, strata and members: draws of equal ones belong together."""
        text = repr((self.names, self.strata.tolist(), [one.tolist() for one in self.members]))
        return hashlib.sha256(text.encode()).hexdigest()

    def generator(self) -> np.random.Generator:
        """The generator of these units: the same for all that is measured on them."""
        return np.random.default_rng(int(self.digest[:16], 16))

    def weights(self, n_draws: int, generator: np.random.Generator) -> np.ndarray:
        """How often each unit occurs in each draw (draws, units), drawn within strata."""
        weights = np.empty((n_draws, len(self.names)), np.int64)
        for stratum in range(self.strata.max() + 1):
            rows = np.flatnonzero(self.strata == stratum)
            share = np.full(len(rows), 1 / len(rows))
            weights[:, rows] = generator.multinomial(len(rows), share, size=n_draws)
        return weights
