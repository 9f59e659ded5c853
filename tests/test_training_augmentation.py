"""Augmentation: what is drawn, its order, and that labels never come apart from the audio."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from hear_pretrainedsed.training import augment, augment_spec, augmentation
from hear_pretrainedsed.training.augmentation import Augmentation
from hear_pretrainedsed.training.batch import Batch

MASKED = -7.0
EVERYTHING = Augmentation(
    wavmix=0.5,
    frame_shift=0.125,
    mixup=0.6,
    mixstyle=0.6,
    time_mask=0.2,
    filter_augment=0.6,
    freq_warp=0.6,
    spec_mask=(8, 192),
    spec_mask_value=MASKED,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int = 6, mels: int = 32, frames: int = 250) -> Batch:
    chance = generator(5)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=chance)

    return Batch(
        draw(n, 640),
        targets=draw(n, frames, 3),
        pseudo=draw(n, frames, 3),
        weak=draw(n, 3),
        spec=draw(n, 1, mels, 4 * frames) + 0.1,
        teacher_spec=draw(n, 1, mels, 4 * frames) + 0.1,
        files=tuple(f"{i}.wav" for i in range(n)),
    )


# ---- nothing comes apart ----


def painted(curves: Tensor) -> Batch:
    """Clips whose loudness is the target of class 0; the other classes say which clip it is.

    Curves (batch, 250) of 0 and 1; the audio is a tone of that amplitude, without an offset.
    """
    n = len(curves)
    tone = torch.tensor([1.0, -1.0]).repeat(320)
    who = torch.eye(n)
    targets = torch.cat([curves[..., None], who[:, None].expand(n, 250, n)], dim=2)
    audio = (curves[..., None] * tone).flatten(1)
    return Batch(audio, targets=targets, pseudo=targets.clone(), weak=who)


def with_specs(batch: Batch) -> Batch:
    """Front ends: the amplitude of each 10 ms, plus 1, in all mels (16 for the teacher)."""
    amplitude = batch.audio.unflatten(1, (-1, 160)).abs().mean(dim=2)[:, None, None] + 1
    return replace(
        batch, spec=amplitude.repeat(1, 1, 32, 1), teacher_spec=amplitude.repeat(1, 1, 16, 1)
    )


def check_aligned(spec: Tensor, curves: Tensor, masked: Tensor) -> None:
    """Inside an event and outside all, a mel is a rising straight line of its target.

    Nothing that is done is any other thing to the targets; where the rounding of a shift may show,
    at the edges of events, no one looks.
    """
    inside = (curves == curves.roll(1, 1)) & (curves == curves.roll(-1, 1))
    inside &= (masked == masked.roll(1, 1)) & (masked == masked.roll(-1, 1))
    for row, curve, looked, silent in zip(spec, curves, inside, masked, strict=True):
        quiet = row[0][:, 1::4][:, silent & looked]
        assert ((quiet.abs() < 1e-6) | (quiet == MASKED)).all()
        for mel in row[0][:, 1::4]:
            seen = looked & ~silent & (mel != MASKED)
            x, y = curve[seen].double(), mel[seen].double()
            if not len(x) or x.max() - x.min() < 1e-3:
                continue
            slope, offset = np.polyfit(x, y, 1)
            assert slope > 0
            np.testing.assert_allclose(slope * x + offset, y, atol=2e-3)


@st.composite
def some_curves(draw: st.DrawFn) -> Tensor:
    n = draw(st.integers(2, 4))
    curves = torch.zeros(n, 250)
    for curve in curves:
        for _ in range(draw(st.integers(0, 3))):
            start = draw(st.integers(0, 249))
            curve[start : start + draw(st.integers(1, 100))] = 1
    return curves


@st.composite
def some_augmentations(draw: st.DrawFn) -> Augmentation:
    names = ["frame_shift", "mixup", "mixstyle", "time_mask", "filter_augment", "freq_warp"]
    off = [name for name in [*names, "spec_mask"] if draw(st.booleans())]
    mixing = draw(st.sampled_from([{}, {"wavmix": 0.5}, {"wav_mixup": 0.5}]))
    return replace(
        EVERYTHING,
        **{**dict.fromkeys([*off, "wavmix"]), **mixing},
        mixup_larger_share=draw(st.booleans()),
        repaired_time_mask=draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(curves=some_curves(), chosen=some_augmentations(), seed=st.integers(0, 1000))
def test_labels_stay_with_the_audio(curves: Tensor, chosen: Augmentation, seed: int) -> None:
    chance = generator(seed)
    batch = chosen.on_spec(with_specs(chosen.on_audio(painted(curves), chance)), chance)
    masked = (batch.targets[..., 1:] == 0).all(dim=2)
    assert masked.any() == (chosen.time_mask is not None)
    check_aligned(batch.spec, batch.targets[..., 0], masked)
    check_aligned(batch.teacher_spec, batch.targets[..., 0], masked)
    who = batch.weak[:, None].expand(-1, 250, -1)
    torch.testing.assert_close(batch.targets[..., 1:][~masked], who[~masked])
    torch.testing.assert_close(batch.pseudo[~masked], batch.targets[~masked])
    if chosen.repaired_time_mask:
        assert (batch.pseudo[masked] == 0).all()
    else:  # as in the originals: the scores of what is no longer heard stay
        torch.testing.assert_close(batch.pseudo[..., 1:], who)


@settings(max_examples=20, deadline=None)
@given(chosen=some_augmentations(), seed=st.integers(0, 1000))
def test_targets_and_pseudo_labels_may_be_missing(chosen: Augmentation, seed: int) -> None:
    whole = noise()
    bare = replace(whole, targets=None, pseudo=None, weak=None, teacher_spec=None)
    batches = []
    for batch in (whole, bare):
        chance = generator(seed)
        batches.append(chosen.on_spec(chosen.on_audio(batch, chance), chance))
    assert torch.equal(batches[0].spec, batches[1].spec)
    assert torch.equal(batches[0].audio, batches[1].audio)
    assert (batches[1].targets, batches[1].pseudo, batches[1].weak) == (None, None, None)
    assert batches[1].teacher_spec is None and batches[0].files == whole.files


def test_what_goes_in_is_not_written_to() -> None:
    batch = noise()
    before = {f.name: torch.clone(v) for f in fields(batch) if torch.is_tensor(v := f_of(batch, f))}
    chance = generator()
    for _ in range(5):
        EVERYTHING.on_spec(EVERYTHING.on_audio(batch, chance), chance)
    assert all(torch.equal(getattr(batch, name), value) for name, value in before.items())


def f_of(batch: Batch, field: Any) -> Any:
    return getattr(batch, field.name)


# ---- what is drawn ----


def test_nothing_is_done_by_default_and_nothing_drawn() -> None:
    batch, chance = noise(), generator()
    before = chance.get_state()
    off = Augmentation()
    assert off.on_spec(off.on_audio(batch, chance), chance) is batch
    assert torch.equal(chance.get_state(), before)


def test_the_same_generator_gives_the_same_and_torch_s_own_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two = (EVERYTHING.on_spec(noise(), generator(3)) for _ in range(2))
    assert torch.equal(one.spec, two.spec) and torch.equal(one.targets, two.targets)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(EVERYTHING.on_spec(noise(), generator(4)).spec, one.spec)


@pytest.mark.parametrize("name", ["mixup", "mixstyle", "filter_augment", "freq_warp"])
def test_probabilities_are_of_a_batch(name: str) -> None:
    chosen, batch, chance = Augmentation(**{name: 0.3}), noise(mels=12, frames=8), generator()
    same = [(chosen.on_spec(batch, chance).spec == batch.spec).all().item() for _ in range(400)]
    assert 0.62 < np.mean(same) < 0.78


def test_the_order_is_the_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    order = [
        *("wavmix", "frame_shift", "mixup", "mixstyle"),
        *("time_mask", "filter_augment", "freq_warp", "spec_mask"),
    ]
    called = []
    for name in order:

        def noted(batch: Batch, *_: object, name: str = name, **__: object) -> Batch:
            called.append(name)
            return batch

        monkeypatch.setattr(augmentation, name, noted)
    EVERYTHING.on_spec(EVERYTHING.on_audio(noise(), generator()), generator())
    assert called == order


def test_a_shift_is_a_normal_draw_cut_towards_zero() -> None:
    spec = torch.zeros(3000, 1, 1, 1000)
    spec[..., 0] = 1
    targets = torch.zeros(3000, 250, 1)
    targets[:, 0] = 1
    batch = augment_spec.frame_shift(Batch(spec[:, 0, 0], targets, spec=spec), generator(), 0.125)
    shifts = (batch.spec[:, 0, 0].argmax(dim=1) + 500) % 1000 - 500
    assert stats.kstest(shifts.numpy(), "norm", args=(0, 125)).pvalue > 1e-3
    moved = batch.targets[:, :, 0].argmax(dim=1)
    assert torch.equal(moved, (shifts.double() / 4).round().long() % 250)


def test_a_small_shift_is_nothing_as_often_as_a_draw_is_below_one_frame() -> None:
    batch = replace(noise(4000, mels=1, frames=5), teacher_spec=None)  # 20 spec frames
    moved = augment_spec.frame_shift(batch, generator(), 0.1)  # a deviation of 2
    still = (moved.spec == batch.spec).flatten(1).all(dim=1).float().mean().item()
    assert still == pytest.approx(stats.norm.cdf(0.5) - stats.norm.cdf(-0.5), abs=0.04)


def test_the_padding_of_a_longer_spec_stays_where_it_is() -> None:
    spec = torch.zeros(2, 1, 1, 1056)
    spec[..., 1000:] = 5
    spec[..., 996:1000] = 1
    targets = torch.zeros(2, 250, 1)
    targets[:, 249] = 1
    batch = augment_spec.shift(Batch(spec[:, 0, 0], targets, spec=spec), torch.tensor([8, -4]))
    assert (batch.spec[..., 1000:] == 5).all()
    assert batch.spec[:, 0, 0].argwhere().tolist()[:4] == [[0, n] for n in range(4, 8)]
    assert batch.targets.argwhere().tolist() == [[0, 1, 0], [1, 248, 0]]


def test_the_time_mask_has_the_sizes_that_it_is_told() -> None:
    batch, widths, starts = noise(2), [], []
    chance = generator()
    for _ in range(400):
        silent = (augment_spec.time_mask(batch, chance, 0.1, pseudo=False).targets[0] == 0).all(
            dim=1
        )
        widths.append(int(silent.sum()))
        starts.append(int(silent.int().argmax()))
    assert (min(widths), max(widths)) == (12, 24)  # 25 is excluded
    assert min(starts) == 0 or min(starts) < 5
    assert max(starts) > 215


def test_filters_have_3_to_5_bands_of_6_mels_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[list[int], Tensor]] = []

    def noted(batch: Batch, edges: list[int], gains: Tensor) -> Batch:
        drawn.append((edges, gains))
        return batch

    monkeypatch.setattr(augment_spec, "filter_bands", noted)
    chance = generator()
    for _ in range(300):
        augment_spec.filter_augment(noise(mels=40), chance, 1.0)
    assert {len(edges) - 1 for edges, _ in drawn} == {3, 4, 5}
    assert {edges[0] for edges, _ in drawn} == {0} and {edges[-1] for edges, _ in drawn} == {40}
    narrowest = min(int(np.diff(edges).min()) for edges, _ in drawn)
    assert narrowest == 6
    gains = torch.cat([gains.flatten() for _, gains in drawn]).numpy()
    assert stats.kstest(gains, "uniform", args=(-6, 12)).pvalue > 1e-3
    drawn.clear()
    for _ in range(50):
        augment_spec.filter_augment(noise(mels=16), chance, 1.0)
    assert min(int(np.diff(edges).min()) for edges, _ in drawn) == 3  # 5 bands of 16 mels


def test_warps_take_six_tenths_of_the_mels_and_more(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int]] = []

    def noted(batch: Batch, first: int, height: int) -> Batch:
        drawn.append((first, height))
        return batch

    monkeypatch.setattr(augment_spec, "warp", noted)
    chance = generator()
    for _ in range(500):
        augment_spec.freq_warp(noise(2, mels=20), chance, 1.0)
    assert {height for _, height in drawn} == set(range(12, 20))
    assert {first for first, height in drawn if height == 14} == set(range(7))


@pytest.mark.parametrize("beta", [(0.3, 0.2), (0.3, 0.3)])
@pytest.mark.parametrize("larger", [True, False])
def test_shares_are_of_the_beta_that_is_told(beta: tuple[float, float], larger: bool) -> None:
    shares = augment.beta_shares(4000, beta, generator(), larger=larger).numpy()
    draws = np.random.default_rng(0).beta(*beta, 20_000)
    draws = np.maximum(draws, 1 - draws) if larger else draws
    assert stats.ks_2samp(shares, draws).pvalue > 1e-3


def test_psla_s_mixup_has_shares_about_a_half() -> None:
    who = torch.eye(1500)
    batch = Batch(torch.randn(1500, 4, generator=generator()), weak=who)
    mixed = augment.wav_mixup(batch, generator(), 0.5)
    own = mixed.weak.diagonal()
    assert (own < 1).float().mean().item() == pytest.approx(0.5, abs=0.05)
    draws = np.random.default_rng(0).beta(10, 10, 20_000)
    assert stats.ks_2samp(own[own < 1].numpy(), draws).pvalue > 1e-3
    torch.testing.assert_close(mixed.weak.sum(dim=1), torch.ones(1500))


def test_masks_are_each_clip_s_own() -> None:
    batch = replace(noise(200, mels=128), teacher_spec=None)
    masked = Augmentation(spec_mask=(48, 192), spec_mask_value=MASKED).on_spec(batch, generator())
    gone = masked.spec[:, 0] == MASKED
    mels, times = gone.all(dim=2).sum(dim=1), gone.all(dim=1).sum(dim=1)
    assert (mels.min(), mels.max()) == (0, 47) and times.max() <= 191
    assert times.float().mean().item() == pytest.approx(95.5, abs=12)
    assert len(set(mels.tolist())) > 30
    assert torch.equal(masked.targets, batch.targets)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"wavmix": 1.5}, "wavmix is 1.5; it is above 0 and at most 1"),
        ({"mixup": 0.0}, "mixup is 0.0"),
        ({"freq_warp": float("nan")}, "freq_warp is nan"),
        ({"frame_shift": -0.1}, "frame_shift is -0.1"),
        ({"time_mask": 0.05}, "time_mask is 0.05; it is above 0.05"),
        ({"wavmix": 0.5, "wav_mixup": 0.5}, "wavmix 0.5 and wav_mixup 0.5 both mix audio"),
        ({"mixup_beta": (0.2, 0.0)}, "mixup_beta is"),
        ({"mixup_beta": (0.2,)}, "mixup_beta is"),
        ({"mixup_beta": (math.inf, 1)}, "mixup_beta is .inf, 1.; it is two finite numbers above"),
        ({"mixup_beta": (1, math.nan)}, "mixup_beta is"),
        ({"spec_mask_value": math.inf}, "spec_mask_value is inf; it is a finite number"),
        ({"spec_mask_value": math.nan}, "spec_mask_value is nan"),
        ({"spec_mask": (48, 0)}, "spec_mask is"),
    ],
)
def test_refuses(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Augmentation(**settings_)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec_frames", [626, 60])
def test_specs_that_do_not_go_with_the_frames_are_not_moved(spec_frames: int) -> None:
    batch = replace(noise(2), spec=torch.zeros(2, 1, 4, spec_frames), teacher_spec=None)
    for chosen in (Augmentation(frame_shift=0.1), Augmentation(time_mask=0.2)):
        with pytest.raises(ValueError, match=f"specs of {spec_frames} spec frames cannot be moved"):
            chosen.on_spec(batch, generator())


def test_a_teacher_at_another_rate_is_refused() -> None:
    batch = replace(noise(2), teacher_spec=torch.zeros(2, 1, 4, 500))
    with pytest.raises(ValueError, match="specs of 1000 and 500 spec frames"):
        Augmentation(frame_shift=0.1).on_spec(batch, generator())
