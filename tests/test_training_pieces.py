"""Pieces: right audio beside right targets, an order known for every step, rare classes seen."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hear_pretrainedsed.training.chance import generator_for, seed_of
from hear_pretrainedsed.training.material import own_rows
from hear_pretrainedsed.training.pieces import Order, Pieces, Recording
from tests.tiny_model import tones


def silent(n_frames: int, n_classes: int = 3, *events: tuple[int, int, int]) -> Recording:
    targets = np.zeros((n_frames, n_classes), np.uint8)
    for column, first, end in events:
        targets[first:end, column] = 1
    return Recording(f"{n_frames}.wav", Path(f"{n_frames}.wav"), targets)


def ramp(folder: Path, seconds: float) -> Recording:
    """A sample tells its own place, a target its frame's."""
    n = round(seconds * 16_000)
    n_frames = (n + 319) // 640
    path = folder / "ramp.wav"
    soundfile.write(path, np.arange(n) / n, 16_000, subtype="DOUBLE")
    targets = (np.arange(n_frames)[:, None] >> np.arange(8) & 1).astype(np.uint8)
    return Recording("ramp.wav", path, targets)


@pytest.mark.parametrize("seconds", [1.0, 9.99, 10.0, 10.04, 27.3])
def test_audio_and_targets_are_of_one_place(tmp_path: Path, seconds: float) -> None:
    recording = ramp(tmp_path, seconds)
    n = round(seconds * 16_000)
    pieces, order = Pieces([recording]), Order([recording], 4, 0)
    for epoch in range(20):
        for crop in order.step(epoch * order.steps_per_epoch):
            audio, targets, file = pieces[crop]
            assert (audio.shape, targets.shape, file) == ((160_000,), (250, 8), "ramp.wav")
            first = crop[1]
            inside = min(n - first * 640, 160_000)
            places = (first * 640 + torch.arange(inside)).double() / n
            assert (audio[:inside] - places).abs().max() < 1e-6
            assert audio[inside:].eq(0).all()
            known = min(250, len(recording.targets) - first)
            frames = (targets[:known] * 2 ** torch.arange(8)).sum(dim=1)
            assert frames.tolist() == [(first + i) % 256 for i in range(known)]
            assert targets[known:].eq(0).all()


def test_an_epoch_has_each_recording_s_pieces() -> None:
    recordings = [silent(n) for n in (10, 250, 499, 500, 3000)]
    order = Order(recordings, 5, 1)
    assert (order.n_pieces, order.steps_per_epoch) == (1 + 1 + 1 + 2 + 12, 4)
    epochs = []
    for epoch in range(3):
        steps = [order.step(4 * epoch + i) for i in range(4)]
        assert list(map(len, steps)) == [5, 5, 5, 2]
        crops = [crop for step in steps for crop in step]
        assert Counter(i for i, _ in crops) == {0: 1, 1: 1, 2: 1, 3: 2, 4: 12}
        for number, first in crops:
            assert 0 <= first <= max(0, len(recordings[number].targets) - 250)
        epochs.append(crops)
    assert epochs[0] != epochs[1] != epochs[2]
    assert any(first % 250 for _, first in epochs[0])


def test_a_step_s_pieces_depend_on_seed_and_step_alone() -> None:
    recordings = [silent(3000), silent(700)]
    one, two = Order(recordings, 3, 7, balanced=0.5), Order(recordings, 3, 7, balanced=0.5)
    wanted = [one.step(i) for i in range(20)]
    assert [two.step(i) for i in (19, 3, 11, 3)] == [wanted[i] for i in (19, 3, 11, 3)]
    assert Order(recordings, 3, 8).step(0) != Order(recordings, 3, 7).step(0)


def test_rare_classes_are_seen_as_often_as_common_ones() -> None:
    events = [(0, i, i + 10) for i in range(0, 90_000, 30)] + [(2, 50_000, 50_010)]
    recordings = [silent(90_000, 3, *events)]  # an hour: 3000 events of one class, one of another

    def seen(balanced: float | None) -> list[float]:
        order = Order(recordings, 360, 0, balanced)
        targets = recordings[0].targets
        rows = [targets[a : a + 250].any(axis=0) for _, a in order.step(0)]
        return np.mean(rows, axis=0).tolist()

    assert seen(None)[2] < 0.02
    common, absent, rare = seen(0.5)
    assert common > 0.99 and absent == 0 and 0.15 < rare < 0.35
    assert seen(0.0) == seen(None)
    assert all(x > 0.4 for i, x in enumerate(seen(1.0)) if i != 1)


def test_balanced_without_any_event_is_not_balanced() -> None:
    recordings = [silent(3000)]
    assert Order(recordings, 4, 0, 0.5).step(0) == Order(recordings, 4, 0).step(0)


@settings(max_examples=30)
@given(st.integers(0, 40), st.integers(1, 7))
def test_rows_are_divided_between_processes(n: int, world: int) -> None:
    rows = [i for rank in range(world) for i in range(n)[own_rows(n, rank, world)]]
    assert rows == list(range(n))


def test_loaders_of_processes_give_the_batch_together(tmp_path: Path) -> None:
    order = Order(tones(tmp_path, (25.0, 10.0, 4.0)), 3, 0)
    (whole,) = order.loader(5, 6)
    parts = [next(iter(order.loader(5, 6, rank=rank, world=2))) for rank in range(2)]
    assert torch.equal(torch.cat([part.audio for part in parts]), whole.audio)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    assert sum((part.files for part in parts), ()) == whole.files
    (none,) = order.loader(5, 6, rank=3, world=4)
    assert none.audio.shape == (0, 160_000) and none.targets.shape == (0, 250, 2)


def test_workers_give_the_same(tmp_path: Path) -> None:
    order = Order(tones(tmp_path), 3, 0)
    plain, others = (list(order.loader(1, 4, n_workers=n)) for n in (0, 2))
    assert all(torch.equal(a.audio, b.audio) for a, b in zip(plain, others, strict=True))


def test_an_hour_is_not_decoded_for_a_piece(tmp_path: Path) -> None:
    path = tmp_path / "hour.flac"
    with soundfile.SoundFile(path, "w", 16_000, 1) as file:
        for i in range(360):
            file.write(np.random.default_rng(i).uniform(-0.1, 0.1, 160_000))
    pieces = Pieces([Recording("hour.flac", path, np.zeros((90_000, 2), np.uint8))])
    start = time.perf_counter()
    for first in (0, 44_000, 89_750):
        pieces[0, first]
    assert time.perf_counter() - start < 1.0


def test_wrong_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="no recording to train on"):
        Order([], 4, 0)
    for share in (-0.1, 1.5):
        with pytest.raises(ValueError, match="it is a share, from 0 to 1"):
            Order([silent(10)], 4, 0, share)


def test_chance_is_of_what_is_drawn_alone() -> None:
    seeds = {seed_of(s, what, i) for s in (0, 1) for what in ("a", "b") for i in range(50)}
    assert len(seeds) == 200 and all(0 <= seed < 2**63 for seed in seeds)
    draws = [torch.rand(3, generator=generator_for(0, "a", 4)).tolist() for _ in range(2)]
    assert draws[0] == draws[1]
