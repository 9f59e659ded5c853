"""Schedules against the references of PretrainedSED, EfficientSED and PSLA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hear_pretrainedsed.training.schedule import (
    exponential,
    warmup_cosine,
    warmup_halving,
    warmup_linear,
)


def training(shared: Path) -> dict:
    return json.loads((shared / "parity" / "training.json").read_text())["schedule"]


@pytest.mark.parametrize("name", ["audioset_linear_default", "linear_warmup2000_lrend1e-7"])
def test_linear_is_the_reference(shared: Path, name: str) -> None:
    facts = training(shared)
    case = facts[name]
    factor = warmup_linear(case["warmup"], case["total"], case["lr_end"] / case["lr"])
    values = [case["lr"] * factor(step) for step in facts["steps"]]
    assert values == pytest.approx(case["values"], rel=1e-9, abs=1e-20)


def test_exponential_is_the_reference(shared: Path) -> None:
    facts = training(shared)
    factor = exponential(facts["exp"]["gamma"])
    values = [facts["exp"]["lr"] * factor(step) for step in facts["steps"]]
    assert values == pytest.approx(facts["exp"]["values"], rel=1e-9)


@pytest.mark.parametrize("name", ["offline_120_epochs", "online_240_epochs"])
def test_cosine_of_efficientsed_is_the_reference(shared: Path, name: str) -> None:
    content = json.loads((shared / "parity_efficient" / "eff_training.cases.json").read_text())
    case = content["lr_factor"][name]
    factor = warmup_cosine(case["warmup_steps"], case["training_steps"])
    for step, wanted in case["factor"].items():
        assert factor(int(step)) == pytest.approx(wanted, rel=1e-9, abs=1e-15), step


def test_halving_is_psla_s(shared: Path) -> None:
    content = json.loads((shared / "parity_efficient" / "psla.cases.json").read_text())
    steps_per_epoch = 220
    for table in content["lr_schedule"]["tables"]:
        factor = warmup_halving(1000, table["start"] * steps_per_epoch, 5 * steps_per_epoch)
        for epoch, lr in enumerate(table["lr_used_in_epoch_1.."], start=1):
            first, last = (epoch - 1) * steps_per_epoch, epoch * steps_per_epoch - 1
            for step in (first, last):
                if step > 1000:
                    assert table["lr"] * factor(step) == pytest.approx(lr, rel=1e-12), step
    for step in range(1001):  # the rule in words: every 50 steps, lr = base * step / 1000
        assert factor(step) == pytest.approx(step // 50 * 50 / 1000)


@given(
    warmup=st.integers(0, 60),
    start=st.integers(1, 80),
    every=st.integers(1, 30),
    step=st.integers(0, 300),
)
def test_halving_halves_and_nothing_else(warmup: int, start: int, every: int, step: int) -> None:
    factor = warmup_halving(warmup, start, every)
    assert 0 <= factor(step) <= 1
    if step > warmup:
        wanted = sum(start + n * every <= step for n in range(step + 1))
        assert factor(step) == 0.5**wanted
    if step == warmup and warmup % max(1, warmup // 20) == 0:
        assert factor(step) == (1 if warmup else 0.5 ** (start <= 0))


def test_linear_ends_at_its_end_and_stays_there() -> None:
    factor = warmup_linear(10, 100, 0.1)
    assert factor(0) == 0 and factor(10) == 1
    assert factor(100) == factor(150) == pytest.approx(0.1)
    assert warmup_linear(0, 4)(1) == 0.75


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: warmup_linear(0, 0), "n_steps is 0"),
        (lambda: warmup_linear(0, 5, -0.1), "end is -0.1"),
        (lambda: exponential(1.5), "gamma is 1.5"),
        (lambda: exponential(0.0), "gamma is 0.0"),
        (lambda: warmup_halving(-1, 5, 5), "n_warmup_steps is -1"),
        (lambda: warmup_halving(0, 0, 5), "halve_from_step and halve_every_steps are 0 and 5"),
        (lambda: warmup_halving(0, 5, 0), "are 5 and 0"),
    ],
)
def test_refuses(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
