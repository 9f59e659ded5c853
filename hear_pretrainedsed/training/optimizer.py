"""The optimiser and the schedule that a plan asks for."""

from __future__ import annotations

import torch

from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.training.param_groups import Group, param_groups
from hear_pretrainedsed.training.plan import OPTIMIZERS, Plan
from hear_pretrainedsed.training.schedule import (
    Schedule,
    warmup_cosine,
    warmup_halving,
    warmup_linear,
)


def make_optimizer(model: SEDModel, plan: Plan) -> tuple[torch.optim.Optimizer, Schedule]:
    """The optimiser over `groups`, and the factor of its lrs by step."""
    optimizer = OPTIMIZERS[plan.optimizer](groups(model, plan), betas=tuple(plan.betas))
    return optimizer, schedule_of(plan)


def groups(model: SEDModel, plan: Plan) -> list[Group]:
    """`param_groups` of a model with a plan's lrs and decays."""
    return param_groups(
        model,
        plan.lr,
        plan.weight_decay,
        plan.layer_decay,
        vector_decay=plan.vector_decay,
        backbone_lr=plan.backbone_lr,
        sequence_lr=plan.sequence_lr,
        decay_last=plan.decay_last,
    )


def schedule_of(plan: Plan) -> Schedule:
    """Factor of the maximum lr by step, counted from 0 on."""
    if plan.schedule == "steps":
        assert plan.halve_from_step is not None and plan.halve_every_steps is not None
        return warmup_halving(plan.n_warmup_steps, plan.halve_from_step, plan.halve_every_steps)
    kind = warmup_linear if plan.schedule == "linear" else warmup_cosine
    return kind(plan.n_warmup_steps, plan.n_steps)
