"""Chance that can be repeated from anywhere: a generator for each thing that is drawn.

What a step draws depends on the seed and the step's number alone, never on what was drawn before:
a run that goes on after a kill, and every process of several, draws the same.
"""

from __future__ import annotations

import hashlib

import torch


def seed_of(seed: int, what: str, *numbers: int) -> int:
    """A seed of its own for a thing that is drawn, 63 bits."""
    digest = hashlib.sha256(repr((seed, what, *numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(seed: int, what: str, *numbers: int) -> torch.Generator:
    """A generator on the CPU with the seed of `seed_of`."""
    return torch.Generator().manual_seed(seed_of(seed, what, *numbers))
