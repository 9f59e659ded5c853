"""What else the references of training hold: groups of the optimiser, defaults, scores, losses.

`COVERED` says where each topic of the reference data is checked. What is not, and why:

| reference | topic | why |
|---|---|---|
| atst_sed.cases.json | training_step | mean-teacher training on DESED is no recipe here: ATST-SED is evaluated, and fine-tuned like all others |
| | schedules | its ramp-up of lr and consistency weight belongs to that training |
| | ema | the teacher's rule, min(1 - 1 / (step + 1), 0.999) before a step, belongs to it too; `Ema` has another one, after a step |
| | batch_composition | the four kinds of clips in its batches belong to it too |
| | settings | of that training; what of it concerns the model is in test_atst_sed.py |
| | label_encoding: active_frame_ranges | on its grid of 64 ms; targets here are on that of 40 ms, to which its scores are brought |
| psla.cases.json | metrics_and_ensembling: acc_argmax | the share of clips whose best class is the first of their labels is no metric here |
| eff_training.cases.json | defaults | of three scripts; those that recipes have are in this module, the rest (workers, devices, names) has no counterpart |
"""  # noqa: E501

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from downstream.metrics import event_f1, segment_error_rate
from hear_pretrainedsed.model import SEDModel, build_checkpoint
from hear_pretrainedsed.registry import get_checkpoint
from hear_pretrainedsed.training.param_groups import param_groups
from pretraining.objectives import objective
from pretraining.presets import PRESETS
from pretraining.validation import median
from tests.pretraining.test_objectives import Batch, Given

TESTS = Path(__file__).parent
COVERED = {
    "parity/training.json": {
        "encode": "test_events.py",
        "label_transform": "test_events.py",
        "decode": "test_events.py",
        "decode_mf9": "test_events.py",
        "decode_mfNone": "test_events.py",
        "decode_mf1": "test_events.py",
        "decode_mf4": "test_events.py",
        "decode_long": "test_events.py",
        "sampling": "pretraining/test_sampling.py",
        "frame_shift1000": "test_training_augment_references.py",
        "frame_shift998": "test_training_augment_references.py",
        "time_mask0": "test_training_augment_references.py",
        "time_mask1": "test_training_augment_references.py",
        "filter_aug3": "test_training_augment_references.py",
        **{f"filter_aug{n}": "test_training_augment_references.py" for n in range(3)},
        "mixstyle": "test_training_augment_references.py",
        **{f"freq_warp{n}": "test_training_augment_references.py" for n in range(6)},
        "freq_warp": "test_training_augmentation.py",
        "random_resize_crop": "test_training_augment_references.py",
        **{f"wavmix{n}": "test_augment.py" for n in range(3)},
        "loss": "test_training_references.py",
        "score": "test_training_references.py",
        "dcase_labels": "downstream/test_targets.py",
        "optimizer": "test_training_param_groups.py",
        "schedule": "test_training_schedule.py",
    },
    "parity_efficient/eff_training.cases.json": {
        "defaults": "test_training_references.py",
        "training_step": "pretraining/test_objectives.py",
        "optimizer_groups_fmn10_tf256_lr3e-3_seqlr8e-4_adamw_wd0.02": "test_training_references.py",
        "lr_factor": "test_training_schedule.py",
        "sampling_weights": "pretraining/test_sampling.py",
        "label_encoding": "pretraining/test_encoding.py",
        "merge_overlapping_events": "pretraining/test_encoding.py",
    },
    "parity_efficient/psla.cases.json": {
        "frontend": "test_psla.py",
        "mixup": "test_training_augment_references.py",
        "masking": "test_training_augment_references.py",
        "sampling_weight": "pretraining/test_sampling.py",
        "label_enhancement": "pretraining/test_label_enhancement.py",
        "weight_averaging": "pretraining/test_weight_averaging.py",
        "metrics_and_ensembling": "pretraining/test_ensembling.py",
        "lr_schedule": "test_training_schedule.py",
    },
    "parity_efficient/atst_sed.cases.json": {
        "training_step": None,
        "schedules": None,
        "ema": None,
        "median": "test_atst_sed.py",
        "label_encoding": "test_atst_sed.py",
        "batch_composition": None,
        "settings": None,
    },
}


@pytest.mark.parametrize("file", COVERED)
def test_every_topic_is_checked_somewhere_or_in_the_table(shared: Path, file: str) -> None:
    topics = json.loads((shared / file).read_text()).keys()
    assert topics == COVERED[file].keys()
    for topic, test in COVERED[file].items():
        if test is None:
            assert f"| {topic} |" in (__doc__ or "")
        else:
            assert (TESTS / test).is_file(), topic


def training(shared: Path, topic: str) -> Any:
    return json.loads((shared / "parity" / "training.json").read_text())[topic]


def efficient(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "parity_efficient" / "eff_training.cases.json").read_text())


def without_numbers(checkpoint: str) -> SEDModel:
    with torch.device("meta"):
        return build_checkpoint(get_checkpoint(checkpoint))


# ---- groups of the optimiser ----


@pytest.mark.parametrize("name", ["ATST-F", "BEATs"])
@pytest.mark.parametrize(
    ("setting", "weight_decay", "vector_decay"),
    [
        ("audioset_adam_lr7e-5_wd0", 0.0, 0.0),
        ("audioset_adamw_lr7e-5_wd0.001", 0.001, 0.01),  # vectors: what AdamW has by itself
    ],
)
def test_two_groups_of_audioset(
    shared: Path, name: str, setting: str, weight_decay: float, vector_decay: float
) -> None:
    wanted = training(shared, "optimizer")[name][setting]["groups"]
    model = without_numbers({"ATST-F": "atst_f.strong", "BEATs": "beats.strong"}[name])
    groups = param_groups(model, 7e-5, weight_decay, 1.0, vector_decay=vector_decay)
    for reference, vectors in zip(wanted, (True, False), strict=True):
        own = [g for g in groups if (g["params"][0].ndim <= 1) == vectors]
        assert {g["lr"] for g in own} == {reference["lr"]}
        assert {g["weight_decay"] for g in own} == {reference["weight_decay"]}
        params = [p for g in own for p in g["params"]]
        assert len(params) == reference["n_params"]
        assert sum(p.numel() for p in params) == reference["n_elements"]
        assert {p.ndim for p in params} == set(reference["ndim"])


GROUPS = "optimizer_groups_fmn10_tf256_lr3e-3_seqlr8e-4_adamw_wd0.02"
N_FREQS = 2  # rotary frequencies, parameters in the original's layer-wise groups, are constants


def test_layer_wise_lrs_of_efficientsed(shared: Path) -> None:
    """The original has a group for each parameter; here those of one lr and kind are together."""
    wanted = efficient(shared)[GROUPS]["0.9"]
    model = without_numbers("fmn10.strong+tf-256")
    groups = param_groups(
        model, 8e-4, 0.01, 0.9, vector_decay=0.01, backbone_lr=3e-3, decay_last=False
    )
    assert sum(len(g["params"]) for g in groups) == wanted["groups"] - N_FREQS
    assert sorted({round(g["lr"], 12) for g in groups}) == wanted["distinct_lrs"]
    assert [{g["weight_decay"] for g in groups}] == [set(wanted["distinct_weight_decay"])]
    lrs = {id(p): g["lr"] for g in groups for p in g["params"]}
    by_name = {name: lrs[id(p)] for name, p in model.named_parameters()}
    for number in range(17):
        own = {lr for name, lr in by_name.items() if f".features.{number}." in name}
        assert list(own) == [pytest.approx(3e-3 * 0.9 ** (16 - number), rel=1e-12)]
    for group in wanted["first"]:
        name = group["keys"][0].replace("model.fmn.", "backbone.")
        assert by_name[name] == pytest.approx(group["lr"], rel=1e-12), name
    assert by_name["head.weak.bias"] == wanted["last"][-1]["lr"]


def test_four_groups_of_efficientsed_without_layer_decay(shared: Path) -> None:
    wanted = efficient(shared)[GROUPS]["0.0"]["first"]
    model = without_numbers("fmn10.strong+tf-256")
    groups = param_groups(model, 8e-4, 0.02, 1.0, vector_decay=0.01, backbone_lr=3e-3)
    found: dict[tuple[float, float], int] = {}
    for group in groups:
        key = (group["lr"], group["weight_decay"])
        found[key] = found.get(key, 0) + len(group["params"])
    reference = {(g["lr"], g["weight_decay"]): g["tensors"] for g in wanted}
    assert found == reference


def test_a_sequence_model_may_have_its_own_lr() -> None:
    model = without_numbers("fmn04.strong+tf-104")
    groups = param_groups(model, 1.0, 0.0, 0.5, backbone_lr=4.0, sequence_lr=3.0)
    lrs = {id(p): g["lr"] for g in groups for p in g["params"]}
    own = {name: lrs[id(p)] for name, p in model.named_parameters()}
    parts = {name.split(".")[0] for name in own}
    for part in parts - {"backbone"}:
        wanted = 3.0 if part == "sequence_model" else 1.0
        assert {lr for name, lr in own.items() if name.startswith(part)} == {wanted}
    assert max(lr for name, lr in own.items() if name.startswith("backbone")) == 2.0
    assert [g["name"] for g in groups[2:4]] == [
        "sequence model, matrices",
        "sequence model, vectors",
    ]


# ---- defaults of scripts ----

SCRIPTS = {
    "fmn_student-fmn10": "ex_audioset_strong",
    "fmn_online": "ex_audioset_strong_online_distillation",
}


@pytest.mark.parametrize("preset", SCRIPTS)
def test_recipes_have_the_scripts_defaults(shared: Path, preset: str) -> None:
    """Where the papers recommend nothing else: the lr, and distillation itself."""
    wanted, recipe = efficient(shared)["defaults"][SCRIPTS[preset]], PRESETS[preset]
    off = {"freq_warp", "filter_augment", "mixstyle", "time_mask"}
    assert recipe.batch == wanted["batch_size"]
    assert recipe.accumulation == wanted["accumulate_grad_batches"]
    assert recipe.n_epochs == wanted["n_epochs"]
    assert recipe.epoch_clips == wanted["epoch_len"]
    assert recipe.valid_every_epochs == wanted["check_val_every_n_epoch"]
    assert recipe.sampling == "uniform" and not wanted["use_balanced_sampler"]
    assert recipe.optimizer == "adam" and not wanted["adamw"]
    assert recipe.weight_decay == wanted["weight_decay"]
    assert recipe.layer_decay == wanted["lr_decay"]
    assert recipe.schedule == "cosine" and wanted["schedule_mode"] == "cos"
    augmentation = recipe.augmentation
    assert augmentation.wavmix == wanted["wavmix_p"]
    assert augmentation.mixup == wanted["mixup_p"]
    assert augmentation.frame_shift == wanted["frame_shift_range"]
    assert not augmentation.mixup_larger_share and augmentation.draw_mel_edges
    assert all(getattr(augmentation, name) is None for name in off)
    assert wanted["mixstyle_p"] == wanted["max_time_mask_size"] == 0


def test_the_online_recipe_mixes_and_weighs_as_the_script(shared: Path) -> None:
    wanted = efficient(shared)["defaults"][SCRIPTS["fmn_online"]]
    recipe = PRESETS["fmn_online"]
    weak = recipe.weak_augmentation
    assert recipe.augmentation.mixup_beta == (0.3, 0.2)
    assert weak.mixup == wanted["as_weak_mixup_p"] and weak.mixup_larger_share
    assert weak.mixup_beta == (wanted["as_weak_mixup_alpha"],) * 2
    assert weak.frame_shift is None and weak.wavmix is None
    online, strong = (
        wanted[f"{name}_loss_weight"] for name in ("online_distillation", "strong_supervised")
    )
    half = wanted["online_distillation_strong_ratio"]
    on_strong = recipe.strong_weight * recipe.distillation_weight
    assert on_strong == pytest.approx(online * half)
    assert recipe.strong_weight - on_strong == pytest.approx(strong)
    assert recipe.weak_weight == pytest.approx(online * (1 - half))
    assert recipe.weak_batch == recipe.batch


# ---- losses and scores ----


def test_the_loss_is_the_reference(shared: Path) -> None:
    arrays = np.load(shared / "parity" / "training.npz")
    parts = {
        name: torch.from_numpy(arrays[f"loss.{name}"]).transpose(1, 2)
        for name in ("logits", "labels", "pseudo")
    }
    batch = Batch(
        torch.zeros(2, 1), targets=parts["labels"], pseudo=parts["pseudo"], spec=parts["logits"]
    )
    for share, wanted in training(shared, "loss")["values"].items():
        loss = objective("strong", distillation_weight=float(share))
        assert loss(Given(), batch).mean().item() == pytest.approx(wanted, rel=1e-6)


def test_the_scores_of_the_reference_s_events(shared: Path) -> None:
    facts = training(shared, "score")
    both = [
        {
            file: [(e["start"] / 1000, e["end"] / 1000, e["label"]) for e in facts[which][file]]
            for file in facts["files"]
        }
        for which in ("reference_events", "predicted_events")
    ]
    wanted = facts["scores"]
    for collar_s, name in ((0.2, "event_onset_200ms"), (0.05, "event_onset_50ms")):
        found = event_f1(*both, collar_s=collar_s).micro
        assert found == pytest.approx(wanted[name]["f_measure"], rel=1e-9)
    assert segment_error_rate(*both).micro == pytest.approx(wanted["segment_1s"]["error_rate"])


def test_the_median_of_logits_is_the_reference(shared: Path) -> None:
    arrays = np.load(shared / "parity_efficient" / "eff_training.npz")
    found = median(torch.from_numpy(arrays["median/in"]).T[None], 9)[0].T
    np.testing.assert_array_equal(found, arrays["median/out_9"])
