"""The optimiser and the schedule that a plan asks for."""

from __future__ import annotations

import torch

from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.training.param_groups import Group, param_groups
from hear_pretrainedsed.training.plan import OPTIMIZERS, Plan
from hear_pretrainedsed.training.schedule import Schedule, warmup_cosine


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
        **({} if plan.sequence_lr is None else {"sequence_lr": plan.sequence_lr}),
    )


def schedule_of(plan: Plan) -> Schedule:
    """Factor of the maximum lr by step, counted from 0 on."""
    return warmup_cosine(plan.n_warmup_steps, plan.n_steps)
