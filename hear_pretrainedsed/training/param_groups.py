"""Parameters -> optimiser groups: by part, by block with a decaying lr, and by dimension.

PretrainedSED's groups (Schmid et al., arXiv 2409.09546): block i from the end learns at
lr * decay ** (i + 1), what comes before the blocks with the first of them, head and sequence model
at the whole lr; each group is divided into matrices and vectors (tensors of one dimension at most).
"""

from __future__ import annotations

from typing import Any

from torch import nn

Group = dict[str, Any]

_SEQUENCE = "sequence_model."
_ABOVE = ("head.", _SEQUENCE)


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float,
    *,
    vector_decay: float = 0.0,
    backbone_lr: float | None = None,
    sequence_lr: float | None = None,
    decay_last: bool = True,
) -> list[Group]:
    """Groups of a `SEDModel`'s trained parameters: dicts of params, lr, weight_decay and name.

    Args:
        model: its `backbone.layer_of` says which block a parameter belongs to.
        lr: of the head.
        weight_decay: of tensors with two dimensions or more.
        layer_decay: factor of the lr from block to block, above 0 and up to 1; the last block has
            it once, or, without `decay_last`, the lr itself, as in EfficientSED's script for
            AudioSet (Morocutti et al., arXiv 2503.11373).
        vector_decay: weight decay of all other tensors. PretrainedSED means to have none there and
            passes none on, so that they get the optimiser's default.
        backbone_lr: what the blocks' lrs are shares of; None: `lr`.
        sequence_lr: of the sequence model; None: `lr`.
        decay_last: see `layer_decay`.

    Raises:
        ValueError: a layer decay out of range, or a parameter that belongs to no block.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay}; it is above 0 and at most 1")
    groups: dict[tuple[int, bool, bool], Group] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_vector = parameter.ndim <= 1
        depth = _depth(model, name)  # 0: above the backbone, 1: the last block
        apart = sequence_lr is not None and name.startswith(_SEQUENCE)
        if depth == 0:
            part, group_lr = "above the backbone", lr
        else:
            part = f"block {model.backbone.n_blocks - depth}"
            base_lr = lr if backbone_lr is None else backbone_lr
            group_lr = base_lr * layer_decay ** (depth if decay_last else depth - 1)
        if apart:
            part, group_lr = "sequence model", sequence_lr
        group = groups.setdefault(
            (depth, apart, is_vector),
            {
                "params": [],
                "lr": group_lr,
                "weight_decay": vector_decay if is_vector else weight_decay,
                "name": f"{part}, {'vectors' if is_vector else 'matrices'}",
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _depth(model: nn.Module, name: str) -> int:
    """Blocks from the end of the backbone on, the last one counted; 0 above the backbone."""
    if name.startswith(_ABOVE):
        return 0
    part, _, inner = name.partition(".")
    n_blocks = model.backbone.n_blocks
    layer = model.backbone.layer_of(inner) if part == "backbone" else None
    if layer not in range(n_blocks):
        raise ValueError(f"the parameter {name} belongs to no layer (got {layer} of {n_blocks})")
    return n_blocks - layer
