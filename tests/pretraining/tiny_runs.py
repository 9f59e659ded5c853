"""Runs of a recipe on a corpus of seconds with a backbone of a few hundred numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hear_pretrainedsed.checkpoints import save_weights
from hear_pretrainedsed.frontends import FrontEnd
from hear_pretrainedsed.registry import BACKBONES, CHECKPOINTS, Checkpoint
from hear_pretrainedsed.training.new_head import with_head
from hear_pretrainedsed.training.plan import Place
from pretraining.build import random_model
from pretraining.config import Recipe, sequence_of
from pretraining.corpus import Corpus
from pretraining.run import Run, Sources
from tests.pretraining.small_corpus import LABELS
from tests.tiny_model import TinyBackbone, TinyFrontend


class DrawnFrontend(TinyFrontend):
    """With a mel range that cannot be drawn."""

    with_drawn_edges = FrontEnd.with_drawn_edges
    clip, clips = FrontEnd.clip, FrontEnd.clips


class DrawnBackbone(TinyBackbone):
    """With 8 bands of each 40 ms."""

    prefixes = ("model.",)
    any_length = True

    @staticmethod
    def build_frontend() -> DrawnFrontend:
        return DrawnFrontend()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, few_threads: None) -> None:
    """A backbone `tiny`, as others in the registry, and one thread: others wait for each other."""
    monkeypatch.setitem(BACKBONES, "tiny", DrawnBackbone)
    torch.set_num_threads(1)


def add_teacher(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint of the tiny backbone with a head for the small corpus; its name."""
    name = "tiny.strong"
    model = with_head(random_model("tiny", 7), LABELS, 7, weak=True)
    path = folder / "tiny_strong.pt"
    model.provenance["checkpoint"] = name
    save_weights(model, path)
    facts = Checkpoint(name, path.name, "none", release=None, names=LABELS, own=True)
    monkeypatch.setitem(CHECKPOINTS, name, facts)
    monkeypatch.setattr("hear_pretrainedsed.api.fetch", lambda *_: path)
    return name


def write_pseudo(path: Path, corpus: Corpus, seed: int = 0) -> Path:
    """Logits of an ensemble that knows nothing, as published."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file["filenames"] = [f"{name}.mp3".encode() for name in corpus.names]
        shape = (len(corpus), len(corpus.labels), 250)
        file["strong_logits"] = rng.standard_normal(shape).astype(np.float16)
    return path


def shrunken(recipe: Recipe) -> Recipe:
    """A recipe with narrow sequence models and batches of a few clips; all else stays."""
    sequence = recipe.sequence_model and f"{sequence_of(recipe.sequence_model)[0]}-32"
    return replace(
        recipe,
        start=None,
        sequence_model=sequence,
        batch=2,
        accumulation=min(2, recipe.accumulation),
        weak_batch=recipe.weak_batch and 2,
        n_epochs=2,
        n_warmup_steps=1,
        valid_every_epochs=1,
        keep_from_epoch=recipe.keep_from_epoch and 1,
        average_from_epoch=recipe.average_from_epoch and 1,
        halve_from_epoch=recipe.halve_from_epoch and 1,
        halve_every_epochs=recipe.halve_every_epochs and 1,
    )


def tiny_run(
    recipe: Recipe, corpus: Corpus, out: Path, *, teacher: str | None = None, **more: object
) -> Run:
    """A run of a shrunken recipe, with what it needs."""
    sources = Sources(
        corpus.folder,
        weak_corpus=corpus.folder if recipe.weak_batch else None,
        valid=corpus.folder,
        backbone="tiny",
        pseudo_labels=write_pseudo(out.parent / "pseudo.h5", corpus)
        if recipe.pseudo == "file"
        else None,
        teacher=teacher if recipe.pseudo == "teacher" else None,
    )
    place = Place(out, logger="csv", save_every_steps=1)
    return Run(recipe, sources, out, place, **more)


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's tensors."""
    return {name: value.clone() for name, value in model.state_dict().items()}
