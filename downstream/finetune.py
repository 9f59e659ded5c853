"""Mode `finetune`: all weights of a checkpoint learn a task, under protocols `paper` and `best`.

What the two do is told in `finetune_recipes`.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from downstream.calibration import calibrate, decode
from downstream.cells import commit, plain
from downstream.embeddings import GRID, FrameSource, Weights
from downstream.finetune_recipes import RECIPES, Recipe, changes
from downstream.metrics import frame_map
from downstream.protocols import paper
from downstream.protocols.base import Found, Settings
from downstream.scoring import main_score
from downstream.targets import frame_targets
from downstream.tasks.checks import check_audio
from downstream.tasks.task import Clip, Rotation, Task, Triple
from hear_pretrainedsed import __version__
from hear_pretrainedsed.api import load_model
from hear_pretrainedsed.audio import read_audio
from hear_pretrainedsed.checkpoints import save_weights
from hear_pretrainedsed.memory import in_smaller_batches
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.training.fit import Fitted, fit
from hear_pretrainedsed.training.new_head import with_head
from hear_pretrainedsed.training.pieces import Order, Recording
from hear_pretrainedsed.training.plan import Place
from hear_pretrainedsed.training.stream import Stream, bce

Values = dict[str, np.ndarray]  # logits or scores by file, (frames, classes)


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning gave: the test clips' scores and events, and a model of each rotation."""

    found: Found
    models: tuple[SEDModel, ...]


@dataclass(frozen=True)
class Job:
    """A checkpoint, a task and a recipe; where it is trained: a folder for all its runs.

    own: a recipe instead of the protocol's; what it gives is called `best-changed`.
    """

    protocol: str
    task: Task
    weights: Weights
    settings: Settings
    seed: int
    place: Place
    own: Recipe | None = None

    @property
    def recipe(self) -> Recipe:
        """That of the protocol, unless there is another one."""
        return self.own or RECIPES[self.protocol]

    @property
    def name(self) -> str:
        """The protocol, or that it was changed."""
        return f"{self.protocol}-changed" if changes(self.recipe, self.protocol) else self.protocol

    @property
    def norms(self) -> dict[str, int]:
        """Pieces that batch norms take their statistics from; nothing where they are frozen."""
        if self.recipe.freeze_norms:
            return {}
        processes = self.place.n_devices * self.place.n_nodes
        own = math.ceil(self.recipe.batch_pieces / processes)
        return {"norm_pieces": min(self.place.micro, own)}

    def order(self, rotation: Rotation) -> Order:
        """The pieces of a rotation's train clips, with their targets."""
        labels = self.task.labels
        recordings = []
        for clip in self.task.clips(rotation.train):
            n_frames = GRID.n_frames(round(clip.duration_s * GRID.sample_rate))
            recordings.append(
                Recording(clip.file, clip.path, frame_targets(clip, labels, n_frames))
            )
        recipe = self.recipe
        return Order(recordings, recipe.batch_pieces, self.seed, recipe.balanced)

    def model(self) -> SEDModel:
        """The checkpoint with a new head for the task's classes."""
        model = load_model(
            self.weights.path,
            checkpoint=self.weights.checkpoint,
            windowing=self.recipe.windowing,
            batch_size=self.settings.batch_size,
        )
        return with_head(model, self.task.labels, self.seed)

    def config(self) -> dict[str, Any]:
        """All that a number depends on beside the plan: what a resumed run has to agree in."""
        return {
            "protocol": self.protocol,
            "checkpoint": self.weights.checkpoint,
            "weights_sha256": self.weights.sha256,
            "task": self.task.name,
            "task_version": self.task.version,
            "task_digest": self.task.digest(),
            "version": __version__,
        }


def mode(protocol: str, task: Task, source: FrameSource, settings: Settings, seed: int) -> Found:
    """Mode `finetune` of a protocol. What a killed run goes on from is kept beside the frames."""
    check_audio(task)
    place = Place(source.cache, device=settings.device, micro_pieces=settings.batch_size)
    job = Job(protocol, task, source.weights, settings, seed, place)
    read = [settings.precision, settings.steps_scale, settings.max_steps]
    facts = {"settings": [*read, *job.norms.values()]}
    text = json.dumps({**job.config(), **facts, "seed": seed, "recipe": asdict(job.recipe)})
    folder = source.cache / "finetune" / hashlib.sha256(text.encode()).hexdigest()[:32]
    found = tune(replace(job, place=replace(place, folder=folder))).found
    shutil.rmtree(folder)
    return found


def tune(job: Job) -> Tuned:
    """Train on all rotations; the lr is chosen on the first one's valid."""
    task, recipe = job.task, job.recipe
    scores: Values = {}
    events: dict[str, list[Triple]] = {}
    chosen: list[dict[str, Any]] = []
    models: list[SEDModel] = []
    lrs: Sequence[float] = recipe.lrs
    scales: list[float] = []
    for number, rotation in enumerate(task.rotations):
        order = job.order(rotation)
        scales.append(recipe.scale(order, job.settings))
        runs = [train(job, number, order, lr) for lr in lrs]
        values = [fitted.valid_score for _, fitted in runs]
        best = int(np.argmax(values))
        model, fitted = runs[best]
        record: dict[str, Any] = {"lr": lrs[best], "n_steps": fitted.n_steps}
        record |= {"kept_step": fitted.kept_step, "micro_pieces": fitted.micro_pieces}
        if len(lrs) > 1:
            record |= _of_lrs(job, lrs, values)
        found, tested = _tested(job, model.to(job.settings.device), rotation)
        model.cpu()
        scores, events = scores | tested[0], events | tested[1]
        chosen.append(record | found)
        model.provenance["origin"] = _origin(job, record | found)
        models.append(model)
        lrs = (lrs[best],)
    scale = min((one for one in scales if one != 1), default=1)  # of one rotation: of all
    name = job.name if scale == 1 else f"{job.name}-scaled"
    config = {"protocol": name, "steps_scale": scale, "max_steps": job.settings.max_steps}
    config |= asdict(recipe) | ({} if recipe.calibrated else paper.smoothing(task))
    return Tuned(Found(scores, events, paper.folds_of(task), tuple(chosen), config), tuple(models))


def _of_lrs(job: Job, lrs: Sequence[float], values: Sequence[float]) -> dict[str, Any]:
    """What `_validate` gave for each lr, under the name and with the sign of what it is."""
    if job.recipe.calibrated:
        name, sign = "valid_frame_map_of_lr", 1.0
    else:
        name, (sign,) = "valid_score_of_lr", paper.worth([1.0], job.task)
    known = [math.nan if math.isinf(value) else sign * value for value in values]
    return {name: dict(zip(map(str, lrs), known, strict=True))}


def train(job: Job, number: int, order: Order, lr: float) -> tuple[SEDModel, Fitted]:
    """One training on a rotation, by its number; goes on from what is in its folder."""
    rotation = job.task.rotations[number]
    valid = job.task.clips(rotation.valid)
    name = f"rotation {number + 1} of {len(job.task.rotations)}, lr {lr:g}"
    place = replace(job.place, folder=job.place.folder / f"rotation-{number}-lr-{lr:g}")
    model = job.model()
    fitted = fit(
        model,
        [Stream(order, job.recipe.augmentation, bce)],
        job.recipe.plan(order, lr, job.settings, model.backbone.n_blocks),
        place,
        validate=lambda model: _validate(job, model, valid),
        config=job.config(),
        tell=lambda line: job.settings.tell(f"{name}: {line}"),
    )
    return model, fitted


def _validate(job: Job, model: SEDModel, clips: Sequence[Clip]) -> float:
    """What decides: frame mAP where decoding is calibrated afterwards, else the main metric."""
    logits = predict(model, clips)
    if job.recipe.calibrated:
        value = _frame_map(job.task, clips, logits)
        return -math.inf if math.isnan(value) else value
    smooth, events = paper.outcome(job.task, logits, paper.RECIPE.threshold_logit)
    value = main_score(job.task, clips, _sigmoid(smooth), events)
    return paper.worth([value], job.task)[0]


def _frame_map(task: Task, clips: Sequence[Clip], logits: Values) -> float:
    targets = {c.file: frame_targets(c, task.labels, len(logits[c.file])) for c in clips}
    return frame_map(logits, targets, task.labels).macro


def _tested(
    job: Job, model: SEDModel, rotation: Rotation
) -> tuple[dict[str, Any], tuple[Values, dict[str, list[Triple]]]]:
    """What is chosen on valid and the score there; test clips' scores, smoothed, and events."""
    task = job.task
    valid, test = (task.clips(split) for split in (rotation.valid, rotation.test))
    on_valid, on_test = predict(model, valid), predict(model, test)
    if not job.recipe.calibrated:
        limit = paper.RECIPE.threshold_logit
        checked, tested = (paper.outcome(task, x, limit) for x in (on_valid, on_test))
        checked, tested = ((_sigmoid(x), events) for x, events in (checked, tested))
        return {"valid_score": main_score(task, valid, *checked)}, tested
    record: dict[str, Any] = {"valid_frame_map": _frame_map(task, valid, on_valid)}
    on_valid, on_test = _sigmoid(on_valid), _sigmoid(on_test)
    model.decoding = calibrate(task, valid, on_valid)
    checked = decode(on_valid, model.decoding, task.labels)
    record["valid_score"] = main_score(task, valid, *checked)
    for name, values in asdict(model.decoding).items():
        record[name] = dict(zip(task.labels, values, strict=True))
    return record, decode(on_test, model.decoding, task.labels)


def _sigmoid(logits: Mapping[str, np.ndarray]) -> Values:
    return {file: paper.sigmoid(x) for file, x in logits.items()}


@torch.no_grad()
def predict(model: SEDModel, clips: Sequence[Clip]) -> Values:
    """Logits {file: (frames, classes)}, float32; the next clip is decoded meanwhile."""
    found = {}
    for clip, audio in _read_ahead(clips):
        n_windows = model.n_windows(len(audio))
        logits = in_smaller_batches(model, n_windows, partial(model.logits, audio[None]))
        found[clip.file] = logits[0].float().cpu().numpy()
    return found


def _read_ahead(clips: Sequence[Clip]) -> Iterator[tuple[Clip, Tensor]]:
    with ThreadPoolExecutor(1) as reader:
        waiting = [reader.submit(read_audio, clip.path) for clip in clips[:2]]
        for number, clip in enumerate(clips):
            audio = waiting.pop(0).result()
            if number + 2 < len(clips):
                waiting.append(reader.submit(read_audio, clips[number + 2].path))
            yield clip, audio


def _origin(job: Job, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's file says of how it was made."""
    return {
        **job.config(),
        "protocol": job.name,
        "mode": "finetune",
        "seed": job.seed,
        "steps_scale": job.settings.steps_scale,
        "max_steps": job.settings.max_steps,
        "precision": job.settings.precision,
        **job.norms,
        "recipe": plain(asdict(job.recipe)),
        "chosen": plain(
            {k: v for k, v in chosen.items() if k not in ("thresholds", "median_frames")}
        ),
        "commit": commit(),
    }


def is_first_process() -> bool:
    """Whether this process is the one of several that writes and prints."""
    return (rank_zero_only.rank or 0) == 0


def save(tuned: Tuned, folder: Path) -> list[Path]:
    """Write model.safetensors, or model-0.safetensors and so on for several rotations."""
    several = len(tuned.models) > 1
    names = [f"model-{i}" if several else "model" for i in range(len(tuned.models))]
    paths = [folder / f"{name}.safetensors" for name in names]
    for path, model in zip(paths, tuned.models, strict=True):
        save_weights(model, path)
    return paths
