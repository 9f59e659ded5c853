"""Augmentations given what was drawn: the references' values, of PretrainedSED and EfficientSED."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hear_pretrainedsed.backbones.psla import MEAN, STD, PslaMel
from hear_pretrainedsed.training.augment import mix_audio, mix_spec
from hear_pretrainedsed.training.augment_spec import (
    MASK_VALUE,
    filter_bands,
    mask_spec,
    mask_time,
    mix_style,
    resize_crop,
    shift,
    stretches,
    warp,
)
from hear_pretrainedsed.training.batch import Batch


class Case:
    """Facts and arrays of one case of the training references."""

    def __init__(self, shared: Path, name: str) -> None:
        self.facts = json.loads((shared / "parity" / "training.json").read_text()).get(name, {})
        self.name = name
        self.arrays = np.load(shared / "parity" / "training.npz")

    def spec(self, name: str) -> Tensor:
        spec = torch.from_numpy(self.arrays[f"{self.name}.{name}"])
        return spec if spec.ndim == 4 else spec[:, None]

    def frames(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[f"{self.name}.{name}"]).transpose(1, 2)

    def batch(self) -> Batch:
        spec = self.spec("mel")
        labels = {}
        if f"{self.name}.labels" in self.arrays:
            labels = {"targets": self.frames("labels"), "pseudo": self.frames("pseudo")}
        return Batch(torch.zeros(len(spec), 1), spec=spec, teacher_spec=spec, **labels)

    def check(self, batch: Batch, atol: float = 1e-6) -> None:
        out = "out" if f"{self.name}.out" in self.arrays else "out_mel"
        torch.testing.assert_close(batch.spec, self.spec(out), atol=atol, rtol=0)
        torch.testing.assert_close(batch.teacher_spec, self.spec(out), atol=atol, rtol=0)
        for ours, name in ((batch.targets, "out_labels"), (batch.pseudo, "out_pseudo")):
            if ours is not None:
                torch.testing.assert_close(ours, self.frames(name), atol=atol, rtol=0)


@pytest.mark.parametrize("name", ["frame_shift1000", "frame_shift998"])
def test_frame_shift(shared: Path, name: str) -> None:
    case = Case(shared, name)
    case.check(shift(case.batch(), torch.tensor(case.facts["mel_shift"])))
    draws = torch.tensor(case.facts["gauss_draws"], dtype=torch.float64)
    assert draws.trunc().long().tolist() == case.facts["mel_shift"]
    assert int(case.spec("mel").shape[-1] * case.facts["shift_range"]) == case.facts["gauss_std"]


@pytest.mark.parametrize("name", ["time_mask0", "time_mask1"])
def test_time_mask_leaves_pseudo_labels_as_the_original_does(shared: Path, name: str) -> None:
    case = Case(shared, name)
    start, width = case.facts["start_frame"], case.facts["width_frames"]
    case.check(mask_time(case.batch(), start, width))
    repaired = mask_time(case.batch(), start, width, pseudo=True)
    assert (repaired.pseudo[:, start : start + width] == 0).all()
    kept = torch.arange(250)[(torch.arange(250) < start) | (torch.arange(250) >= start + width)]
    assert torch.equal(repaired.pseudo[:, kept], case.batch().pseudo[:, kept])


@pytest.mark.parametrize("number", range(3))
def test_filter_augment(shared: Path, number: int) -> None:
    case = Case(shared, f"filter_aug{number}")
    gains = torch.from_numpy(case.arrays[f"{case.name}.band_factors_db"])
    case.check(filter_bands(case.batch(), case.facts["boundaries"], gains), atol=5e-6)


def test_a_filter_of_one_band_does_nothing_in_the_original_and_is_never_drawn(shared: Path) -> None:
    case = Case(shared, "filter_aug3")
    case.check(case.batch())


def test_mixstyle(shared: Path) -> None:
    case = Case(shared, "mixstyle")
    partner, shares = (torch.from_numpy(case.arrays[f"mixstyle.{n}"]) for n in ("perm", "lambda"))
    case.check(mix_style(case.batch(), partner, shares), atol=5e-6)


@pytest.mark.parametrize("number", range(6))
def test_frequency_warp(shared: Path, number: int) -> None:
    case = Case(shared, f"freq_warp{number}")
    assert (case.facts["j"], case.facts["w"]) == (0, case.spec("mel").shape[-1])
    case.check(warp(case.batch(), case.facts["i"], case.facts["h"]), atol=5e-6)


def test_crop_of_a_canvas(shared: Path) -> None:
    case = Case(shared, "random_resize_crop")
    facts = case.facts
    spec = resize_crop(
        case.spec("mel"),
        (facts["i"], facts["h"]),
        (facts["j"], facts["w"]),
        tuple(facts["virtual_crop_scale"]),
    )
    torch.testing.assert_close(spec, case.spec("out"), atol=5e-6, rtol=0)


# ---- steps of EfficientSED ----

STEPS = ("online_seed3", "online_seed0", "offline_kd_seed4", "offline_kd_seed0")


@pytest.mark.parametrize("name", STEPS)
def test_strong_half_of_a_step(shared: Path, name: str) -> None:
    facts, arrays = efficient(shared, name)
    spec, teacher = arrays["step/strong/mel"], arrays["step/strong/teacher_mel"]
    labels, pseudo = (arrays[f"step/strong/{n}"].transpose(1, 2) for n in ("labels", "pseudo"))
    batch = Batch(torch.zeros(4, 1), targets=labels, pseudo=pseudo, spec=spec, teacher_spec=teacher)
    batch = shift(batch, torch.tensor(facts["strong_shift_frames"]))
    rolled = [row.roll(n, 0) for row, n in zip(labels, facts["strong_label_shift"], strict=True)]
    assert torch.equal(batch.targets, torch.stack(rolled))
    mix = facts["strong_mix"]
    if mix["perm"] is not None:  # the share is not the larger one here
        batch = mix_spec(batch, torch.tensor(mix["perm"]), torch.tensor(mix["c"]))
    wanted = {"strong_student_input": batch.spec}
    if name.startswith("online"):
        wanted["strong_teacher_input"] = batch.teacher_spec
        wanted["strong_labels_used"] = batch.targets.transpose(1, 2)
    for key, ours in wanted.items():
        torch.testing.assert_close(ours, arrays[f"step/{name}/{key}"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", STEPS[:2])
def test_weak_half_of_a_step(shared: Path, name: str) -> None:
    facts, arrays = efficient(shared, name)
    batch = Batch(
        torch.zeros(3, 1),
        weak=arrays["step/weak/target"],
        spec=arrays["step/weak/mel"],
        teacher_spec=arrays["step/weak/teacher_mel"],
    )
    mix = facts["weak_mix"]
    batch = mix_spec(batch, torch.tensor(mix["perm"]), torch.tensor(mix["lambda"]))
    assert batch.targets is None and batch.pseudo is None
    found = {
        "weak_student_input": batch.spec,
        "weak_teacher_input": batch.teacher_spec,
        "weak_target_used": batch.weak,
    }
    for key, ours in found.items():
        torch.testing.assert_close(ours, arrays[f"step/{name}/{key}"], atol=1e-6, rtol=0)


def efficient(shared: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    folder = shared / "parity_efficient"
    steps = json.loads((folder / "eff_training.cases.json").read_text())["training_step"]
    arrays = np.load(folder / "eff_training.npz")
    facts = next(step for step in steps if step["case"] == name)
    return facts, {key: torch.from_numpy(arrays[key]) for key in arrays}


# ---- PSLA ----


def psla(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "parity_efficient" / "psla.cases.json").read_text())


@pytest.mark.parametrize("number", range(4))
def test_masks_of_psla(shared: Path, number: int) -> None:
    facts = psla(shared)["masking"]
    run = facts["runs"][number]
    draws = torch.tensor([run["uniform_draws"]])
    mels = stretches(draws[:, :2], facts["freqm"], 128)
    times = stretches(draws[:, 2:], facts["timem"], 1056)
    assert (mels.tolist(), times.tolist()) == ([run["freq_mask"]], [run["time_mask"]])
    spec = torch.zeros(1, 1, 128, 1056)
    masked = mask_spec(Batch(torch.zeros(1, 1), spec=spec), mels, times).spec[0, 0]
    wanted = torch.zeros(128, 1056)
    wanted[slice(*run["freq_mask"])] = run["value_in_mask"]
    wanted[:, slice(*run["time_mask"])] = run["value_in_mask"]
    torch.testing.assert_close(masked, wanted, atol=1e-6, rtol=0)
    assert pytest.approx((0 - MEAN) / STD) == MASK_VALUE


@pytest.mark.parametrize("number", range(5))
def test_mixup_of_psla(shared: Path, number: int) -> None:
    cases = psla(shared)
    run = cases["mixup"]["runs"][number]
    order = [label.removeprefix("/p/") for label in cases["sampling_weight"]["label_order"]]
    audio = torch.from_numpy(np.load(shared / "parity_efficient" / "audio_10s.npz")["audio"])
    clips = [audio[0, :32000], audio[1, 16000:56000], audio[1, 80000:100000]]
    rows = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    n_samples = torch.tensor([len(clip) for clip in clips])
    labels = [text.split(",") for text in cases["mixup"]["labels"]]
    weak = torch.tensor([[float(name in names) for name in order] for names in labels])
    first = torch.tensor([run["index"]] * 3)
    partner = torch.tensor([run["partner"]] * 3)
    shares = torch.full((3,), run["lambda"])
    assert first.tolist() == [0, 0, 0]
    mixed = mix_audio(Batch(rows, weak=weak, n_samples=n_samples), partner, shares)
    assert not mixed.audio[0, 32000:].any()  # as long as the first clip, whatever the partner is
    torch.testing.assert_close(mixed.weak[0], torch.tensor(run["label"]), atol=1e-6, rtol=0)
    spec = PslaMel().clips(mixed.audio[:1], n_samples[:1], 40000)[0, 0, :, :200].T
    wanted = np.load(shared / "parity_efficient" / "psla.npz")[f"mixup/fbank_seed{run['seed']}"]
    gap = (spec - torch.from_numpy(wanted)).abs()
    assert gap.max() < 1e-2 and gap.mean() < 5e-5
