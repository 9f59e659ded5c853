"""Sampling weights against the references; orders that are a function of seed and step."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hear_pretrainedsed.training.material import own_rows
from pretraining.clip_index import ClipIndex, Labelled
from pretraining.clips import Clips
from pretraining.corpus import Record
from pretraining.sampling import ClipOrder, psla_weights, strong_weights, weak_weights, weights_of
from tests.pretraining.test_clips import FakeCorpus


def of_events(clips: list[list], labels: list[str]) -> ClipIndex:
    rows = [tuple((a, b, labels.index(label)) for label, a, b in clip) for clip in clips]
    return ClipIndex.of(Labelled(f"{i}", row, ()) for i, row in enumerate(rows))


def of_weak(clips: list[list[int]]) -> ClipIndex:
    return ClipIndex.of(Labelled(f"{i}", None, tuple(row)) for i, row in enumerate(clips))


def order(n_clips: int = 20, batch: int = 6, seed: int = 0, **options: Any) -> ClipOrder:
    records = [Record(f"{i}", b"", (), ()) for i in range(n_clips)]
    return ClipOrder(Clips(FakeCorpus(records)), batch, seed, **options)


def test_strong_weights_are_the_reference(shared: Path) -> None:
    facts = json.loads((shared / "parity" / "training.json").read_text())["sampling"]
    arrays = np.load(shared / "parity" / "training.npz")
    index = of_events(facts["clips"], facts["labels"])
    for offset in facts["offsets"]:
        found = strong_weights(index, len(facts["labels"]), offset)
        np.testing.assert_allclose(found, arrays[f"sampling.weights_offset{offset}"], rtol=2e-7)
    default = strong_weights(index, len(facts["labels"]))
    np.testing.assert_allclose(default, arrays["sampling.weights_offset30"], rtol=2e-7)
    assert default[facts["clips"].index([])] == 0


def test_the_efficient_ones_weights_are_the_reference(shared: Path) -> None:
    cases = json.loads((shared / "parity_efficient" / "eff_training.cases.json").read_text())
    case = cases["sampling_weights"]
    targets = np.array(case["weak_targets"])
    index = of_weak([np.flatnonzero(row).tolist() for row in targets])
    np.testing.assert_allclose(weak_weights(index, 6), case["weak"], rtol=1e-6)
    # counts of frames as events: one run each, of its own
    rows = [
        tuple((0.0, count * 0.04 - 0.02, i) for i, count in enumerate(counts) if count)
        for counts in case["event_frame_counts"]
    ]
    index = ClipIndex.of(Labelled(f"{i}", row, ()) for i, row in enumerate(rows))
    np.testing.assert_allclose(strong_weights(index, 6), case["strong_temporal"], rtol=1e-6)


def test_pslas_weights_are_the_reference(shared: Path) -> None:
    cases = json.loads((shared / "parity_efficient" / "psla.cases.json").read_text())
    case = cases["sampling_weight"]
    places = {label: i for i, label in enumerate(case["label_order"])}
    index = of_weak([[places[label] for label in row.split(",")] for row in case["clip_labels"]])
    np.testing.assert_allclose(psla_weights(index, len(places)), case["weights"], rtol=2e-7)


def test_a_rule_is_chosen_by_name() -> None:
    index = of_weak([[0], [1, 0], []])
    assert weights_of("uniform", index, 2) is None
    np.testing.assert_array_equal(weights_of("psla", index, 2), psla_weights(index, 2))
    with pytest.raises(ValueError, match="unknown sampling 'balanced' .*uniform, strong"):
        weights_of("balanced", index, 2)
    with pytest.raises(ValueError, match="'strong' needs events, and no clip has any"):
        weights_of("strong", index, 2)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 99), st.data())
def test_steps_are_the_epochs_in_order(n: int, batch: int, seed: int, data: st.DataObject) -> None:
    epoch_clips = data.draw(st.none() | st.integers(1, n))
    one = order(n, batch, seed, epoch_clips=epoch_clips)
    size = epoch_clips or n
    assert one.n_pieces == size and one.steps_per_epoch == -(-size // batch)
    for epoch in (0, 1):
        first = epoch * one.steps_per_epoch
        draws = [d for s in range(one.steps_per_epoch) for d in one.step(first + s)]
        assert len(draws) == size == len({draw.index for draw in draws})
        assert len({draw.seed for draw in draws}) == size
    step = data.draw(st.integers(0, 3 * one.steps_per_epoch))
    again = order(n, batch, seed, epoch_clips=epoch_clips)
    assert again.step(step) == one.step(step)  # whatever was asked for before


@given(st.integers(1, 50), st.integers(1, 8), st.integers(1, 5))
def test_processes_share_an_epoch(n: int, batch: int, world: int) -> None:
    one = order(n, batch)
    seen: Counter[int] = Counter()
    for step in range(one.steps_per_epoch):
        draws = one.step(step)
        for rank in range(world):
            rows = draws[own_rows(len(draws), rank, world)]
            seen.update(draw.index for draw in rows)
    assert seen == Counter(range(n))


def test_epochs_and_seeds_differ() -> None:
    one = order(50, 50)
    assert one.step(0) != one.step(1) != order(50, 50, seed=1).step(1)
    assert sorted(d.index for d in one.step(1)) == list(range(50))
    assert len(one._made) == 1  # one order at a time is kept


WEIGHTS = np.array([0.0, 1.0, 2.0, 4.0, 0.0, 8.0])


def test_draws_with_replacement_follow_the_weights() -> None:
    one = order(6, 30_000, weights=WEIGHTS, replacement=True, epoch_clips=30_000)
    share = np.bincount([d.index for d in one.step(0)], minlength=6) / 30_000
    np.testing.assert_allclose(share, WEIGHTS / WEIGHTS.sum(), atol=0.01)
    assert share[0] == share[4] == 0


def test_draws_without_replacement_follow_the_weights_one_after_another() -> None:
    firsts, seconds = Counter(), Counter()
    n_epochs = 6000
    one = order(6, 4, weights=WEIGHTS)
    assert one.n_pieces == 4  # those that can be drawn
    for epoch in range(n_epochs):
        first, second, *_ = one.epoch(epoch).tolist()
        assert sorted(one.epoch(epoch).tolist()) == [1, 2, 3, 5]
        firsts[first] += 1
        seconds[second] += first == 5
    for i in (1, 2, 3, 5):
        assert firsts[i] / n_epochs == pytest.approx(WEIGHTS[i] / 15, abs=0.025)
    for i in (1, 2, 3):  # given that 5 is gone
        assert seconds[i] / firsts[5] == pytest.approx(WEIGHTS[i] / 7, abs=0.03)


def test_uniform_draws_with_replacement() -> None:
    one = order(4, 8000, replacement=True, epoch_clips=8000)
    share = np.bincount([d.index for d in one.step(2)], minlength=4) / 8000
    np.testing.assert_allclose(share, 0.25, atol=0.03)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="epoch_clips is 7, .* 6 of 6 clips"):
        order(6, epoch_clips=7)
    with pytest.raises(ValueError, match="epoch_clips is 5, .* 4 of 6 clips"):
        order(6, epoch_clips=5, weights=WEIGHTS)
    with pytest.raises(ValueError, match="batch_clips is 0"):
        order(6, batch=0)
    with pytest.raises(ValueError, match=r"weights of \(6,\) for 5 clips"):
        order(5, weights=WEIGHTS)
    for weights in (np.zeros(3), np.array([1.0, np.nan, 1]), np.array([1.0, -1, 1])):
        with pytest.raises(ValueError, match="weights are finite"):
            order(3, weights=weights)


@pytest.mark.slow
def test_two_million_clips_take_seconds_and_less_than_2_gb() -> None:
    code = (
        "from benchmarks.data_path import sampler_rows\n"
        "print([float(value.split()[0]) for _, value in sampler_rows(2_000_000)][-1])"
    )
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=300, capture_output=True, text=True
    )
    assert float(run.stdout) < 2
    assert time.monotonic() - start < 120  # some 6 s on a quiet core
