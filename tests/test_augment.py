"""Mixing: the cores against the reference's values, the draws against their distributions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from hear_pretrainedsed.training.augment import mix_audio, mix_spec, mixup, wavmix
from hear_pretrainedsed.training.batch import Batch


def test_wavmix_is_the_reference(shared: Path) -> None:
    arrays = np.load(shared / "parity" / "training.npz")
    facts = json.loads((shared / "parity" / "training.json").read_text())

    def stack(name: str) -> Tensor:
        return torch.stack([torch.from_numpy(arrays[f"wavmix.{name}{i}"]) for i in range(3)])

    batch = Batch(
        stack("audio"), stack("strong").transpose(1, 2), pseudo=stack("pseudo").transpose(1, 2)
    )
    cases = [facts[f"wavmix{i}"] for i in range(3)]
    assert [case["first"] for case in cases] == [0, 1, 2]
    partner = torch.tensor([case["second"] for case in cases])
    shares = torch.tensor([case["lambda"] for case in cases])
    mixed = mix_audio(batch, partner, shares)
    assert mixed.pseudo is not None
    for i in range(3):
        for name, ours in (("strong", mixed.targets), ("pseudo", mixed.pseudo)):
            wanted = torch.from_numpy(arrays[f"wavmix{i}.out_{name}"]).T
            torch.testing.assert_close(ours[i], wanted, atol=1e-6, rtol=0)
        audio = torch.from_numpy(arrays[f"wavmix{i}.out_audio"])
        torch.testing.assert_close(mixed.audio[i], audio, atol=1e-6, rtol=0)


def test_mixup_is_the_reference(shared: Path) -> None:
    arrays = np.load(shared / "parity" / "training.npz")

    def value(name: str) -> Tensor:
        x = torch.from_numpy(arrays[f"mixup.{name}"])
        return x if "mel" in name else x.transpose(1, 2)

    labels = {"targets": value("labels"), "pseudo": value("pseudo")}
    batch = Batch(torch.zeros(5, 1), spec=value("mel"), **labels)
    partner, shares = (torch.from_numpy(arrays[f"mixup.{name}"]) for name in ("perm", "coef"))
    mixed = mix_spec(batch, partner, shares)
    for ours, name in ((mixed.spec, "mel"), (mixed.targets, "labels"), (mixed.pseudo, "pseudo")):
        torch.testing.assert_close(ours, value(f"out_{name}"), atol=1e-6, rtol=0)


def batch_of(n: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    audio = torch.randn(n, 50, generator=generator) + 3  # an offset that mixing takes away
    targets = torch.eye(n)[:, None].expand(n, 4, n).clone()
    return Batch(audio, targets, spec=torch.randn(n, 1, 3, 5, generator=generator))


def test_wavmix_mixes_the_share_of_clips_that_it_is_told_and_leaves_the_rest() -> None:
    batch = batch_of(2000)
    mixed = wavmix(batch, torch.Generator().manual_seed(0), 0.3)
    same = (mixed.audio == batch.audio).all(dim=1)
    assert (~same).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(mixed.targets[same], batch.targets[same])
    assert mixed.audio[~same].mean(dim=1).abs().max() < 1e-5
    torch.testing.assert_close(mixed.targets.sum(dim=2), torch.ones(2000, 4))
    own = mixed.targets[:, 0].diagonal()
    assert (own >= 0.5).all()


@pytest.mark.parametrize(("augment", "beta"), [(wavmix, 2.0), (mixup, 0.2)])
def test_shares_are_the_larger_part_of_a_beta(augment: object, beta: float) -> None:
    batch = batch_of(1500)
    mixed = augment(batch, torch.Generator().manual_seed(0), 1.0)
    shares = mixed.targets[:, 0].diagonal().numpy()
    shares = shares[shares < 1]  # a clip may be its own partner
    draws = np.random.default_rng(0).beta(beta, beta, 20_000)
    assert stats.ks_2samp(shares, np.maximum(draws, 1 - draws)).pvalue > 1e-3


@pytest.mark.parametrize("augment", [wavmix, mixup])
def test_the_same_generator_gives_the_same_and_off_is_off(augment: object) -> None:
    batch = batch_of(8)
    one, two = (augment(batch, torch.Generator().manual_seed(3), 0.9) for _ in range(2))
    assert torch.equal(one.audio, two.audio) and torch.equal(one.targets, two.targets)
    off = augment(batch, torch.Generator().manual_seed(3), 0.0)
    assert torch.equal(off.audio, batch.audio) and torch.equal(off.targets, batch.targets)
    assert torch.equal(off.spec, batch.spec)


def test_mixup_is_drawn_for_the_whole_batch() -> None:
    batch = batch_of(16)
    generator = torch.Generator().manual_seed(0)
    mixed = [not torch.equal(mixup(batch, generator, 0.5).spec, batch.spec) for _ in range(200)]
    assert 0.35 < np.mean(mixed) < 0.65
