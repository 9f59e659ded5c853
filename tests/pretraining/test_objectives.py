"""Losses of the recipes: against the reference's training steps, and what they are made of."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hear_pretrainedsed.model import SEDModel, build_model
from hear_pretrainedsed.training.batch import Batch
from hear_pretrainedsed.training.new_head import with_head
from pretraining.objectives import (
    OBJECTIVES,
    edge_loss,
    edges_of,
    objective,
    with_edges,
    without_edges,
)

FACTS = "eff_training.cases.json"


class Given(nn.Module):
    """A model that emits what it is given as a spec."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = self.sequence_model = self.head = nn.Identity()
        self.pools_tokens = False
        self.grid = SimpleNamespace(to_frames=lambda tokens: tokens)


def read(shared: Path, half: str, name: str, case: str = "") -> Tensor:
    arrays = np.load(shared / "parity_efficient" / "eff_training.npz")
    path = "/".join(["step", *([case] if case else [half]), name])
    return torch.from_numpy(arrays[path]).transpose(1, 2)


@pytest.mark.parametrize("number", range(4))
def test_a_training_step_of_the_original(shared: Path, number: int) -> None:
    facts = json.loads((shared / "parity_efficient" / FACTS).read_text())["training_step"][number]
    arrays = np.load(shared / "parity_efficient" / "eff_training.npz")
    case, wanted = facts["case"], facts["logged"]
    online = case.startswith("online")
    logits = {half: read(shared, half, "student_logits") for half in ("strong", "weak")}
    if online:
        targets = read(shared, "", "strong_labels_used", case)
        pseudo = {half: read(shared, half, "teacher_logits").sigmoid() for half in logits}
        strong = Batch(
            torch.zeros(4, 1), targets=targets, spec=logits["strong"], pseudo=pseudo["strong"]
        )
        weak = Batch(torch.zeros(3, 1), spec=logits["weak"], pseudo=pseudo["weak"])
        plain = objective("strong")(Given(), strong).mean()
        on_strong = objective("distillation")(Given(), strong).mean()
        on_weak = objective("distillation")(Given(), weak).mean()
        assert plain.item() == pytest.approx(wanted["train/strong_supervised_loss"], abs=1e-6)
        assert on_strong.item() == pytest.approx(
            wanted["train/strong_online_teacher_loss"], abs=1e-6
        )
        assert on_weak.item() == pytest.approx(wanted["train/weak_online_teacher_loss"], abs=1e-6)
        # as the two streams of the recipe weigh them
        of_strong = objective("strong", distillation_weight=0.45 / 0.55)(Given(), strong).mean()
        total = 0.55 * of_strong + 0.45 * on_weak
    else:
        shift = torch.tensor(facts["strong_label_shift"])
        names = {"targets": arrays["step/strong/labels"], "pseudo": arrays["step/strong/pseudo"]}
        targets = {}
        for name, array in names.items():
            rows = [np.roll(row, int(s), axis=1) for row, s in zip(array, shift, strict=True)]
            rows = torch.from_numpy(np.stack(rows)).transpose(1, 2)
            mix = facts["strong_mix"]
            if mix["perm"] is not None:
                c = torch.tensor(mix["c"]).float()
                share = c[:, None, None]
                rows = (share * rows + (1 - share) * rows[mix["perm"]]).clamp(0, 1)
            targets[name] = rows
        batch = Batch(torch.zeros(4, 1), spec=logits["strong"], **targets)
        weight = facts["distillation_loss_weight"]
        total = objective("strong", distillation_weight=weight)(Given(), batch).mean()
    assert total.item() == pytest.approx(facts["total_loss"], abs=1e-6)


def tiny(head: str = "linear") -> SEDModel:
    torch.manual_seed(0)
    name = "psla" if head == "multihead" else "fmn04"
    return with_head(build_model(name), ("a", "b", "c"), 0, head=head, weak=True).eval()


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_of_a_model_is_one_loss_a_row_with_gradients(name: str) -> None:
    model = tiny("multihead" if name == "psla" else "linear")
    spec = model.frontend(torch.randn(2, model.grid.window_samples) * 0.1)
    scores = torch.rand(2, 250, 3)
    batch = Batch(torch.zeros(2, 1), scores.round(), scores[:, 0].round(), spec, pseudo=scores)
    losses = objective(name)(model, batch)
    assert losses.shape == (2,)
    losses.sum().backward()
    assert model.backbone.get_parameter(
        next(iter(dict(model.backbone.named_parameters())))
    ).grad.any()


def test_psla_is_of_clamped_scores() -> None:
    model = tiny("multihead")
    spec = model.frontend(torch.randn(1, model.grid.window_samples))
    weak = torch.tensor([[1.0, 0.0, 0.5]])
    got = objective("psla")(model, Batch(torch.zeros(1, 1), weak=weak, spec=spec))
    p = model.head.clip(model.backbone(spec)).clamp(1e-7, 1 - 1e-7)
    torch.testing.assert_close(got, -(weak * p.log() + (1 - weak) * (1 - p).log()).mean(dim=1))


def test_edges_are_where_targets_rise_and_fall() -> None:
    targets = torch.zeros(1, 6, 2)
    targets[0, 2:4, 0] = 0.5
    targets[0, :3, 1] = 1  # is there from the start: no onset
    edges = edges_of(targets)
    assert edges.nonzero().tolist() == [[0, 2, 0], [0, 2, 3], [0, 3, 2]]
    assert edges[0, 2, 0] == edges[0, 3, 2] == 0.5 and edges[0, 2, 3] == 1


def test_edge_loss_is_less_where_edges_are_known() -> None:
    targets = torch.zeros(2, 50, 1)
    targets[:, 10:20] = 1
    edges = edges_of(targets)
    right, wrong = 8 * edges - 4, 8 * edges.roll(5, dims=1) - 4
    assert (edge_loss(right, targets) < 0.1 * edge_loss(wrong, targets)).all()
    empty = edge_loss(torch.full((1, 50, 2), -4.0), torch.zeros(1, 50, 1))
    assert empty.isfinite().all()


def test_edges_are_learned_beside_and_taken_away_afterwards() -> None:
    model = tiny()
    names = set(model.state_dict())
    with_edges(model, torch.Generator().manual_seed(1))
    spec = model.frontend(torch.randn(1, model.grid.window_samples))
    targets = torch.zeros(1, 250, 3)
    targets[0, 10:30, 1] = 1
    batch = Batch(torch.zeros(1, 1), targets, spec=spec)
    plain, more = objective("strong"), objective("strong", onset_weight=0.5)
    beside = edge_loss(model.head.edges(model.grid.to_frames(model.backbone(spec))), targets)
    torch.testing.assert_close(more(model, batch), plain(model, batch) + 0.5 * beside)
    assert set(without_edges(model).state_dict()) == names


@pytest.mark.parametrize(
    ("name", "weight", "message"),
    [
        ("stong", 0.0, "did you mean 'strong'"),
        ("strong", 1.5, "distillation_weight is 1.5; it is from 0 to 1"),
    ],
)
def test_what_is_refused(name: str, weight: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(name, distillation_weight=weight)
