"""Exponential moving average of a model's weights (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """An average of all floating tensors of a model's state, kept beside it.

    After update t (from 1 on) average = d * average + (1 - d) * weights with
    d = min(decay, (1 + t) / (10 + t)), so that a short run does not end near its start
    (TensorFlow's `num_updates` rule). Batch norms' statistics are averaged like weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it is from 0 on and below 1")
        self.decay = decay
        self.n_updates = 0
        self.average = {name: value.clone() for name, value in _floating(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one more step."""
        self.n_updates += 1
        share = 1 - min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        for name, value in _floating(model).items():
            self.average[name].lerp_(value, share)

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """The average in the model, for a while."""
        own = {name: value.clone() for name, value in _floating(model).items()}
        self.write(model)
        try:
            yield
        finally:
            _write(model, own)

    def write(self, model: nn.Module) -> None:
        """The average in the model, for good."""
        _write(model, self.average)

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        return {"n_updates": self.n_updates, "average": self.average}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """From what `state_dict` gave, on whatever device."""
        self.n_updates = state["n_updates"]
        for name, value in self.average.items():
            value.copy_(state["average"][name])


def _floating(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: value for name, value in state.items() if value.is_floating_point()}


@torch.no_grad()
def _write(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, value in _floating(model).items():
        value.copy_(values[name])
