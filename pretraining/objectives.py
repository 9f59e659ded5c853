"""What is learned of a batch: (model, batch with spec) -> the losses of its rows.

`strong` and `distillation` are PretrainedSED's and EfficientSED's (arXiv 2409.09546, section 3;
arXiv 2503.11373, section 2), `psla` is PSLA's (Gong et al. 2021, section IV).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.registry import unknown
from hear_pretrainedsed.training.batch import Batch
from hear_pretrainedsed.training.stream import Loss, seen_by_head

_FOCUS = 2.0
_POSITIVE_SHARE = 0.25


def strong(model: SEDModel, frames: Tensor, batch: Batch) -> Tensor:
    """Binary cross-entropy with the events."""
    return _bce(model.head(frames), batch.targets)


def distillation(model: SEDModel, frames: Tensor, batch: Batch) -> Tensor:
    """Binary cross-entropy with a teacher's scores."""
    return _bce(model.head(frames), batch.pseudo)


def weak(model: SEDModel, frames: Tensor, batch: Batch) -> Tensor:
    """Binary cross-entropy of the whole clip's logits with its labels."""
    return _bce(model.head.clip(frames), batch.weak)


def psla(model: SEDModel, tokens: Tensor, batch: Batch) -> Tensor:
    """The same of the clip's *scores*, clamped to [1e-7, 1 - 1e-7]."""
    scores = model.head.clip(tokens).float().clamp(1e-7, 1 - 1e-7)
    with torch.autocast(scores.device.type, enabled=False):  # refuses it, where 16 bits are used
        return F.binary_cross_entropy(scores, batch.weak, reduction="none").mean(dim=1)


OBJECTIVES: dict[str, Callable[[SEDModel, Tensor, Batch], Tensor]] = {
    "strong": strong,
    "distillation": distillation,
    "weak": weak,
    "psla": psla,
}
"""Objectives by name: (model, frames (batch, frames, dim), batch) -> (batch,)."""


def objective(
    name: str, *, distillation_weight: float = 0.0, onset_weight: float | None = None
) -> Loss:
    """The loss of a recipe.

    Args:
        name: one of `OBJECTIVES`.
        distillation_weight: w of (1 - w) * objective + w * `distillation`, 0 to 1.
        onset_weight: of `edge_loss` beside these; the model has then been through `with_edges`.

    Raises `ValueError` for a name that there is not or a weight out of range.
    """
    if name not in OBJECTIVES:
        raise ValueError(unknown("objective", name, OBJECTIVES))
    if not 0 <= distillation_weight <= 1:
        raise ValueError(f"distillation_weight is {distillation_weight}; it is from 0 to 1")
    share = 1.0 if name == "distillation" else distillation_weight

    def loss(model: SEDModel, batch: Batch) -> Tensor:
        frames = seen_by_head(model, batch.spec)
        losses = torch.zeros(())
        if share < 1:
            losses = (1 - share) * OBJECTIVES[name](model, frames, batch)
        if share > 0:
            losses = losses + share * distillation(model, frames, batch)
        if onset_weight is not None:
            losses = losses + onset_weight * edge_loss(model.head.edges(frames), batch.targets)
        return losses

    return loss


def with_edges(model: SEDModel, generator: torch.Generator) -> SEDModel:
    """A model whose head has, beside its own maps, two a class: for onsets and for offsets.

    They are there to be trained with: `without_edges` takes them away again.
    """
    edges = nn.Linear(model.frame_dim, 2 * len(model.labels))
    for parameter in edges.parameters():
        nn.init.uniform_(parameter, -(model.frame_dim**-0.5), model.frame_dim**-0.5, generator)
    nn.init.constant_(edges.bias, -4.6)  # edges are rare: scores start near 0.01 (Lin et al. 2017)
    model.head.edges = edges.to(model.device)
    return model


def without_edges(model: SEDModel) -> SEDModel:
    """The model as it is used, in place."""
    if hasattr(model.head, "edges"):
        del model.head.edges
    return model


def edges_of(targets: Tensor) -> Tensor:
    """Onsets and offsets of targets (batch, frames, classes), which may be mixed ones.

    Returns (batch, frames, 2 * classes): first how much each frame is above the one before it,
    then how much above the one after it. What is active at the edge of a clip has no edge there: it
    may have begun before.
    """
    before = torch.cat([targets[:, :1], targets[:, :-1]], dim=1)
    after = torch.cat([targets[:, 1:], targets[:, -1:]], dim=1)
    return torch.cat([(targets - before).relu(), (targets - after).relu()], dim=2)


def edge_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Focal binary cross-entropy (batch,) of edge logits (batch, frames, 2 * classes).

    Lin et al., arXiv 1708.02002, with gamma 2 and alpha 0.25; the sum over a row is divided by its
    number of edges. A soft target is as far from its score as |target - score| (Li et al., arXiv
    2006.04388).
    """
    wanted, logits = edges_of(targets), logits.float()
    distance = (wanted - logits.sigmoid()).abs()
    share = _POSITIVE_SHARE * wanted + (1 - _POSITIVE_SHARE) * (1 - wanted)
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    losses = share * distance**_FOCUS * losses
    return losses.sum(dim=(1, 2)) / wanted.sum(dim=(1, 2)).clamp(min=1)


def _bce(logits: Tensor, targets: Tensor | None) -> Tensor:
    assert targets is not None, "the batch lacks what is learned"
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return losses.flatten(1).mean(dim=1)
