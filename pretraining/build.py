"""The model of a recipe: a checkpoint or a backbone, a sequence model, a head for the labels."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hear_pretrainedsed.api import load_model
from hear_pretrainedsed.model import SEDModel, build_model
from hear_pretrainedsed.registry import BACKBONES, SEQUENCE_MODELS, get_checkpoint, unknown
from hear_pretrainedsed.training.chance import seed_of
from hear_pretrainedsed.training.new_head import with_head
from pretraining.config import Recipe, sequence_of


def start_model(
    recipe: Recipe,
    labels: Sequence[str],
    seed: int,
    *,
    checkpoint: str | None = None,
    backbone: str | None = None,
    weights: Path | None = None,
) -> SEDModel:
    """The model that a run begins with, on the CPU; its head is new.

    Args:
        recipe: tells sequence model and head; its `start` holds where neither of these is given.
        labels: classes of the corpus.
        checkpoint: name of the one to start from; weights: a file to read it from instead.
        backbone: name of one that starts at random.

    Raises `ValueError` for names that there are not, or both a checkpoint and a backbone.
    """
    if checkpoint is not None and backbone is not None:
        raise ValueError("--checkpoint and --backbone exclude each other: take one")
    if backbone is not None:
        model = random_model(backbone, seed)
    elif (name := checkpoint or recipe.start) is not None:
        get_checkpoint(name)
        model = load_model(weights, checkpoint=name)
    else:
        raise ValueError(f"{recipe.name} has no start of its own: give --checkpoint or --backbone")
    return _finished(model, recipe, labels, seed)


def random_start(recipe: Recipe, name: str | None, n_classes: int, seed: int = 0) -> SEDModel:
    """The network of a recipe on a backbone at random weights, for estimates."""
    if name is None:
        raise ValueError(f"{recipe.name} has no start of its own: give --checkpoint or --backbone")
    labels = [f"class {i}" for i in range(n_classes)]
    return _finished(random_model(name, seed), recipe, labels, seed)


def random_model(backbone: str, seed: int) -> SEDModel:
    """A backbone at random weights, the same for a seed."""
    if backbone not in BACKBONES:
        raise ValueError(unknown("backbone", backbone, BACKBONES))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "backbone"))
        return build_model(backbone)


def _finished(model: SEDModel, recipe: Recipe, labels: Sequence[str], seed: int) -> SEDModel:
    if recipe.sequence_model is not None:
        model.sequence_model = sequence_model(recipe, model.backbone.embed_dim, seed)
    if recipe.norm_momentum is not None:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = recipe.norm_momentum
    weak = recipe.stage == "weak"
    return with_head(model, labels, seed, head=recipe.head, strong=not weak, weak=weak)


def sequence_model(recipe: Recipe, inputs: int, seed: int) -> nn.Module:
    """A recipe's sequence model at random weights, the same for a seed."""
    assert recipe.sequence_model is not None
    name, dim = sequence_of(recipe.sequence_model)
    more: dict[str, Any] = {}
    if recipe.n_layers is not None:
        kind = SEQUENCE_MODELS[name]
        if "n_layers" not in inspect.signature(kind).parameters:
            raise ValueError(f"n_layers is {recipe.n_layers}; the layers of {name} are fixed")
        more["n_layers"] = recipe.n_layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "sequence model"))
        return SEQUENCE_MODELS[name](inputs, dim, **more)


def backbone_of(checkpoint: str | None, backbone: str | None, recipe: Recipe) -> str | None:
    """The backbone that a run would have."""
    if backbone is not None:
        return backbone
    name = checkpoint or recipe.start
    return None if name is None else get_checkpoint(name).backbone
