"""The model of a recipe: a checkpoint or a backbone, a sequence model, a head for the labels."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hear_pretrainedsed.api import load_model
from hear_pretrainedsed.backbones.base import Backbone
from hear_pretrainedsed.checkpoints import load_image_weights
from hear_pretrainedsed.model import SEDModel, build_model
from hear_pretrainedsed.registry import (
    BACKBONES,
    SEQUENCE_MODELS,
    Checkpoint,
    get_checkpoint,
    unknown,
)
from hear_pretrainedsed.training.chance import generator_for, seed_of
from hear_pretrainedsed.training.new_head import with_head
from pretraining.config import WINDOW_S, Recipe, sequence_of
from pretraining.objectives import with_edges


def start_model(
    recipe: Recipe,
    labels: Sequence[str],
    seed: int,
    *,
    checkpoint: str | None = None,
    backbone: str | None = None,
    weights: Path | None = None,
    image_weights: Path | None = None,
) -> SEDModel:
    """The model that a run begins with, on the CPU; its head is new.

    Args:
        recipe: tells sequence model and head; its `start` holds where neither of these is given.
        labels: classes of the corpus.
        checkpoint: name of the one to start from; weights: a file to read it from instead.
        backbone: name of one that starts at random.
        image_weights: file of the same network trained on images, for a backbone that has such.

    Raises `ValueError` for names that there are not, both a checkpoint and a backbone, and weights
    of images that do not fit.
    """
    recipe = with_start(recipe, checkpoint, backbone)
    check_image_weights(image_weights, backbone)
    if backbone is not None:
        model = random_model(backbone, seed, image_weights)
    else:
        model = load_model(weights, checkpoint=_start_of(recipe).name)
    return _finished(model, recipe, labels, seed)


def random_start(
    recipe: Recipe,
    backbone: str | None,
    n_classes: int,
    seed: int = 0,
    image_weights: Path | None = None,
) -> SEDModel:
    """The network that `start_model` gives, at random weights or those of images, for estimates.

    backbone: as there; None: the network of the recipe's start, with a sequence model if it has
    one.
    """
    labels = [f"class {i}" for i in range(n_classes)]
    if backbone is not None:
        model = random_model(backbone, seed, image_weights)
    else:
        start = _start_of(recipe)
        model = random_model(start.backbone, seed, sequence=start.sequence_model)
    return _finished(model, recipe, labels, seed)


def with_start(recipe: Recipe, checkpoint: str | None, backbone: str | None) -> Recipe:
    """A recipe with the start that is given, where one is: a checkpoint, or none but a backbone.

    Raises `ValueError` for both.
    """
    if checkpoint is not None and backbone is not None:
        raise ValueError("--checkpoint and --backbone exclude each other: take one")
    return recipe if checkpoint is backbone is None else replace(recipe, start=checkpoint)


def _start_of(recipe: Recipe) -> Checkpoint:
    if recipe.start is None:
        raise ValueError(f"{recipe.name} has no start of its own: give --checkpoint or --backbone")
    return get_checkpoint(recipe.start)


def random_model(
    backbone: str,
    seed: int,
    image_weights: Path | None = None,
    sequence: tuple[str, int] | tuple[str, int, int] | None = None,
) -> SEDModel:
    """A backbone at random weights, the same for a seed; those of images over them if given.

    sequence: the sequence model on it, as of `build_model`.
    """
    if backbone not in BACKBONES:
        raise ValueError(unknown("backbone", backbone, BACKBONES))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "backbone"))
        model = build_model(backbone, sequence_model=sequence)
    if image_weights is not None:
        loaded = load_image_weights(model, image_weights)
        model.provenance["image_weights"] = {"file": loaded.path.name, "sha256": loaded.sha256}
    return model


def check_image_weights(path: Path | None, backbone: str | None) -> None:
    """Refuse weights of images for a start that is not at random, or that knows none."""
    if path is None:
        return
    fitting = [name for name, kind in _kinds().items() if kind.image_skips]
    told = f"--image-weights {path} is for --backbone {' or '.join(fitting)}"
    if backbone is None:
        raise ValueError(f"{told}: a checkpoint brings its own weights")
    if backbone in BACKBONES and backbone not in fitting:
        raise ValueError(f"{told}: {backbone} has no start from images")


def _finished(model: SEDModel, recipe: Recipe, labels: Sequence[str], seed: int) -> SEDModel:
    if recipe.sequence_model is not None:
        model.sequence_model = sequence_model(recipe, model.backbone.embed_dim, seed)
    if recipe.norm_momentum is not None:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = recipe.norm_momentum
    weak = recipe.stage == "weak"
    model = with_head(model, labels, seed, head=recipe.head, strong=not weak, weak=weak)
    if recipe.onset_weight is not None:
        model = with_edges(model, generator_for(seed, "edges"))
    return _seeing(model, recipe)


def _seeing(model: SEDModel, recipe: Recipe) -> SEDModel:
    """A model whose clips are as long as a recipe's, in place."""
    usual = recipe.clip_s == WINDOW_S
    if not usual and not (model.backbone.any_length and model.pools_tokens):
        fitting = [name for name, kind in _kinds().items() if kind.any_length]
        raise ValueError(
            f"clip_s is {recipe.clip_s:g}; {type(model.backbone).__name__} sees {WINDOW_S:g} s "
            f"at a time here: take --backbone {' or '.join(fitting)}, or --set clip_s={WINDOW_S}"
        )
    model.clip_samples = model.grid.spec_samples if usual else recipe.clip_samples
    return model


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


def _kinds() -> dict[str, type[Backbone]]:
    """Classes of the backbones by name."""
    return {name: getattr(kind, "func", kind) for name, kind in BACKBONES.items()}
