"""param_groups: the reference's groups, each parameter once, nothing without a layer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hear_pretrainedsed.model import SEDModel, build_checkpoint
from hear_pretrainedsed.registry import get_checkpoint
from hear_pretrainedsed.rule_weights import published_names
from hear_pretrainedsed.training.param_groups import param_groups
from tests.tiny_model import tiny_model

DCASE = {  # setting in the reference: lr, lr of the backbone, decay of the lr
    "dcase_adamw_lr1.06e-4_wd0.001_decay1.0": (1.06e-4, None, 1.0),
    "dcase_adamw_lr1e-3_transformer_lr1e-4_wd0.001_decay0.8": (1e-3, 1e-4, 0.8),
}
NAMES = {"ATST-F": "atst_f.strong", "BEATs": "beats.strong"}


def without_numbers(checkpoint: str) -> SEDModel:
    with torch.device("meta"):
        return build_checkpoint(get_checkpoint(checkpoint))


@pytest.mark.parametrize("setting", DCASE)
@pytest.mark.parametrize("backbone", NAMES)
def test_groups_are_the_reference_s(shared: Path, backbone: str, setting: str) -> None:
    content = json.loads((shared / "parity" / "training.json").read_text())
    reference = content["optimizer"][backbone][setting]["groups"]
    wanted = {}
    for group in reference:
        for name in group["params"] or []:
            shared_table = "relative_attention_bias" in name and "layers.0." not in name
            if not shared_table:  # the reference lists the one table under each layer
                wanted[name] = (group["lr"], group["weight_decay"])
    model = without_numbers(NAMES[backbone])
    lr, backbone_lr, decay = DCASE[setting]
    groups = param_groups(model, lr, 1e-3, decay, vector_decay=1e-3, backbone_lr=backbone_lr)
    names = published_names(model, model.backbone.reference_prefix)
    place = {id(p): names[name] for name, p in model.named_parameters()}
    found = {place[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found.keys() == wanted.keys()
    for name, pair in wanted.items():
        assert found[name] == pytest.approx(pair, rel=1e-12), name


@pytest.mark.parametrize("checkpoint", ["fmn04.strong+tf-104", "psla.weak-fsd50k", "m2d.strong"])
def test_every_parameter_is_in_one_group(checkpoint: str) -> None:
    model = without_numbers(checkpoint)
    groups = param_groups(model, 1.0, 0.1, 0.5, vector_decay=0.2)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    for group in groups:
        vectors = {p.ndim <= 1 for p in group["params"]}
        assert vectors == {group["weight_decay"] == 0.2}
    n_blocks = model.backbone.n_blocks
    allowed = [1.0, *(0.5**depth for depth in range(1, n_blocks + 1))]
    assert {group["lr"] for group in groups} <= set(allowed)
    above = [g for g in groups if g["name"].startswith("above")]
    n_above = sum(
        p.numel() for part in (model.sequence_model, model.head) for p in part.parameters()
    )
    assert sum(p.numel() for g in above for p in g["params"]) == n_above
    torch.optim.AdamW(groups)  # takes them as they are


@given(decay=st.floats(0.01, 1.0), lr=st.floats(1e-6, 1.0))
def test_lower_blocks_learn_slower(decay: float, lr: float) -> None:
    groups = param_groups(tiny_model(), lr, 0.0, decay)
    by_name = {group["name"].split(",")[0]: group["lr"] for group in groups}
    assert by_name["above the backbone"] == lr
    assert math.isclose(by_name["block 1"], lr * decay)
    assert math.isclose(by_name["block 0"], lr * decay**2)


def test_frozen_parameters_are_left_out() -> None:
    model = tiny_model()
    model.backbone.requires_grad_(False)
    groups = param_groups(model, 1.0, 0.0, 1.0)
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.head.parameters()}


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.1, math.nan])
def test_layer_decay_out_of_range(decay: float) -> None:
    with pytest.raises(ValueError, match="it is above 0 and at most 1"):
        param_groups(tiny_model(), 1.0, 0.0, decay)


def test_a_parameter_without_a_layer_is_refused() -> None:
    model = tiny_model()
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="extra.weight belongs to no layer"):
        param_groups(model, 1.0, 0.0, 1.0)
    del model.extra
    model.backbone.layer_of = lambda name: 2
    with pytest.raises(ValueError, match=r"blocks.0.0.weight belongs to no layer \(got 2 of 2\)"):
        param_groups(model, 1.0, 0.0, 1.0)
