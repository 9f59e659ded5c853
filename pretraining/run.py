"""A recipe and corpora -> a trained model in the project's format, with its card.

OUT/model.safetensors is a checkpoint like any other: `hear-pretrainedsed import` takes it in. The
same run goes on after a kill from OUT/run.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from hear_pretrainedsed import __version__
from hear_pretrainedsed.api import load_model
from hear_pretrainedsed.checkpoints import save_weights
from hear_pretrainedsed.events import whole_file
from hear_pretrainedsed.heads import LinearHead
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.records import known_sha256
from hear_pretrainedsed.registry import get_checkpoint
from hear_pretrainedsed.training.chance import generator_for
from hear_pretrainedsed.training.fit import Fitted, fit
from hear_pretrainedsed.training.learner import KEPT
from hear_pretrainedsed.training.plan import Place, Plan
from hear_pretrainedsed.training.stream import Stream
from pretraining.build import start_model
from pretraining.clips import Clips
from pretraining.config import Recipe
from pretraining.corpus import Corpus, open_corpus
from pretraining.objectives import objective, with_edges, without_edges
from pretraining.sampling import ClipOrder, weights_of
from pretraining.validation import mean_ap, psds1
from pretraining.weak_results import EVALUATION, VALIDATION
from pretraining.weak_run import EPOCHS, summarise

MODEL, CARD = "model.safetensors", "card.json"


@dataclass(frozen=True)
class Sources:
    """What a run begins with and learns from: folders of corpora, names of checkpoints, files."""

    corpus: Path
    weak_corpus: Path | None = None
    valid: Path | None = None
    evaluation: Path | None = None
    checkpoint: str | None = None
    backbone: str | None = None
    pseudo_labels: Path | None = None
    teacher: str | None = None


@dataclass(frozen=True)
class Run:
    """A recipe with its sources, a folder, and where it is trained (`place.folder` is set here).

    Raises `ValueError` for a recipe that lacks a source, or has one that it does not use.
    """

    recipe: Recipe
    sources: Sources
    out: Path
    place: Place
    seed: int = 0
    steps_scale: float = 1.0
    max_steps: int | None = None
    tell: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        recipe, sources = self.recipe, self.sources
        own_teacher = recipe.teacher if recipe.pseudo == "teacher" else None
        wanted = {
            "--pseudo-labels": (sources.pseudo_labels, recipe.pseudo == "file"),
            "--weak-corpus": (sources.weak_corpus, recipe.weak_batch is not None),
            "--teacher": (sources.teacher or own_teacher, recipe.pseudo == "teacher"),
        }
        for name, (value, needed) in wanted.items():
            if needed and value is None:
                raise ValueError(f"the recipe {recipe.name} needs {name}")
            if value is not None and not needed:
                raise ValueError(f"the recipe {recipe.name} does not use {name} (got {value})")

    @cached_property
    def corpus(self) -> Corpus:
        """What is learned from; with events of all clips if the stage is strong."""
        corpus = open_corpus(self.sources.corpus)
        if self.recipe.stage == "strong" and not corpus.has_events:
            raise ValueError(f"{corpus.folder} has clips without events: stage strong needs them")
        return corpus

    @cached_property
    def weak_corpus(self) -> Corpus | None:
        """The second stream's."""
        folder = self.sources.weak_corpus
        return None if folder is None else open_corpus(folder)

    @cached_property
    def valid(self) -> Corpus | None:
        """What is validated on."""
        folder = self.sources.valid
        return None if folder is None else open_corpus(folder)

    @cached_property
    def evaluation(self) -> Corpus | None:
        """What a weak run's checkpoints are compared on afterwards; nothing is chosen there."""
        folder = self.sources.evaluation
        return None if folder is None else open_corpus(folder)

    @cached_property
    def teacher(self) -> SEDModel | None:
        """The frozen one, with the corpus' classes."""
        if self.recipe.pseudo != "teacher":
            return None
        name = self.sources.teacher or self.recipe.teacher
        model = load_model(checkpoint=name).requires_grad_(False)
        if model.labels != self.corpus.labels:
            n_given = len(model.labels or ())
            raise ValueError(
                f"the teacher {name} has other classes ({n_given}) than {self.corpus.folder} "
                f"({len(self.corpus.labels)})"
            )
        return model

    @cached_property
    def plan(self) -> Plan:
        """Steps and all of the optimiser."""
        plan = self.recipe.plan(
            self.order.n_pieces, steps_scale=self.steps_scale, max_steps=self.max_steps
        )
        return plan if self.valid is not None else replace(plan, valid_every_steps=None)

    @cached_property
    def order(self) -> ClipOrder:
        """The main corpus' clips."""
        recipe = self.recipe
        file = self.sources.pseudo_labels
        pseudo = None
        if file is not None:
            from pretraining.pseudo_labels import PseudoLabels  # needs h5py

            pseudo = PseudoLabels(file)
            pseudo.check(self.corpus)
        clips = Clips(self.corpus, pseudo)
        return _order(clips, recipe, recipe.batch_pieces, recipe.sampling, self.seed)

    @cached_property
    def streams(self) -> list[Stream]:
        """One of the corpus, and one of the weak corpus if there is one."""
        recipe = self.recipe
        loss = objective(
            recipe.objective,
            distillation_weight=recipe.distillation_weight,
            onset_weight=recipe.onset_weight,
        )
        streams = [
            Stream(self.order, recipe.augmentation, loss, recipe.strong_weight, self.teacher)
        ]
        if self.weak_corpus is not None and recipe.weak_pieces is not None:
            clips = Clips(self.weak_corpus)
            pieces, rule = recipe.weak_pieces, recipe.weak_sampling
            order = _order(clips, recipe, pieces, rule, self.seed)
            loss = objective(recipe.weak_objective)
            streams.append(
                Stream(order, recipe.weak_augmentation, loss, recipe.weak_weight, self.teacher)
            )
        return streams

    def score(self, model: SEDModel) -> float:
        """PSDS1 of a strong stage, mAP of a weak one; -inf without a validation corpus."""
        if self.valid is None:
            return -math.inf
        return (mean_ap if self.recipe.stage == "weak" else psds1)(model, self.valid)

    def start(self) -> SEDModel:
        """The model that it begins with."""
        sources = self.sources
        model = start_model(
            self.recipe,
            self.corpus.labels,
            self.seed,
            checkpoint=sources.checkpoint,
            backbone=sources.backbone,
        )
        if self.recipe.onset_weight is None:
            return model
        return with_edges(model, generator_for(self.seed, "edges"))

    def config(self, model: SEDModel) -> dict[str, Any]:
        """All that the numbers depend on beside plan and augmentation."""
        recipe = asdict(self.recipe)
        for name in ("augmentation", "weak_augmentation", "reproduces", "published", "name"):
            del recipe[name]
        corpora = {"corpus": self.corpus, "weak_corpus": self.weak_corpus, "valid": self.valid}
        return {
            **recipe,
            "recipe": self.recipe.name,
            "version": __version__,
            "start": model.provenance.get("checkpoint"),
            "start_sha256": model.provenance.get("sha256"),
            "backbone": self.sources.backbone,
            "teacher_sha256": self.teacher and self.teacher.provenance["sha256"],
            "pseudo_labels_sha256": _sha256(self.sources.pseudo_labels),
            **{f"{name}_sha256": one and one.sha256 for name, one in corpora.items()},
        }


def _order(clips: Clips, recipe: Recipe, pieces: int, rule: str, seed: int) -> ClipOrder:
    corpus = clips.corpus
    weights = weights_of(rule, corpus.index, len(corpus.labels))
    n_drawable = len(corpus) if weights is None else int((weights > 0).sum())
    epoch = recipe.epoch_of(n_drawable)
    return ClipOrder(clips, pieces, seed, epoch, weights, recipe.replacement)


def _sha256(path: Path | None) -> str | None:
    return None if path is None else known_sha256(path)


@dataclass(frozen=True)
class Made:
    """What a run gave: the model in eval mode, how its training ended, and its file."""

    model: SEDModel
    fitted: Fitted
    path: Path


def run(job: Run) -> Made | None:
    """Train, write the model and its card; None in all processes but the first.

    Raises `ValueError` as `fit`, and for sources that do not fit the recipe.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    model = job.start()
    config = job.config(model)
    parents = _parents(job, model)
    world = job.place.n_devices * job.place.n_nodes
    place = replace(
        job.place,
        folder=job.out / "run",
        micro_pieces=job.place.micro_pieces or max(1, job.recipe.batch // world),
        keep_from_step=_keep_from(job),
    )
    fitted = fit(
        model, job.streams, job.plan, place, validate=job.score, config=config, tell=job.tell
    )
    if (rank_zero_only.rank or 0) != 0:
        return None
    made = _export(job, model, fitted, place.folder, {"config": config, "parents": parents})
    if job.recipe.stage == "weak" and job.valid is not None:
        splits = {VALIDATION: job.valid} | ({EVALUATION: job.evaluation} if job.evaluation else {})
        summarise(made.model, job.out, splits, first_twice=job.recipe.average_first_twice)
    return made


def _keep_from(job: Run) -> int | None:
    first, plan = job.recipe.keep_from_epoch, job.plan
    if first is None or plan.valid_every_steps is None:
        return None
    return max(1, first * plan.n_steps // job.recipe.n_epochs)


def _export(job: Run, model: SEDModel, fitted: Fitted, folder: Path, facts: dict[str, Any]) -> Made:
    """Write the model, those of epochs that were kept, and the card."""
    origin = {
        "mode": "pretrain",
        "recipe": job.recipe.name,
        "reproduces": job.recipe.reproduces,
        "seed": job.seed,
        "steps_scale": job.steps_scale,
        "max_steps": job.max_steps,
        "data": _data(job),
        **facts,
        "plan": asdict(job.plan),
        "augmentation": asdict(job.recipe.augmentation),
        "weak_augmentation": asdict(job.recipe.weak_augmentation),
        "metrics": _metrics(job, fitted),
        "licence": _licence(job),
    }
    origin = json.loads(json.dumps(origin))
    if job.recipe.sequence_model is not None or job.sources.backbone is not None:
        model.provenance["checkpoint"] = None  # no checkpoint has this network
    model.provenance["origin"] = origin
    for kept in sorted((folder / KEPT).glob("step-*.pt")):
        one = copy.deepcopy(model)
        one.load_state_dict(torch.load(kept, weights_only=True))
        step = int(kept.stem.removeprefix("step-"))
        one.provenance["origin"] = {**origin, "step": step}
        (job.out / EPOCHS).mkdir(exist_ok=True)
        save_weights(_whole(one), job.out / EPOCHS / f"{kept.stem}.safetensors")
    path = job.out / MODEL
    save_weights(_whole(model), path)
    with whole_file(job.out / CARD) as file:
        file.write(json.dumps(origin, indent=1).encode() + b"\n")
    return Made(model, fitted, path)


def _whole(model: SEDModel) -> SEDModel:
    """A model as it is used: without what helped to train it, with a frame head in any case.

    Where only the clip's was trained, that one is a linear map of the mean frame, which is the mean
    of the map of each frame: the same weights give frame logits whose mean is the clip's.
    """
    without_edges(model)
    head = model.head
    if isinstance(head, LinearHead) and head.strong is None and head.weak is not None:
        head.strong = copy.deepcopy(head.weak)
    return model


def _data(job: Run) -> dict[str, Any]:
    corpora = {"corpus": job.corpus, "weak_corpus": job.weak_corpus, "valid": job.valid}
    return {
        name: {"sha256": one.sha256, "clips": len(one), "classes": len(one.labels)}
        for name, one in corpora.items()
        if one is not None
    }


def _metrics(job: Run, fitted: Fitted) -> dict[str, Any]:
    name = "mAP" if job.recipe.stage == "weak" else "psds1_macro"
    known = job.valid is not None and math.isfinite(fitted.valid_score)
    return {
        name: fitted.valid_score if known else None,
        "loss": fitted.loss,
        "n_steps": fitted.n_steps,
        "kept_step": fitted.kept_step,
    }


def _parents(job: Run, model: SEDModel) -> list[dict[str, Any]]:
    """What the weights come from: names and sha256."""
    parents = []
    if model.provenance.get("sha256") is not None:
        parents.append({"role": "start", **_named(model)})
    if job.teacher is not None:
        parents.append({"role": "teacher", **_named(job.teacher)})
    if job.sources.pseudo_labels is not None:
        sha256 = _sha256(job.sources.pseudo_labels)
        origin = job.order.clips.pseudo.origin
        parents.append({"role": "pseudo labels", "sha256": sha256, "origin": origin})
    return parents


def _named(model: SEDModel) -> dict[str, Any]:
    return {name: model.provenance[name] for name in ("checkpoint", "sha256")}


def _licence(job: Run) -> dict[str, str | None]:
    """Of the parents, as the registry knows them; the corpus' is what its manifest says."""
    recipe, sources = job.recipe, job.sources
    start = None if sources.backbone else sources.checkpoint or recipe.start
    names = [start, sources.teacher or recipe.teacher if recipe.pseudo == "teacher" else None]
    known = {name: get_checkpoint(name).licence for name in names if name is not None}
    corpus = job.corpus.manifest.get("licence", "not stated: see where its clips come from")
    return {**known, "corpus": corpus}
