"""Recipes of fine-tuning that a user changes: what is set, what is refused, what it is called."""

from __future__ import annotations

import ast
from dataclasses import fields, replace
from pathlib import Path

import pytest

from downstream.finetune import Job
from downstream.finetune_recipes import BEST, PAPER, RECIPES, Recipe, changes
from downstream.protocols import Settings
from hear_pretrainedsed.training.plan import Place
from hear_pretrainedsed.training.settings import with_settings
from tests.downstream.test_finetune import order_of

SETTINGS = ["lrs=(1e-4, 2e-3)", "ema_decay=None", "layer_decay=0.9", "patience=3", "n_epochs=7"]


def test_what_is_set_is_in_the_plan() -> None:
    recipe = with_settings(BEST, [*SETTINGS, "steps_from_to=(1, 100)", "mixup=0.25"])
    assert recipe.lrs == (1e-4, 2e-3) and recipe.augmentation.mixup == 0.25
    plan = recipe.plan(order_of(320, 32), recipe.lrs[1], Settings(), 12)
    assert (plan.n_steps, plan.patience, plan.ema_decay) == (70, 3, None)
    assert (plan.backbone_lr, plan.lr, plan.layer_decay) == (2e-3, 2e-2, 0.9)


def test_one_lr_may_stand_alone() -> None:
    assert with_settings(BEST, ["lrs=3e-4"]).lrs == (3e-4,)


def test_every_field_of_a_recipe_is_read() -> None:
    folder = Path(__file__).resolve().parents[2] / "downstream"
    read = set()
    for file in ("finetune.py", "finetune_recipes.py", "finetune_command.py"):
        for node in ast.walk(ast.parse((folder / file).read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    assert {field.name for field in fields(Recipe)} <= read


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr=1e-4", "unknown field 'lr'; did you mean 'lrs'"),
        ("ema_decay", "wanted FIELD=VALUE"),
        ("ema_decay=1", "ema_decay is 1; it is from 0 on, below 1"),
        ("ema_decay=off", "ema_decay is 'off'; it was 0.999, and has to be a number or None$"),
        ("lrs=fast", r"lrs is \('fast',\); .*has to be a number, or several as \(a number, a nu"),
        ("lrs=()", r"lrs is \(\); it is one number above 0, or several"),
        ("lrs=(1e-4, 0)", "lrs is .*; it is one number above 0"),
        ("lrs=(1e-4, 1e-4)", "lrs is .*; one is there twice"),
        ("layer_decay=0", "layer_decay is 0; it is above 0, at most 1"),
        ("patience=0", "patience is 0; it is at least 1"),
        ("n_epochs=0", "n_epochs is 0; it is at least 1"),
        ("n_epochs=1.5", "n_epochs is 1.5; it was 40, and has to be a whole number$"),
        ("batch_pieces=0", "batch_pieces is 0; it is at least 1"),
        ("n_checks=0", "n_checks is 0; it is at least 1"),
        ("weight_decay=-1", "weight_decay is -1; it is 0 or more"),
        ("head_factor=0", "head_factor is 0; it is above 0"),
        ("balanced=2", "balanced is 2; it is from 0 to 1"),
        ("warmup_share=2", "warmup_share is 2; it is from 0 to 1"),
        ("n_warmup_steps=100", "n_warmup_steps is 100 and warmup_share 0.1; set the first to N"),
        ("steps_from_to=(9, 3)", r"steps_from_to is \(9, 3\); it is \(fewest, most\), at least 1"),
        ("wavmix=2.0", "wavmix is 2.0; it is above 0 and at most 1"),
        ("windowing=overlop", "unknown windowing 'overlop'; did you mean 'overlap'"),
    ],
)
def test_wrong_settings_are_one_line(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        with_settings(BEST, [setting])
    assert "\n" not in str(error.value)


def test_what_is_changed_is_named() -> None:
    assert [changes(recipe, name) for name, recipe in RECIPES.items()] == ["", ""]
    assert changes(with_settings(BEST, ["ema_decay=0.999", "lrs=(1e-4, 5e-4)"]), "best") == ""
    changed = with_settings(BEST, ["n_epochs=3", "lrs=1e-3", "ema_decay=None"])
    assert changes(changed, "best") == "lrs=(0.001,) n_epochs=3 ema_decay=None"
    job = Job("paper", None, None, Settings(), 0, Place(Path(".")))
    assert (job.name, job.recipe) == ("paper", PAPER)
    other = replace(PAPER, mixup=None)
    assert (replace(job, own=other).name, replace(job, own=other).recipe) == (
        "paper-changed",
        other,
    )
