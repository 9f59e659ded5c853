"""Benchmarks of pre-training measure what the presets do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import data_path, training
from benchmarks.data_path import augmented, path_row, streams_of
from hear_pretrainedsed.frontends import KaldiMel, PreemphasisMel
from hear_pretrainedsed.registry import BACKBONES
from hear_pretrainedsed.training.augmentation import Augmentation
from hear_pretrainedsed.training.batch import Batch
from pretraining.presets import PRESETS, TRANSFORMERS


def clips_of(n: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    targets = torch.zeros(n, 250, 3)
    targets[torch.arange(n), :, torch.arange(n) % 3] = 1
    return Batch(0.1 * torch.randn(n, 160_000, generator=generator), targets, targets[:, 0])


@pytest.mark.parametrize("preset", data_path.PATHS)
def test_the_data_path_has_each_preset_s_streams(preset: str) -> None:
    recipe = PRESETS[preset]
    streams = streams_of(recipe, 4)
    wanted = [recipe.augmentation]
    if recipe.weak_batch is not None:
        wanted.append(recipe.weak_augmentation)
    assert [augmentation for _, augmentation in streams] == wanted
    assert [len(clips.corpus) for clips, _ in streams] == [4 // len(wanted)] * len(wanted)
    assert [clips.has_targets for clips, _ in streams] == [True, False][: len(wanted)]


def test_a_row_goes_through_the_preset_s_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stream with its own, the teacher's specs beside the student's."""
    torch.set_num_threads(1)
    seen: list[tuple[Augmentation, Batch]] = []

    def on_spec(self: Augmentation, batch: Batch, generator: torch.Generator) -> Batch:
        seen.append((replace(self, spec_mask_value=None), batch))
        return batch

    monkeypatch.setattr(Augmentation, "on_spec", on_spec)
    row = path_row("fmn_online", 2, 1, 125)
    recipe = PRESETS["fmn_online"]
    assert row[:2] == ("fmn_online", f"{recipe.batch + recipe.weak_batch} x {recipe.accumulation}")
    assert [augmentation for augmentation, _ in seen[:2]] == [
        recipe.augmentation,
        recipe.weak_augmentation,
    ]
    shapes = [(batch.spec.shape, batch.teacher_spec.shape) for _, batch in seen[:2]]
    assert shapes == [((1, 1, 128, 1000), (1, 1, 128, 998))] * 2


def test_a_batch_is_augmented_as_in_a_step_of_training() -> None:
    student, teacher = PreemphasisMel(periodic=False), KaldiMel(mean=0, std=1)
    plain = augmented(clips_of(2), Augmentation(), student, None, torch.Generator())
    assert torch.equal(plain.spec, student(clips_of(2).audio)) and plain.teacher_spec is None
    every = Augmentation(
        wavmix=1.0, mixup=1.0, mixstyle=1.0, freq_warp=1.0, spec_mask=(9, 9), draw_mel_edges=True
    )
    batches = [
        augmented(clips_of(4), every, student, teacher, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(batches[0].spec, batches[1].spec)
    assert not torch.equal(batches[0].spec, batches[2].spec)
    assert batches[0].teacher_spec.shape == (4, 1, 128, 998)
    assert not torch.equal(batches[0].targets, clips_of(4).targets)


def test_training_has_a_row_for_every_backbone_that_is_trained() -> None:
    rows = {name: training.recipe_of(name) for name in training.ROWS}
    backbones = {backbone for _, backbone in rows.values()}
    fmn = {name for name in BACKBONES if name.startswith("fmn")}
    assert {*TRANSFORMERS, "psla", *fmn} <= backbones
    assert any(recipe.sequence_model == "gru-2048" for recipe, _ in rows.values())
    for name, (recipe, backbone) in rows.items():
        assert backbone in BACKBONES and recipe.name == training.ROWS[name][0]
        assert (training.N_CLIPS.get(name, 8) == 4) == (backbone in TRANSFORMERS)
