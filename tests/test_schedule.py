"""The schedule against the reference's values, and where it may not go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hear_pretrainedsed.training.schedule import warmup_cosine


@pytest.mark.parametrize("name", ["audioset_cos_default", "cos_warmup5000", "dcase_cos_default"])
def test_is_the_reference(shared: Path, name: str) -> None:
    reference = json.loads((shared / "parity" / "training.json").read_text())["schedule"]
    case = reference[name]
    factor = warmup_cosine(case["warmup"], case["total"])
    values = [case["lr"] * factor(step) for step in reference["steps"]]
    assert values == pytest.approx(case["values"], rel=1e-12, abs=1e-20)


@given(warmup=st.integers(0, 50), total=st.integers(1, 100), step=st.integers(0, 200))
def test_stays_within_0_and_1_and_rises_to_the_end_of_the_warmup(
    warmup: int, total: int, step: int
) -> None:
    factor = warmup_cosine(warmup, total)
    assert 0 <= factor(step) <= 1
    if step < warmup:
        assert factor(step) < factor(step + 1)
    else:
        assert factor(step) >= factor(step + 1)


def test_a_warmup_longer_than_the_run_never_ends() -> None:
    factor = warmup_cosine(4000, 500)
    assert factor(0) == 0
    assert factor(499) == 499 / 4000


def test_ends_at_zero() -> None:
    assert warmup_cosine(10, 100)(100) == 0
    assert warmup_cosine(0, 100)(0) == 1


@pytest.mark.parametrize(("warmup", "total", "word"), [(0, 0, "n_steps"), (-1, 5, "n_warmup")])
def test_refuses(warmup: int, total: int, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        warmup_cosine(warmup, total)
