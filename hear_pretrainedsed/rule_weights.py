"""Stand-in weights: every tensor from a formula of its published name, no training, no download.

For tests, benchmarks and the demo where no published file is at hand. A network filled this way
computes random features; it has the same cost and the same layout as the real one. The rules are
those of the project's reference data, so that the same weights can be made elsewhere.
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hear_pretrainedsed.model import SEDModel, build_checkpoint
from hear_pretrainedsed.registry import get_checkpoint
from hear_pretrainedsed.sequence_models.base import SequenceModel

_TABLE = re.compile(r"\.layers\.\d+\.self_attn\.relative_attention_bias\.weight$")
_TOKENS = ("cls_token", "dist_token", "mask_embed")


def rule_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of a published name, float32 (int64 zero for counters).

    A standard normal array N seeded by the name's CRC-32, scaled by what the name says: 0.1 N for
    biases and running means, 0.5 + |N| for running variances, 1 + 0.1 N for norms, and
    N / sqrt(fan in) for matrices, with gains that keep deep convolutional stacks sensitive.
    """
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    shared = _TABLE.sub(".layers.0.self_attn.relative_attention_bias.weight", name)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(shared.encode())))
    normal = generator.standard_normal(shape)
    return torch.from_numpy(_scaled(name, last, normal).astype(np.float32))


def _scaled(name: str, last: str, normal: np.ndarray) -> np.ndarray:
    if last == "running_var":
        return 0.5 + np.abs(normal)
    if last in ("original0", "weight_g"):
        return math.sqrt(6) * (1 + 0.1 * normal)
    if last == "head_weight":  # shares of the heads of an attention pooling
        return (1 + 0.1 * normal) / len(normal)
    if last == "grep_a":
        return 1 + 0.5 * normal
    if "relative_attention_bias" in name:
        return 0.7 * normal
    if last in _TOKENS or last.endswith("pos_embed"):
        return 0.3 * normal
    if last.startswith("bias") or last == "running_mean":
        return 0.1 * normal
    if normal.ndim <= 1:
        return 1 + 0.1 * normal
    fan_in = math.prod(normal.shape[1:])
    return normal * (_gain(name, normal.shape) / math.sqrt(fan_in))


def _gain(name: str, shape: tuple[int, ...]) -> float:
    if ".frame_mn." in name and len(shape) == 4:
        if shape[1] == 1 and shape[2] > 1:
            return 1.5
        return 1.25 if shape[0] > shape[1] else 2.0
    if "effnet." in name and len(shape) == 4 and "._se_" not in name:  # ours: no reference has one
        if shape[1] == 1:
            return 1.5
        return 1.7 if "._project_conv." in name else 1.25
    return 1.5 if ".conv_in_" in name else 1.0


def published_names(model: SEDModel, prefix: str, root: str = "") -> dict[str, str]:
    """Name here -> name in a published file whose backbone stands under `prefix`.

    `root` stands before the names of heads and sequence model.
    """
    strong, weak = model.backbone.head_names
    top = {
        "backbone.": prefix,
        "sequence_model.": f"{root}seq_model.",
        "head.strong.": root + strong,
        "head.weak.": root + weak,
        "head.": f"{root}attention.",
    }
    names = {}
    for name in model.state_dict():
        start = next(start for start in top if name.startswith(start))
        names[name] = top[start] + name[len(start) :]
    return names


def fill(model: SEDModel) -> SEDModel:
    """Fill a model with rule-made weights, in place."""
    names = published_names(model, model.backbone.reference_prefix)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    state = {name: rule_tensor(names[name], shapes[name]) for name in names}
    model.load_state_dict(state, assign=True)
    return model


def _sequence_part(sequence_model: SequenceModel, prefix: str) -> dict[str, Tensor]:
    """Tensors and constants of a sequence model, under every name that published files give."""
    released = sequence_model.constants()
    for name, value in sequence_model.state_dict().items():
        released |= dict.fromkeys(sequence_model.release_names(name), value)
    return {prefix + name: value for name, value in released.items()}


def write_release_file(checkpoint: str, path: str | Path) -> Path:
    """Write rule-made weights of a checkpoint in the layout of its published file."""
    with torch.device("meta"):
        model = build_checkpoint(get_checkpoint(checkpoint))
    state = fill(model).state_dict()
    root = model.backbone.release_root
    names = published_names(model, model.backbone.prefixes[0], root)
    released = {
        new: state[name]
        for name, new in names.items()
        if not name.startswith("sequence_model.")  # may have several names
    }
    if isinstance(model.sequence_model, SequenceModel):
        released |= _sequence_part(model.sequence_model, f"{root}seq_model.")
    for name in list(released):
        if "relative_attention_bias" in name:  # listed under every layer
            for i in range(1, model.backbone.n_blocks):
                released[name.replace("layers.0.", f"layers.{i}.")] = released[name]
    path = Path(path)
    part = path.with_name(path.name + ".part")
    torch.save(released, part)
    part.replace(path)
    return path
