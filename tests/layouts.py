"""Stand-in files in every published layout, a few kB each.

Each tensor holds one number, told by its name, and is stored as that number with strides of zero:
names, shapes and values are those of a file of 350 MB.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from hear_pretrainedsed.checkpoints import Loaded, load_weights
from hear_pretrainedsed.model import SEDModel, build_checkpoint
from hear_pretrainedsed.registry import Checkpoint, get_checkpoint
from hear_pretrainedsed.rule_weights import published_names
from hear_pretrainedsed.unfilled import Unfilled

#: backbone -> prefix in the release, prefix in the reference data
PREFIXES = {
    "asit": ("model.", "model.asit."),
    "atst_f": ("model.atst.", "model.atst."),
    "beats": ("model.model.", "model.beats."),
    "fpasst": ("model.", "model.fpasst."),
    "frame_mn06": ("model.frame_mn.", "model.frame_mn."),
    "frame_mn10": ("model.frame_mn.", "model.frame_mn."),
    "m2d": ("model.backbone.", "model.m2d.backbone."),
}
TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
M2D_BUFFERS = {
    "to_spec.mel_basis": (80, 201),
    "to_spec.stft.wcos": (201, 1, 400),
    "to_spec.stft.wsin": (201, 1, 400),
    "to_spec.stft.window_mask": (1, 400, 1),
    "backbone.norm_stats": (2,),
}
ATST_BUFFERS = {
    "model.atst_mel.mel_transform.spectrogram.window": (1024,),
    "model.atst_mel.mel_transform.mel_scale.fb": (513, 64),
}

State = dict[str, Tensor]


def stand_in(value: float, *shape: int) -> Tensor:
    """A tensor of this shape that is stored as one number."""
    return torch.tensor(float(value)).expand(shape)


def new_model(checkpoint: str | Checkpoint) -> SEDModel:
    """The network of a checkpoint without values."""
    facts = get_checkpoint(checkpoint) if isinstance(checkpoint, str) else checkpoint
    with Unfilled():
        return build_checkpoint(facts)


@cache
def values(checkpoint: str | Checkpoint) -> State:
    """Name here -> the tensor that a file holds."""
    found = {}
    for i, (name, own) in enumerate(new_model(checkpoint).state_dict().items(), start=1):
        found[name] = stand_in(i, *own.shape)
        if not own.is_floating_point():
            found[name] = torch.tensor(i)
    return found


def released(checkpoint: str | Checkpoint, prefix: str | None = None) -> State:
    """The released file of a checkpoint, its backbone under `prefix`."""
    model = new_model(checkpoint)
    own = values(checkpoint)
    names = published_names(model, prefix or model.backbone.prefixes[0])
    state = {names[name]: value for name, value in own.items()}
    for name in [name for name in state if name.endswith(TABLE.format(0))]:
        for i in range(1, 12):
            state[name.replace(TABLE.format(0), TABLE.format(i))] = state[name]
    return state


def only(state: Mapping[str, Tensor], prefix: str) -> State:
    """What is under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def under(state: Mapping[str, Tensor], prefix: str) -> State:
    """The same under a prefix."""
    return {prefix + k: v for k, v in state.items()}


def old_weight_norm(state: Mapping[str, Tensor]) -> State:
    """BEATs' position convolution as files of older torch versions name it."""
    new = {"parametrizations.weight.original0": "weight_g"}
    new["parametrizations.weight.original1"] = "weight_v"
    assert sum(end in k for k in state for end in new) == 2
    for end, old in new.items():
        state = {k.replace(end, old): v for k, v in state.items()}
    return dict(state)


def one_table(state: Mapping[str, Tensor]) -> State:
    """BEATs' shared table listed under the first layer only."""
    rest = tuple(TABLE.format(i) for i in range(1, 12))
    return {k: v for k, v in state.items() if not k.endswith(rest)}


def m2d_buffers(prefix: str) -> State:
    """What M2D's files hold beside its parameters."""
    return {prefix + name: stand_in(9, *shape) for name, shape in M2D_BUFFERS.items()}


def lightning_atst(norm: str = "norm_frame") -> dict[str, object]:
    """A training checkpoint of ATST-Frame's authors: a student, a teacher, settings."""
    body = only(released("atst_f.ssl"), "model.atst.")
    body = {k.replace("norm_frame.", f"{norm}."): v for k, v in body.items()}
    student = {k: v + 100 for k, v in body.items() if not k.startswith("blocks.")}
    return {
        "epoch": 7,
        "hyper_parameters": argparse.Namespace(arch="base", lr=1e-3),
        "state_dict": under(student, "model.student.encoder.")
        | under(body, "model.teacher.encoder.")
        | {
            "model.teacher.projector.mlp.0.weight": stand_in(3, 4, 768),
            "model.student.predictor.mlp.0.weight": stand_in(3, 4, 768),
        },
    }


def put(folder: Path, content: object, name: str = "file.pt", **options: bool) -> Path:
    """Save something with torch.save; tensors keep their strides of zero."""
    path = folder / name
    torch.save(content, path, **options)
    return path


def load(path: Path, checkpoint: str | Checkpoint) -> tuple[SEDModel, Loaded]:
    """Load a file into a new model."""
    facts = get_checkpoint(checkpoint) if isinstance(checkpoint, str) else checkpoint
    model = new_model(facts)
    return model, load_weights(model, path, facts)


def check_filled(model: SEDModel, checkpoint: str | Checkpoint, without: str = "nothing") -> None:
    """Every tensor of the model holds its own number, in memory of its own and in float32."""
    state = model.state_dict()
    wanted = {k: v for k, v in values(checkpoint).items() if not k.startswith(without)}
    assert state.keys() == wanted.keys()
    for name, value in state.items():
        assert value.shape == wanted[name].shape, name
        assert value.is_contiguous() and value.device.type == "cpu", name
        assert value.dtype in (torch.float32, torch.int64), name
        assert value.flatten()[[0, -1]].tolist() == [wanted[name][(0,) * value.ndim].item()] * 2, (
            name
        )
