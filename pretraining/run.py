"""A recipe and corpora -> a trained model in the project's format, with its card.

OUT/model.safetensors is a checkpoint like any other: `hear-pretrainedsed import` takes it in. The
same run goes on after a kill from OUT/run.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
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
from hear_pretrainedsed.cli_options import check_folder
from hear_pretrainedsed.events import whole_file
from hear_pretrainedsed.heads import LinearHead
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.records import known_sha256
from hear_pretrainedsed.training.fit import Fitted, fit, has_begun, undamaged
from hear_pretrainedsed.training.learner import KEPT
from hear_pretrainedsed.training.plan import Place, Plan
from hear_pretrainedsed.training.stream import Stream
from pretraining.broken_clips import BROKEN, BrokenClips
from pretraining.build import start_model
from pretraining.card import data_of, licence_of, metrics_of, parents_of
from pretraining.clips import Clips, broken_line
from pretraining.config import Recipe
from pretraining.corpus import Corpus
from pretraining.objectives import objective, without_edges
from pretraining.sampling import ClipOrder, n_drawable, weights_of
from pretraining.sources import Given, Sources
from pretraining.validation import mean_ap, psds1
from pretraining.weak_results import EVALUATION, VALIDATION
from pretraining.weak_run import EPOCHS, summarise

MODEL, CARD = "model.safetensors", "card.json"


@dataclass(frozen=True)
class Run(Given):
    """A recipe with its sources, a folder, and where it is trained (`place.folder` is set here).

    Raises `ValueError` for a recipe that lacks a source, or has one that it does not use, and for
    an `out` that is a file or lies in a corpus.
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
        self.check_use()
        self._check_out()

    def _check_out(self) -> None:
        """Refuse a file, and a folder in a corpus, which is what its checksums say and no more."""
        out, sources = self.out, self.sources
        check_folder(out)
        place = out.resolve()
        for folder in (sources.corpus, sources.weak_corpus, sources.valid, sources.evaluation):
            if folder is not None and folder.resolve() in (place, *place.parents):
                raise ValueError(
                    f"-o {out} lies in the corpus {folder}: give a folder outside of it"
                )

    @cached_property
    def teacher(self) -> SEDModel | None:
        """The frozen one, with the corpus' classes."""
        if self.teacher_name is None:
            return None
        model = load_model(checkpoint=self.teacher_name).requires_grad_(False)
        self.check_teacher(model.labels)
        return model

    @cached_property
    def plan(self) -> Plan:
        """Steps and all of the optimiser."""
        plan = self.recipe.plan(
            self.order.n_pieces, steps_scale=self.steps_scale, max_steps=self.max_steps
        )
        if self.valid is None and self.recipe.keep_from_epoch is None:
            return replace(plan, valid_every_steps=None)
        return plan

    @cached_property
    def order(self) -> ClipOrder:
        """The main corpus' clips."""
        recipe = self.recipe
        clips = Clips(self.corpus, self.pseudo, clip_samples=recipe.clip_samples)
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
            clips = Clips(self.weak_corpus, clip_samples=recipe.clip_samples)
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
        return start_model(
            self.recipe,
            self.corpus.labels,
            self.seed,
            checkpoint=sources.checkpoint,
            backbone=sources.backbone,
            image_weights=sources.image_weights,
        )

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
            "image_weights_sha256": model.provenance.get("image_weights", {}).get("sha256"),
            "teacher_sha256": self.teacher and self.teacher.provenance["sha256"],
            "pseudo_labels_sha256": _sha256(self.sources.pseudo_labels),
            **{f"{name}_sha256": one and one.sha256 for name, one in corpora.items()},
        }


def _order(clips: Clips, recipe: Recipe, pieces: int, rule: str, seed: int) -> ClipOrder:
    corpus = clips.corpus
    weights = weights_of(rule, corpus.index, len(corpus.labels))
    epoch = recipe.epoch_of(n_drawable(weights, len(corpus)))
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
    splits = _splits(job)
    model = job.start()
    config = job.config(model)
    parents = parents_of(job, model)
    world = job.place.n_devices * job.place.n_nodes
    place = replace(
        job.place,
        folder=job.out / "run",
        micro_pieces=job.place.micro_pieces or max(1, job.recipe.batch // world),
        keep_from_step=job.recipe.keep_from_step(job.plan),
    )
    streams, plan = job.streams, job.plan  # all sources have been seen before a folder is made
    broken = BrokenClips(place.folder / BROKEN, [stream.material for stream in streams])
    if (rank_zero_only.rank or 0) == 0 and not has_begun(place.folder):
        broken.path.unlink(missing_ok=True)  # of a run that has left nothing else

    def tell(line: str) -> None:
        broken.note()
        job.tell(line)

    fitted = fit(model, streams, plan, place, validate=job.score, config=config, tell=tell)
    if (rank_zero_only.rank or 0) != 0:
        return None
    if found := broken.read():
        warnings.warn(f"{broken_line(found)}; others took their places", stacklevel=2)
    facts = {"config": config, "parents": parents, "broken_clips": broken.facts()}
    made = _export(job, model, fitted, place.folder, facts)
    if job.recipe.stage == "weak":
        summarise(
            made.model,
            job.out,
            splits,
            average_from_step=job.recipe.average_from_step(plan),
            first_twice=job.recipe.average_first_twice,
            device=torch.device(place.device),
        )
    return made


def _splits(job: Run) -> dict[str, Corpus]:
    """Corpora that nothing is learned from, by what they are for."""
    both = {VALIDATION: job.valid, EVALUATION: job.evaluation}
    return {name: corpus for name, corpus in both.items() if corpus is not None}


def _export(job: Run, model: SEDModel, fitted: Fitted, folder: Path, facts: dict[str, Any]) -> Made:
    """Write the model, those of epochs that were kept, and the card."""
    origin = {
        "mode": "pretrain",
        "recipe": job.recipe.name,
        "reproduces": job.recipe.reproduces,
        "seed": job.seed,
        "steps_scale": job.steps_scale,
        "max_steps": job.max_steps,
        "data": data_of(job),
        **facts,
        "plan": asdict(job.plan),
        "average_from_step": job.recipe.average_from_step(job.plan),
        "augmentation": asdict(job.recipe.augmentation),
        "weak_augmentation": asdict(job.recipe.weak_augmentation),
        "metrics": metrics_of(job, fitted),
        "licence": licence_of(job),
    }
    origin = json.loads(json.dumps(origin))
    if job.recipe.sequence_model is not None or job.sources.backbone is not None:
        model.provenance["checkpoint"] = None  # no checkpoint has this network
    model.provenance["origin"] = origin
    for old in (job.out / EPOCHS).glob("step-*.safetensors"):  # of an earlier run
        if not (folder / KEPT / f"{old.stem}.pt").is_file():
            old.unlink()
    for kept in sorted((folder / KEPT).glob("step-*.pt")):
        one = copy.deepcopy(model)
        with undamaged(kept, "remove it and there are no weights of that step"):
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
