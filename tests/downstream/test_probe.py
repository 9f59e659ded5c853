"""Training on frames: crops, gathering, and that heads side by side are as if alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from downstream import probe
from downstream.probe import LabelledFrames, LinearHeads, Run, logits_of, train
from hear_pretrainedsed.training.schedule import warmup_cosine


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    """A small network gains nothing from more, and waits for them on a busy machine."""
    torch.set_num_threads(1)


def data(lengths: tuple[int, ...] = (700, 250, 90), dim: int = 6) -> LabelledFrames:
    """Frames that hold their clip and their place; one class, active where noise says so."""
    rng = np.random.default_rng(0)
    frames, targets = [], []
    for clip, n in enumerate(lengths):
        x = rng.standard_normal((n, dim)).astype(np.float32)
        x[:, 0], x[:, 1] = clip, np.arange(n)
        frames.append((x[:, :4], x[:, 4:].astype(np.float16)))
        targets.append((x[:, 2:4] > 0.5).astype(np.uint8))
    return LabelledFrames(frames, targets)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quiet(line: str) -> None:
    pass


def test_an_epoch_has_the_pieces_of_every_clip_at_any_place() -> None:
    some = data((510, 250, 90))
    assert some.n_pieces == 4
    seen = set()
    for seed in range(1500):
        crops = some.crops(generator(seed))
        assert sorted(i for i, _ in crops) == [0, 0, 1, 2]
        seen |= set(crops)
    first = [start for i, start in seen if i == 0]
    assert min(first) == 0 and max(first) == 260  # 260 + 250 is the clip's end
    assert {start for i, start in seen if i} == {0}
    assert some.crops(generator(1)) == some.crops(generator(1)) != some.crops(generator(2))


def test_gather_puts_crops_and_sources_in_a_row() -> None:
    some = data()
    buffer = some.buffer(3)
    x, y = some.gather([(0, 17), (2, 0), (0, 450)], buffer)
    assert (len(x), len(y), x.shape[1]) == (250 + 90 + 250, 590, 6)
    assert x[:, 0].tolist() == [0] * 250 + [2] * 90 + [0] * 250
    assert x[:, 1].tolist() == [*range(17, 267), *range(90), *range(450, 700)]
    np.testing.assert_array_equal(x[:250, 4:], some.frames[0][1][17:267].astype(np.float32))
    assert torch.equal(y, (x[:, 2:4] > 0.5).float())
    shorter, _ = some.gather([(1, 0)], buffer)
    assert shorter[:, 0].tolist() == [1] * 250


@pytest.mark.parametrize("weight_decay", [None, 0.1])
def test_heads_side_by_side_are_as_if_alone(weight_decay: float | None) -> None:
    some = data()
    together = LinearHeads(3, 6, 2, generator(5))
    run = Run((0.01, 0.1, 1.0), 12, 6, 3, weight_decay)
    train(together, some, run, generator(7), quiet)
    logits = logits_of(together, some.frames[0])
    for i, lr in enumerate(run.lrs):
        alone = LinearHeads(1, 6, 2, generator(5))
        train(alone, some, Run((lr,), 12, 6, 3, weight_decay), generator(7), quiet)
        np.testing.assert_allclose(
            logits[i], logits_of(alone, some.frames[0])[0], rtol=1e-5, atol=1e-4
        )


def test_training_is_plain_torchs() -> None:
    """A loop as one would write it, on the crops that the generator gives."""
    some = data()
    heads = LinearHeads(1, 6, 2, generator(5))
    layer = nn.Linear(6, 2)
    with torch.no_grad():
        layer.weight.copy_(heads.weights[0].T)
        layer.bias.copy_(heads.biases[0])
    train(heads, some, Run((0.05,), 30, 12, 3), generator(7), quiet)
    optimizer, draw, step = torch.optim.Adam(layer.parameters()), generator(7), 0
    factor = warmup_cosine(12, 30)
    while step < 30:
        crops = some.crops(draw)
        for batch in (crops[:3], crops[3:]):
            if step == 30:
                break
            x, y = some.gather(batch, some.buffer(3))
            optimizer.param_groups[0]["lr"] = 0.05 * factor(step)
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(layer(x), y).backward()
            optimizer.step()
            step += 1
    torch.testing.assert_close(heads.weights[0].T, layer.weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(heads.biases[0], layer.bias, atol=1e-6, rtol=1e-5)


def test_logits_of_long_clips_come_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    some, heads = data(), LinearHeads(2, 6, 2, generator())
    whole = logits_of(heads, some.frames[0])
    assert whole.shape == (2, 700, 2)
    monkeypatch.setattr(probe, "_ROWS_AT_ONCE", 128)
    np.testing.assert_allclose(logits_of(heads, some.frames[0]), whole, atol=1e-6)


def test_bf16_is_near() -> None:
    some = data()
    found = []
    for bf16 in (False, True):
        heads = LinearHeads(1, 6, 2, generator(5))
        train(heads, some, Run((0.05,), 30, 12, 3, bf16=bf16), generator(7), quiet)
        found.append(logits_of(heads, some.frames[1]))
    assert 0 < np.abs(found[0] - found[1]).max() < 0.5


def test_progress_is_told() -> None:
    lines: list[str] = []
    train(
        LinearHeads(1, 6, 2, generator()), data(), Run((0.1,), 12, 0, 4), generator(), lines.append
    )
    assert [line.split(",")[0] for line in lines] == ["step 10 of 12", "step 12 of 12"]
