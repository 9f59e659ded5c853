"""Presets: the published settings, every number beside its name, every field read by something."""

from __future__ import annotations

import ast
from dataclasses import fields, replace
from pathlib import Path

import pytest

from hear_pretrainedsed.model import build_model
from hear_pretrainedsed.registry import CHECKPOINTS, EFFICIENTSED_PSDS1
from hear_pretrainedsed.training.augmentation import Augmentation
from hear_pretrainedsed.training.optimizer import groups, schedule_of
from hear_pretrainedsed.training.plan import Plan
from hear_pretrainedsed.training.settings import with_settings
from pretraining.build import sequence_model
from pretraining.config import Recipe, sequence_of
from pretraining.presets import PRESETS, get_preset

FMN = [f"{fmn}+{s}" if s else fmn for fmn, numbers in EFFICIENTSED_PSDS1.items() for s in numbers]
SLOW = {"fmn10+hybrid-256", "fmn10+gru-256", "fmn10+gru-512", "fmn10+gru-1024"} | {
    "fmn06+gru-160",
    "fmn20+gru-512",
    "fmn30+gru-768",
}
BACKBONES = ("atst_f", "beats", "fpasst", "m2d", "asit")


def test_every_preset_tells_what_it_reproduces_and_starts_from_what_there_is() -> None:
    for name, recipe in PRESETS.items():
        assert recipe.name == name and recipe.reproduces and recipe.published
        assert recipe.start is None or recipe.start in CHECKPOINTS, name
        assert recipe.teacher is None or CHECKPOINTS[recipe.teacher].labels
        assert recipe.published == "none" or any(c in recipe.published for c in "0123456789:")


@pytest.mark.parametrize("name", FMN)
def test_fmn_students_are_the_published_ones(name: str) -> None:
    recipe = PRESETS[f"fmn_student-{name}"]
    checkpoint = CHECKPOINTS[f"{name.partition('+')[0]}.strong" + name[5:]]
    assert recipe.published == f"PSDS1 {checkpoint.psds1}"
    small = name[:5] in ("fmn04", "fmn06")
    assert recipe.backbone_lr == (6e-3 if small else 3e-3)
    assert recipe.lr == (8e-4 if name in SLOW else 3e-3) and recipe.sequence_lr is None
    batches = {"fmn04": (128, 2), "fmn06": (128, 2), "fmn10": (64, 4)}
    assert (recipe.batch, recipe.accumulation) == batches.get(name[:5], (32, 8))
    wanted = checkpoint.sequence_model
    assert (recipe.sequence_model and sequence_of(recipe.sequence_model)) == wanted
    plan = recipe.plan(100_000)
    assert (plan.n_steps, plan.n_warmup_steps, plan.optimizer) == (46_920, 20_000, "adam")
    assert plan.valid_every_steps == 5 * 391


def test_an_fmn_s_blocks_learn_as_published() -> None:
    model = build_model("fmn04", head="linear", labels=("a", "b"))
    lrs = {g["name"]: g["lr"] for g in groups(model, PRESETS["fmn_student-fmn04"].plan(100_000))}
    assert lrs["block 16, matrices"] == 6e-3 and lrs["above the backbone, matrices"] == 3e-3
    assert lrs["block 0, matrices"] == pytest.approx(6e-3 * 0.9**16)


def test_online_distillation_is_the_published_sum() -> None:
    """0.1 of the labels, 0.45 of the teacher on strong clips, 0.45 on weak ones."""
    recipe = PRESETS["fmn_online"]
    soft = recipe.strong_weight * recipe.distillation_weight
    assert recipe.strong_weight - soft == pytest.approx(0.1)
    assert (soft, recipe.weak_weight) == (pytest.approx(0.45), 0.45)
    assert (recipe.weak_objective, recipe.teacher) == ("distillation", "beats.strong")
    assert (recipe.batch_pieces, recipe.weak_pieces) == (256, 256)
    assert recipe.plan(100_000).n_steps == 93_840
    assert recipe.augmentation.mixup_beta == (0.3, 0.2)
    assert recipe.weak_augmentation.mixup == 1.0


@pytest.mark.parametrize("backbone", BACKBONES)
def test_teachers_and_students(backbone: str) -> None:
    teacher, student = (PRESETS[f"strong_{x}-{backbone}"] for x in ("teacher", "student"))
    assert teacher.plan(100_000).n_steps == 30 * 391 and student.plan(100_000).n_steps == 120 * 391
    assert (teacher.sequence_model, teacher.sampling) == ("gru-2048", "strong")
    on = teacher.augmentation
    assert all((on.freq_warp, on.filter_augment, on.mixstyle, on.mixup)) and on.wavmix is None
    assert (student.distillation_weight, student.pseudo, student.sampling) == (
        0.9,
        "file",
        "uniform",
    )
    mixup_alone = Augmentation(mixup=0.3, draw_mel_edges=True)
    assert student.augmentation == mixup_alone
    assert teacher.start == student.start == f"{backbone}.weak"
    assert student.published == f"PSDS1 {CHECKPOINTS[f'{backbone}.strong'].psds1}"
    script = PRESETS[f"strong_student-{backbone}-script"]
    assert (script.n_warmup_steps, student.n_warmup_steps) == (20_000, 5_000)
    assert script.augmentation == replace(mixup_alone, wavmix=0.5)
    other = PRESETS[f"strong_teacher-{backbone}-script"]
    assert (other.n_warmup_steps, other.augmentation) == (20_000, teacher.augmentation)
    assert PRESETS[f"strong_student-no_step2-{backbone}"].start == f"{backbone}.ssl"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_an_ablation_reproduces_is_what_it_does(backbone: str) -> None:
    """Words of the card, against the settings."""
    for name, recipe in PRESETS.items():
        if not name.startswith(("strong_", "li_et_al")) or backbone not in name:
            continue
        told = recipe.reproduces
        with_rnn = recipe.sequence_model == "gru-2048"
        assert ("BiGRU" in told) == with_rnn, name
        assert ("distilled from" in told) == (recipe.pseudo == "file"), name
        assert ("SSL stage" in told) == (recipe.start == f"{backbone}.ssl"), name
    names = ("", "-no_rnn", "-no_step2")
    texts = [PRESETS[f"strong_teacher{name}-{backbone}"].reproduces for name in names]
    assert len(set(texts)) == 3


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_was_published_once_is_one_training(backbone: str) -> None:
    """A student without distillation has the numbers of a teacher without sequence model."""
    student = PRESETS[f"strong_student-no_kd-{backbone}"]
    teacher = PRESETS[f"strong_teacher-no_rnn-{backbone}"]
    same = {"name": teacher.name, "reproduces": teacher.reproduces}
    assert replace(student, **same) == teacher and "our reading" in student.reproduces
    for one in PRESETS.values():  # nothing else shares a number without sharing its settings
        if one.published == teacher.published and one.start == teacher.start:
            assert replace(one, **same) == teacher, one.name


def test_psla_s_schedules() -> None:
    full = PRESETS["weak-psla-audioset"].plan(1_000 * 100)
    factor = schedule_of(full)
    assert full.n_steps == 30_000 and full.betas == (0.95, 0.999) and full.weight_decay == 5e-7
    assert [factor(i) for i in (999, 2_000, 9_999, 10_000, 15_000)] == [0.95, 1, 1, 0.5, 0.25]
    balanced, fsd50k = PRESETS["weak-psla-balanced"], PRESETS["weak-psla-fsd50k"]
    assert (balanced.lr, balanced.n_epochs, balanced.halve_from_epoch) == (1e-3, 60, 35)
    assert (fsd50k.lr, fsd50k.batch, fsd50k.n_classes) == (5e-4, 24, 200)
    three = (PRESETS["weak-psla-audioset"], balanced, fsd50k)
    assert [p.average_from_epoch for p in three] == [16, 41, 21]
    assert all(p.keep_from_epoch == 1 for p in three)  # their ensemble is of all epochs
    assert [p.clip_s for p in three] == [10, 10, 30]
    assert balanced.sampling == "uniform" and fsd50k.sampling == full_sampling() == "psla"


def full_sampling() -> str:
    return PRESETS["weak-psla-audioset"].sampling


@pytest.mark.parametrize("name", [n for n in PRESETS if n.startswith("sequence-")])
def test_the_grid_of_sequence_models_can_be_built(name: str) -> None:
    recipe = PRESETS[name]
    narrow = replace(recipe, sequence_model=f"{sequence_of(recipe.sequence_model)[0]}-64")
    model = sequence_model(narrow, 16, 0)
    layers = model.rnn.num_layers if hasattr(model, "rnn") else len(model[-1].layers)
    assert layers == recipe.n_layers == int(name.split("-")[2].split("x")[0])


def test_every_field_of_a_recipe_is_read() -> None:
    folder = Path(__file__).resolve().parents[2] / "pretraining"
    read = set()
    for file in ("config.py", "build.py", "run.py", "sources.py", "plan_text.py", "command.py"):
        for node in ast.walk(ast.parse((folder / file).read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                if name in ("recipe", "self"):
                    read.add(node.attr)
    assert {field.name for field in fields(Recipe)} <= read


def test_every_field_of_a_plan_comes_from_the_recipe() -> None:
    """Those that fine-tuning alone sets are left as they are."""
    own = {field.name for field in fields(Plan)} & {field.name for field in fields(Recipe)}
    values = {"lr": 0.5, "decay_last": False, "vector_decay": 0.25, "gradient_clip": 2.0}
    recipe = replace(PRESETS["best"], **values)
    plan = recipe.plan(1000)
    assert all(getattr(plan, name) == getattr(recipe, name) for name in own - {"n_warmup_steps"})


def test_steps_shrink_alike() -> None:
    recipe = replace(PRESETS["strong_student"], batch=10, epoch_clips=1000, n_warmup_steps=600)
    whole, less = recipe.plan(5000), recipe.plan(5000, max_steps=1200)
    assert (whole.n_steps, whole.n_warmup_steps, whole.valid_every_steps) == (12_000, 600, 500)
    assert (less.n_steps, less.n_warmup_steps, less.valid_every_steps) == (1200, 60, 50)
    assert recipe.plan(5000, steps_scale=0.5).n_steps == 6000
    assert recipe.plan(300).n_steps == 120 * 30  # an epoch is what there is
    with pytest.raises(ValueError, match="--steps-scale is 0; it is finite and above 0"):
        recipe.plan(10, steps_scale=0)


@pytest.mark.parametrize("max_steps", [None, 37, 100, 250, 599])
def test_as_many_epochs_are_kept_of_a_shorter_run(max_steps: int | None) -> None:
    recipe = PRESETS["weak-psla-audioset"]
    plan = recipe.plan(2_000, max_steps=max_steps)
    first, every = recipe.average_from_step(plan), plan.valid_every_steps
    assert max_steps is not None or (first, every) == (16 * 20, 20)
    validated = {*range(every, plan.n_steps, every), plan.n_steps}
    assert sum(step >= first for step in validated) == 30 - 16 + 1
    late = replace(recipe, keep_from_epoch=16, average_from_epoch=None)
    assert late.keep_from_step(plan) == first and late.average_from_step(plan) is None
    assert sum(step >= recipe.keep_from_step(plan) for step in validated) == 30
    assert recipe.keep_from_step(recipe.plan(2_000, max_steps=2)) == 1  # all that there are
    assert replace(late, keep_from_epoch=None).keep_from_step(plan) is None


def test_settings() -> None:
    recipe = PRESETS["strong_student-beats-script"]
    given = ["lr=3e-4", "sequence_model=gru-64", "augmentation.mixup=0.7", "n_epochs=3"]
    changed = with_settings(recipe, [*given, "augmentation.wavmix=None", "ema_decay=0"])
    assert (changed.lr, changed.sequence_model, changed.n_epochs) == (3e-4, "gru-64", 3)
    assert (changed.augmentation.mixup, changed.augmentation.wavmix) == (0.7, None)
    assert changed.ema_decay == 0 and changed.batch == recipe.batch
    for order in (1, -1):  # what goes together is taken together
        given = ["pseudo=None", "distillation_weight=0.0"][::order]
        assert with_settings(recipe, given).pseudo is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learning_rate=1", "unknown field 'learning_rate'"),
        ("n_epoch=1", "unknown field 'n_epoch'; did you mean 'n_epochs'"),
        ("augmentation.mixupp=1", "did you mean 'augmentation.mixup'"),
        ("lr.x=1", "unknown field 'lr.x'"),
        ("lr", "wanted FIELD=VALUE"),
        ("lr=fast", "lr is 'fast'; it was 0.0001"),
        ("lr=None", "lr is None"),
        ("n_epochs=0", "n_epochs is 0; it is at least 1"),
        ("keep_from_epoch=121", "keep_from_epoch is 121, and n_epochs 120: no weights would be"),
        ("sampling=balance", "unknown sampling 'balance'"),
        ("objective=strnog", "did you mean 'strong'"),
        ("sequence_model=gruu-64", "unknown sequence model 'gruu'; did you mean 'gru'"),
        ("sequence_model=gru", "unknown sequence model 'gru'|NAME-WIDTH"),
        ("distillation_weight=2.0", "it is from 0 to 1"),
        ("augmentation.mixup=2.0", "mixup is 2.0; it is above 0 and at most 1"),
        ("schedule=cosin", "did you mean 'cosine'"),
        ("stage=ssl", "unknown stage 'ssl'"),
        ("lr=1j", "lr is 1j; it was 0.0001, and has to be a number$"),
        ("lr={[]: 1}", r"lr is '\{\[\]: 1\}'"),
        ("lr=0", "lr is 0; it is above 0"),
        ("lr=1e999", "lr is inf; it is above 0"),
        ("batch=2.5", "batch is 2.5; it was 256, and has to be a whole number$"),
        ("accumulation=True", "accumulation is True; it was 1"),
        ("epoch_clips=2.5", "epoch_clips is 2.5; .* a whole number or None$"),
        ("n_epochs=1.5", "n_epochs is 1.5"),
        ("n_warmup_steps=-1", "n_warmup_steps is -1; it is 0 or more"),
        ("warmup_share=2", "warmup_share is 2; it is from 0 to 1"),
        ("gradient_clip=abc", "gradient_clip is 'abc'; it was None, .* a number or None$"),
        ("gradient_clip=-1", "gradient_clip is -1; it is above 0"),
        ("ema_decay=abc", "ema_decay is 'abc'; it was None"),
        ("ema_decay=1", "ema_decay is 1; it is from 0 on, below 1"),
        ("onset_weight=x", "onset_weight is 'x'; it was None"),
        ("onset_weight=-1", "onset_weight is -1; it is 0 or more"),
        ("backbone_lr=x", "backbone_lr is 'x'; it was None"),
        ("layer_decay=2", "layer_decay is 2; it is above 0, at most 1"),
        ("sequence_model=5", "sequence_model is 5; it was None, and has to be text or None$"),
        ("betas=(0.9, 0.99, 0.999)", r"betas is \(0.9, .*has to be \(a number, a number\)$"),
        ("betas=(0.9, 1)", r"betas is \(0.9, 1\); each is from 0 on, below 1"),
        ("decay_last=1", "decay_last is 1; it was True, and has to be True or False$"),
        ("augmentation.mixup=x", "augmentation.mixup is 'x'; it was 0.3"),
        ("augmentation.spec_mask=3", r"augmentation.spec_mask is 3; .*\(a whole number, a whole"),
        ("augmentation=None", "augmentation is None; .*set by its fields, as augmentation.mixup$"),
        # what does not go together
        ("pseudo=None", "distillation_weight is 0.9, .*pseudo is None"),
        ("n_layers=3", "n_layers is 3; it is of a sequence_model, which is None"),
        ("objective=psla", "objective 'psla' does not go with stage strong and head linear"),
        ("objective=weak", "strong, linear: strong or distillation; weak, linear: weak; weak, mu"),
        ("head=multihead", "objective 'strong' does not go with stage strong and head multihead"),
        ("weak_batch=4", "the second corpus is distilled from a teacher: set pseudo=teacher"),
    ],
)
def test_wrong_settings_are_one_line(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        with_settings(PRESETS["strong_student"], [setting]).plan(10)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("preset", "settings", "message"),
    [
        (
            "weak-psla-audioset",
            "n_epochs=10",
            "average_from_epoch is 16, with keep_from_epoch 1 and n_epochs 10: it is from the one",
        ),
        ("weak", "average_from_epoch=9", "9, with keep_from_epoch 16 and n_epochs 30: it is from"),
        ("best", "average_from_epoch=9", "9, with keep_from_epoch None and n_epochs 120"),
        ("weak", "head=multihead", "'weak' does not go with stage weak and head multihead"),
        ("weak", "objective=psla", "'psla' does not go with stage weak and head linear"),
        ("weak-psla-balanced", "head=linear", "'psla' does not go with stage weak and head linear"),
        ("weak-psla-audioset", "objective=weak", "'weak' does not go with stage weak and head mul"),
        ("strong_teacher", "head=multihead objective=psla", "'psla' does not go with stage strong"),
        ("strong_teacher", "objective=distillation", "what is distilled from is missing"),
        ("strong_teacher", "distillation_weight=0.5", "what is distilled from is missing"),
        ("weak", "pseudo=file distillation_weight=0.5", "it is of frames, and 0 at stage weak"),
        ("weak", "onset_weight=0.5", "onset_weight is 0.5; it is of frames, and None at stage"),
        ("best", "n_warmup_steps=x", "n_warmup_steps is 'x'; it was None"),
        (
            "fmn_online",
            "weak_objective=weak",
            "weak_objective 'weak' does not go with stage strong",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(preset: str, settings: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        with_settings(PRESETS[preset], settings.split())
    assert "\n" not in str(error.value)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'strong_teacher-beats'") as error:
        get_preset("strong_teacher-beat")
    assert len(str(error.value)) < 300
