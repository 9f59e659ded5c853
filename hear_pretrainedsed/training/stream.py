"""One of the streams of batches that a step learns from: what, how it is changed, and its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.training.augmentation import Augmentation
from hear_pretrainedsed.training.batch import Batch
from hear_pretrainedsed.training.material import Material

Loss = Callable[[SEDModel, Batch], Tensor]
"""(model, batch with spec) -> the losses of its rows (batch,)."""


@dataclass(frozen=True)
class Stream:
    """A step is one batch of each stream, forwarded apart; their gradients are summed.

    Batch norms thus see each stream's batches alone, as online distillation has it (Morocutti et
    al., arXiv 2503.11373: half of the clips have strong labels, half have weak ones).

    material: what is learned from. augmentation: of audio and specs. loss: of each row. weight: of
    the mean of these in the sum over streams. teacher: in eval mode; its scores for the same,
    identically augmented audio become the batch's `pseudo`.
    """

    material: Material
    augmentation: Augmentation
    loss: Loss
    weight: float = 1.0
    teacher: SEDModel | None = None


@dataclass(frozen=True)
class Together:
    """A batch of each stream at a time.

    It has no length: Lightning takes a length for that of all steps, and a run that goes on has
    loaders of those that are left.
    """

    loaders: Sequence[Iterable[Batch]]

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        return zip(*self.loaders, strict=True)


def frames_of(model: SEDModel, spec: Tensor) -> Tensor:
    """Spec (batch, 1, mels, spec_frames) -> frames (batch, frames, dim), differentiable."""
    return model.sequence_model(model.grid.to_frames(model.backbone(spec)))


def spec_of(model: SEDModel, audio: Tensor) -> Tensor:
    """Audio (batch, samples) of whole clips -> the spec that a model is trained on."""
    if model.pools_tokens:
        return model.frontend.clip(audio, model.clip_samples)
    return model.frontend(audio)


def seen_by_head(model: SEDModel, spec: Tensor) -> Tensor:
    """Spec -> tokens (batch, tokens, dim) where clip scores are of these, else frames."""
    return model.backbone(spec) if model.pools_tokens else frames_of(model, spec)


def head_output(model: SEDModel, spec: Tensor) -> Tensor:
    """Spec -> what a head emits for frames, or for clips where it was made for these alone."""
    seen = seen_by_head(model, spec)
    clips_alone = model.pools_tokens or getattr(model.head, "strong", model.head) is None
    return model.head.clip(seen) if clips_alone else model.head(seen)


def logits_of(model: SEDModel, spec: Tensor) -> Tensor:
    """Spec (batch, 1, mels, spec_frames) -> what the head emits (batch, frames, classes)."""
    return model.head(frames_of(model, spec))


def bce(model: SEDModel, batch: Batch) -> Tensor:
    """Binary cross-entropy (batch,) of a model's logits and the batch's targets."""
    logits = logits_of(model, batch.spec).float()
    losses = F.binary_cross_entropy_with_logits(logits, batch.targets, reduction="none")
    return losses.mean(dim=(1, 2))


@torch.no_grad()
def with_pseudo(batch: Batch, teacher: SEDModel | None) -> Batch:
    """A batch with a teacher's scores for `teacher_spec` as `pseudo`."""
    if teacher is None or not len(batch):
        return batch
    scores = logits_of(teacher, batch.teacher_spec).float()
    if teacher.head.emits == "logits":
        scores = scores.sigmoid()
    return replace(batch, pseudo=scores)


def map_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """A batch with every tensor that it has changed."""
    changed: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = change(value)
    return replace(batch, **changed)


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch; `files` stay as they are."""
    return map_tensors(batch, lambda value: value[rows])
