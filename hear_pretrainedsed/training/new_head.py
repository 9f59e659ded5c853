"""A head for other classes, at a random start that can be repeated."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from hear_pretrainedsed.heads import LinearHead, MultiHeadPooling
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.training.chance import generator_for


def with_head(
    model: SEDModel,
    labels: Sequence[str],
    seed: int,
    *,
    head: str = "linear",
    strong: bool = True,
    weak: bool = False,
) -> SEDModel:
    """A model with a new head for the classes `labels`, in place; `decoding` is forgotten.

    head: "linear", with the parts `strong` and `weak`, or "multihead", PSLA's. Its weights are
    uniform in +-1 / sqrt(inputs), torch's usual start.
    """
    if head == "multihead":
        new: nn.Module = MultiHeadPooling(model.frame_dim, len(labels))
    else:
        new = LinearHead(model.frame_dim, len(labels), strong=strong, weak=weak)
    generator = generator_for(seed, "head")
    bound = 1 / math.sqrt(model.frame_dim)
    for name, parameter in new.named_parameters():
        if name != "head_weight":  # shares of PSLA's heads: they start equal
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    model.head, model.labels, model.decoding = new.to(model.device), tuple(labels), None
    return model
