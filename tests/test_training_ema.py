"""The average of weights: by its formula, in place for a while, kept and found again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hear_pretrainedsed.training.ema import Ema


def model_of(value: float) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    fill(model, value)
    return model


def fill(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "num_batches" not in name:
                tensor.fill_(value)


def test_average_is_the_formula_s() -> None:
    model = model_of(1.0)
    ema, wanted = Ema(model, 0.3), 1.0
    for t, value in enumerate((2.0, -1.0, 5.0, 5.0), start=1):
        fill(model, value)
        ema.update(model)
        decay = min(0.3, (1 + t) / (10 + t))
        wanted = decay * wanted + (1 - decay) * value
        for average in ema.average.values():
            assert average.flatten()[0].item() == pytest.approx(wanted, rel=1e-6)
    assert set(ema.average) == {k for k in model.state_dict() if "num_batches" not in k}


def test_in_place_for_a_while_and_for_good() -> None:
    model = model_of(0.0)
    ema = Ema(model, 0.5)
    fill(model, 8.0)
    ema.update(model)
    average = ema.average["0.weight"].clone()
    version = model[0].weight._version
    with pytest.raises(KeyError), ema.in_place_of(model):
        assert torch.equal(model[0].weight, average)
        raise KeyError
    assert model[0].weight.eq(8).all() and model[1].running_mean.eq(8).all()
    assert model[0].weight._version > version  # folded copies for inference notice
    ema.write(model)
    assert torch.equal(model[0].weight, average)


def test_state_goes_round() -> None:
    model = model_of(0.0)
    one, two = Ema(model, 0.9), Ema(model, 0.9)
    fill(model, 3.0)
    one.update(model)
    two.load_state_dict(one.state_dict())
    fill(model, -1.0)
    one.update(model)
    two.update(model)
    assert all(torch.equal(one.average[k], two.average[k]) for k in one.average)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_decay_out_of_range(decay: float) -> None:
    with pytest.raises(ValueError, match="from 0 on and below 1"):
        Ema(model_of(0.0), decay)
