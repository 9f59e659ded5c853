"""The mean of several models' scores (PSLA's three ways of ensembling).

Gong, Chung and Glass, TASLP 2021: checkpoints of one run, runs with other seeds,
runs with other settings. Only which models are taken differs; all have one vote.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hear_pretrainedsed.registry import unknown

WAYS = ("one run", "other seeds", "other settings")


class RunningMean:
    """The mean of all scores so far: after each epoch, the ensemble of epochs 1 to this one."""

    def __init__(self) -> None:
        self.n = 0
        self._sum: np.ndarray | None = None

    def add(self, scores: np.ndarray) -> np.ndarray:
        """Take in one more model's scores (clips, classes) in 0..1; the mean with them, float64.

        Raises `ValueError` for another shape and for numbers that are no scores: logits, NaN.
        """
        scores = np.asarray(scores)
        if self._sum is not None and scores.shape != self._sum.shape:
            raise ValueError(
                f"scores of shape {scores.shape} in an ensemble of {self._sum.shape}: "
                "other clips or other classes"
            )
        if scores.size and not (scores.min() >= 0 and scores.max() <= 1):
            raise ValueError(
                f"scores from {scores.min()} to {scores.max()}; an ensemble is of numbers from "
                "0 to 1, not of logits"
            )
        total = scores.astype(np.float64)
        self._sum = total if self._sum is None else self._sum + total
        self.n += 1
        return self.mean

    @property
    def mean(self) -> np.ndarray:
        """The mean so far. Raises `ValueError` before there is one."""
        if self._sum is None:
            raise ValueError("an ensemble of no models has no scores")
        return self._sum / self.n


def ensemble(scores: Iterable[np.ndarray]) -> np.ndarray:
    """The mean of models' scores (clips, classes), which are taken one after another."""
    mean = RunningMean()
    for one in scores:
        mean.add(one)
    return mean.mean


@dataclass(frozen=True)
class Member:
    """A model that may be in an ensemble.

    name: of the model. settings, seed: of its run. epoch: of a checkpoint; None: what the run ends
    with, as its averaged weights.
    """

    name: str
    settings: str
    seed: int
    epoch: int | None = None


def members(way: str, models: Sequence[Member]) -> dict[str, tuple[Member, ...]]:
    """Which models an ensemble has, by its name, for a way of `WAYS`; those of one model are none.

    One run: all checkpoints of each run. Other seeds: the results of all runs with the same
    settings. Other settings: the results of all runs, where they have more than one.

    Raises `ValueError` for another way.
    """
    if way not in WAYS:
        raise ValueError(unknown("way of ensembling", way, WAYS))
    found: dict[str, list[Member]] = {}
    for model in models:
        if way == "one run" and model.epoch is not None:
            found.setdefault(f"{model.settings}, seed {model.seed}", []).append(model)
        elif way == "other seeds" and model.epoch is None:
            found.setdefault(model.settings, []).append(model)
        elif way == "other settings" and model.epoch is None:
            found.setdefault("all runs", []).append(model)
    if way == "other settings" and len({m.settings for group in found.values() for m in group}) < 2:
        return {}
    return {name: tuple(group) for name, group in found.items() if len(group) > 1}
