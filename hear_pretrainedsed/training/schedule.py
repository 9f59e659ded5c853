"""Learning rate over optimiser steps, as factors of its maximum."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]  # optimiser step, counted from 0 -> factor of the maximum

_STAIRS = 20  # of PSLA's warm-up: 50 steps each of 1000


def warmup_cosine(n_warmup_steps: int, n_steps: int) -> Schedule:
    """From 0 in a straight line to 1 at `n_warmup_steps`, then half a cosine to 0 at `n_steps`.

    A warm-up that is longer than the run is allowed and never reaches 1: PretrainedSED's scripts
    warm up for 4000 (DCASE) or 20 000 (AudioSet) steps whatever their option says, and a small
    task's run is shorter than that.

    Raises `ValueError` for a run without steps or a negative warm-up.
    """
    _check(n_warmup_steps, n_steps)

    def factor(step: int) -> float:
        if step < n_warmup_steps:
            return step / n_warmup_steps
        done = (step - n_warmup_steps) / max(1, n_steps - n_warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor


def warmup_linear(n_warmup_steps: int, n_steps: int, end: float = 0.0) -> Schedule:
    """From 0 in a straight line to 1 at `n_warmup_steps`, then in another to `end` at `n_steps`.

    The linear mode of PretrainedSED's scripts, whose `lr_end` is `end` times the maximum. Raises
    `ValueError` as `warmup_cosine`, and for an end that is not in 0..1.
    """
    _check(n_warmup_steps, n_steps)
    if not 0 <= end <= 1:
        raise ValueError(f"end is {end}; it is a share of the maximum, from 0 to 1")

    def factor(step: int) -> float:
        if step < n_warmup_steps:
            return step / n_warmup_steps
        done = (step - n_warmup_steps) / max(1, n_steps - n_warmup_steps)
        return end + (1 - end) * (1 - min(1.0, done))

    return factor


def exponential(gamma: float) -> Schedule:
    """`gamma` times less (or as much) with every step: PretrainedSED's exponential mode.

    Raises `ValueError` for a gamma that is not above 0 and at most 1.
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma is {gamma}; it is above 0 and at most 1")
    return lambda step: gamma**step


def warmup_halving(n_warmup_steps: int, halve_from_step: int, halve_every_steps: int) -> Schedule:
    """PSLA's schedule (Gong et al., TASLP 2021, and its script).

    Up to and with step `n_warmup_steps` a stair from 0 to 1, of 20 steps of equal length (50 for
    1000); nothing is halved there. Then 1, halved at `halve_from_step` and at every
    `halve_every_steps` after that: PSLA halves every 5 epochs.

    Raises `ValueError` for numbers of steps that are negative, or below 1 between two halvings.
    """
    _check(n_warmup_steps, 1)
    if halve_from_step < 1 or halve_every_steps < 1:
        raise ValueError(
            f"halve_from_step and halve_every_steps are {halve_from_step} and "
            f"{halve_every_steps}; they are at least 1"
        )
    stair = max(1, n_warmup_steps // _STAIRS)

    def factor(step: int) -> float:
        if step <= n_warmup_steps and n_warmup_steps > 0:
            return step // stair * stair / n_warmup_steps
        n_halvings = max(0, step - halve_from_step + halve_every_steps) // halve_every_steps
        return 0.5**n_halvings

    return factor


def _check(n_warmup_steps: int, n_steps: int) -> None:
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}; a run has at least 1 step")
    if n_warmup_steps < 0:
        raise ValueError(f"n_warmup_steps is {n_warmup_steps}; it cannot be negative")
