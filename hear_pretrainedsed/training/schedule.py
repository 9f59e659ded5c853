"""Learning rate over optimiser steps, as factors of its maximum."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]  # optimiser step, counted from 0 -> factor of the maximum


def warmup_cosine(n_warmup_steps: int, n_steps: int) -> Schedule:
    """From 0 in a straight line to 1 at `n_warmup_steps`, then half a cosine to 0 at `n_steps`.

    A warm-up that is longer than the run is allowed and never reaches 1: PretrainedSED's scripts
    warm up for 4000 (DCASE) or 20 000 (AudioSet) steps whatever their option says, and a small
    task's run is shorter than that.

    Raises `ValueError` for a run without steps or a negative warm-up.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}; a run has at least 1 step")
    if n_warmup_steps < 0:
        raise ValueError(f"n_warmup_steps is {n_warmup_steps}; it cannot be negative")

    def factor(step: int) -> float:
        if step < n_warmup_steps:
            return step / n_warmup_steps
        done = (step - n_warmup_steps) / max(1, n_steps - n_warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor
