"""Small models to export, and what to feed them."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from hear_pretrainedsed.backbones.frame_mn import Fmn
from hear_pretrainedsed.heads import LinearHead
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.registry import SEQUENCE_MODELS
from hear_pretrainedsed.rule_weights import fill
from tests.reference import signal

LABELS = ("dog", 'Âne, "braying"', "rain")
needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra `export` is not installed",
)


def small(sequence: str | None = None, width: int = 32, head: nn.Module | None = None) -> SEDModel:
    """The first blocks of a frame MobileNet, a sequence model and a head: made in no time."""
    backbone = Fmn(0.4)
    backbone.features = backbone.features[:3]
    backbone.embed_dim = dim = backbone.block_dims[2]
    frames = SEQUENCE_MODELS[sequence](dim, width) if sequence else None
    out = frames.out_dim if frames else dim
    head = head or LinearHead(out, len(LABELS))
    model = SEDModel(backbone, sequence_model=frames, head=head, labels=LABELS)
    return fill(model.requires_grad_(False)).eval()


def cut(model: SEDModel, n: int) -> SEDModel:
    """A transformer's first blocks."""
    body = getattr(model.backbone, "encoder", model.backbone)
    name = "blocks" if hasattr(body, "blocks") else "layers"
    setattr(body, name, getattr(body, name)[:n])
    return model


def clips(n: int) -> Tensor:
    """Windows (n, 160000) that differ."""
    return torch.stack([signal(seed=i).roll(7000 * i) for i in range(n)])
