"""What a run will do and take, before it is begun: with a corpus, or with its size alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from rich.table import Table
from torch import nn

from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.options import PRECISIONS
from hear_pretrainedsed.training.batch import Batch
from hear_pretrainedsed.training.command_options import groups_table
from hear_pretrainedsed.training.estimate import Memory, memory
from hear_pretrainedsed.training.optimizer import groups, make_optimizer
from hear_pretrainedsed.training.plan import Place, Plan
from hear_pretrainedsed.training.stream import head_output, spec_of, with_pseudo
from pretraining.config import Recipe

_MEASURED_CLIPS = 4


@dataclass(frozen=True)
class Outlook:
    """A recipe on `n_clips` that can be drawn, with the network that it would train.

    teacher: the network that scores every clip, if one does. n_weak_clips: of the second corpus;
    None: as many as of the first.
    """

    recipe: Recipe
    plan: Plan
    n_clips: int
    model: SEDModel
    place: Place
    clips_per_s: float | None = None
    teacher: SEDModel | None = None
    n_weak_clips: int | None = None

    def clips_in(self, n_steps: int) -> int:
        """Clips of all streams in so many steps from the beginning on."""
        recipe = self.recipe
        n_clips = recipe.clips_in(n_steps, self.n_clips)
        if recipe.weak_pieces is None:
            return n_clips
        n_weak = self.n_weak_clips or self.n_clips
        return n_clips + recipe.clips_in(n_steps, n_weak, recipe.weak_pieces)

    def memory(self) -> Memory:
        """Of one process, for the largest step."""
        recipe = self.recipe
        pieces = recipe.clips_in(1, self.n_clips)
        plan = replace(self.plan, batch_pieces=pieces)
        need = memory(self.model, plan, self.place, recipe.clip_samples, self.teacher)
        return replace(need, batch=round(need.batch * self.clips_in(1) / pieces))

    def lines(self) -> Iterator[str]:
        """One fact a line; measures the throughput here if none is given."""
        recipe, plan = self.recipe, self.plan
        epoch = recipe.steps_per_epoch(self.n_clips)
        processes = self.place.n_devices * self.place.n_nodes
        facts = {
            "preset": f"{recipe.name}: {recipe.reproduces}",
            "published": recipe.published,
            "start": _start_line(self.model, recipe),
            "model": _model_line(self.model, recipe),
            "loss": _loss_line(recipe),
            "corpus": f"{self.n_clips} clips to draw from; an epoch has "
            f"{recipe.epoch_of(self.n_clips)}, "
            f"sampling {recipe.sampling}{' with replacement' if recipe.replacement else ''}",
            "batch": f"{_batch_line(recipe, recipe.epoch_of(self.n_clips), processes)}; "
            f"a clip has {recipe.clip_s:g} s",
            "augmentation": _augmentation_line(recipe),
            "steps": f"{plan.n_steps} in {recipe.n_epochs} epochs of {epoch}; "
            f"{plan.n_warmup_steps} of warm-up, then {plan.schedule}",
            "optimizer": f"{plan.optimizer} {plan.betas}, weight decay {plan.weight_decay:g}, "
            f"layer decay {plan.layer_decay:g}, precision {plan.precision}",
            "validation": "at the end"
            if plan.valid_every_steps is None
            else f"every {plan.valid_every_steps} steps",
            "memory": str(self.memory()),
            "time": self._time_line(),
        }
        yield from (f"{key + ':':<14}{value}" for key, value in facts.items())

    def _time_line(self) -> str:
        rate, how = self.clips_per_s, "as given"
        if rate is None:
            size = self.recipe.clip_samples
            rate = measured_clips_per_s(self.model, self.plan, size, self.teacher)
            how = f"measured here: forward, backward and step of {_MEASURED_CLIPS} clips"
            how += ", and the teacher's forward" if self.teacher is not None else ""
        clips = self.clips_in(self.plan.n_steps)
        return (
            f"{clips / rate / 3600:.1f} hours for {clips} clips at {rate:.4g} clips/s ({how}), "
            "validation not counted"
        )

    def table(self) -> Table:
        """Parameters by group of the optimiser."""
        return groups_table(groups(self.model, self.plan))


def measured_clips_per_s(
    model: SEDModel, plan: Plan, clip_samples: int, teacher: SEDModel | None = None
) -> float:
    """Clips a second of a step on random audio, on the model's device; the model is changed.

    The first step warms up and is not counted. No audio is read and nothing is augmented. A teacher
    hears the same audio, as `with_pseudo` has it.
    """
    optimizer, _ = make_optimizer(model, plan)
    audio = torch.randn(_MEASURED_CLIPS, clip_samples, device=model.device) * 0.1
    seconds = []
    model.train()
    for _ in range(2):
        start = time.perf_counter()
        half = plan.precision != "fp32"
        with torch.autocast(audio.device.type, PRECISIONS[plan.precision], enabled=half):
            if teacher is not None:
                with torch.no_grad():
                    heard = Batch(audio, teacher_spec=teacher.frontend(audio))
                with_pseudo(heard, teacher)
            head_output(model, spec_of(model, audio)).float().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if audio.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    model.eval()
    return _MEASURED_CLIPS / seconds[-1]


def _start_line(model: SEDModel, recipe: Recipe) -> str:
    images = model.provenance.get("image_weights")
    if images is None:
        return recipe.start or "as --checkpoint or --backbone say"
    return f"weights of images, {images['file']} (sha256 {images['sha256'][:12]}...)"


def _model_line(model: SEDModel, recipe: Recipe) -> str:
    parts = [f"{type(model.backbone).__name__}"]
    if recipe.sequence_model is not None:
        layers = f", {recipe.n_layers} layers" if recipe.n_layers else ""
        parts.append(f"{recipe.sequence_model}{layers}")
    elif not isinstance(model.sequence_model, nn.Identity):
        parts.append(f"{type(model.sequence_model).__name__} of the start")
    parts.append(f"head {recipe.head} of {len(model.labels or ())} classes")
    return f"{', '.join(parts)}; {model.n_parameters:,} parameters"


def _loss_line(recipe: Recipe) -> str:
    parts = [recipe.objective]
    if recipe.pseudo is not None:
        source = "stored logits" if recipe.pseudo == "file" else f"the teacher {recipe.teacher}"
        parts.append(f"distillation weight {recipe.distillation_weight:g} from {source}")
    if recipe.onset_weight is not None:
        parts.append(f"onsets and offsets with weight {recipe.onset_weight:g}")
    return "; ".join(parts)


def _batch_line(recipe: Recipe, epoch: int, processes: int) -> str:
    text = f"{recipe.batch} clips x {recipe.accumulation} a step"
    if recipe.weak_batch is not None:
        text += f", and {recipe.weak_batch} x {recipe.accumulation} of the weak corpus"
    if recipe.batch_pieces > epoch:
        text += f" ({epoch} at most: so many are an epoch)"
    return text + (f", over {processes} processes" if processes > 1 else "")


def _augmentation_line(recipe: Recipe) -> str:
    record = recipe.augmentation
    plain = type(record)()
    chosen = {
        name: getattr(record, name)
        for name in record.__dataclass_fields__
        if getattr(record, name) != getattr(plain, name)
    }
    return ", ".join(f"{name} {value}" for name, value in chosen.items()) or "none"
