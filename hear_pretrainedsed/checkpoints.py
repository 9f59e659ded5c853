"""Files -> weights in a model: read, rename, compare as sets, copy; or one clear error.

Layouts: PretrainedSED releases (`model.<...>`, `strong_head.*`, `weak_head.*`, `seq_model.*`),
EfficientSED's (`net.model.<...>`, `net.strong_head.*`, ...), files of the backbones' own authors,
and this project's own (.pt or .safetensors).
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.records import record_sha256
from hear_pretrainedsed.registry import CHECKPOINTS, Checkpoint
from hear_pretrainedsed.sequence_models.base import SequenceModel

#: names of heads and sequence model: published -> here
TOP_NAMES = (
    (r"^(?:net\.|model\.)?strong_head\.", "head.strong."),
    (r"^(?:net\.|model\.)?weak_head\.", "head.weak."),
    (r"^(?:net\.|model\.)?seq_model\.", "sequence_model."),
    (r"^(?:module\.)?attention\.", "head."),
)
N_SHOWN = 5


class CheckpointError(ValueError):
    """A file that does not hold the checkpoint it was given for; the model is left as it was."""


@dataclass
class Loaded:
    """What `load_weights` found: layout, sha256 of the file, and the keys it left out."""

    path: Path
    layout: str
    sha256: str
    left_out: list[str] = field(default_factory=list)


def load_weights(model: SEDModel, path: str | Path, checkpoint: Checkpoint) -> Loaded:
    """Fill `model` from the file `path`, which has to hold `checkpoint`; all or nothing.

    Raises:
        CheckpointError: the file cannot be read, holds something else, lacks or has more keys than
            the model, or other shapes. The message names file, checkpoint and first differences.
    """
    path = Path(path)
    _check_name(path, checkpoint)
    state, layout, left_out = _translate(model, _read(path), path, checkpoint)
    _compare(model, state, path, checkpoint)
    dtype = torch.float32
    state = {k: v.to(dtype).clone() if v.is_floating_point() else v for k, v in state.items()}
    if getattr(model.head, "weak", None) is not None and "head.weak.weight" not in state:
        model.head.weak = None  # never at random values
        left_out.append("(no weak_head in the file: the model has no clip scores)")
    model.load_state_dict(state, strict=True, assign=True)
    loaded = Loaded(path, layout, record_sha256(path).sha256, left_out)
    model.provenance = {
        "checkpoint": checkpoint.name,
        "file": path.name,
        "sha256": loaded.sha256,
        "layout": layout,
        "left_out": left_out,
    }
    return loaded


def load_for_transfer(model: SEDModel, path: str | Path, checkpoint: Checkpoint) -> Loaded:
    """Start `model` from a file of `checkpoint` whose head may have other classes.

    Tensors of the head that do not fit (PSLA: all but the heads' shares) are dropped and keep their
    initial values, to be trained; `left_out` names them. All else has to be there.

    Raises:
        CheckpointError: as `load_weights`.
    """
    path = Path(path)
    _check_name(path, checkpoint)
    state, layout, left_out = _translate(model, _read(path), path, checkpoint)
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    dropped = [k for k, shape in given.items() if k.startswith("head.") and own.get(k) != shape]
    fitting = {k: value for k, value in state.items() if k not in dropped}
    body = {k: shape for k, shape in own.items() if k in fitting or not k.startswith("head.")}
    if parts := _differences(body, {k: tuple(value.shape) for k, value in fitting.items()}):
        raise CheckpointError(f"{path} does not hold {checkpoint.name}: {'; '.join(parts)}")
    model.load_state_dict(fitting, strict=False)
    return Loaded(path, layout, record_sha256(path).sha256, left_out + dropped)


def load_image_weights(model: SEDModel, path: str | Path) -> Loaded:
    """Start the backbone from a file of the same network trained on images.

    PSLA: EfficientNet-B2 as efficientnet_pytorch names it. Its stem, made for three colours, and
    its classifier are dropped: `left_out` names them, the stem here keeps its initial values.

    Raises:
        CheckpointError: another network, or the backbone has no such start.
    """
    path, body = Path(path), model.backbone
    if not body.image_skips:
        raise CheckpointError(f"{path}: a {type(body).__name__} has no start from images")

    def skipped(name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in body.image_skips)

    state = _read(path)
    own = {k: tuple(value.shape) for k, value in body.state_dict().items() if not skipped(k)}
    fitting = {k: value for k, value in state.items() if not skipped(k)}
    if parts := _differences(own, {k: tuple(value.shape) for k, value in fitting.items()}):
        raise CheckpointError(f"{path} does not hold this backbone: {'; '.join(parts)}")
    body.load_state_dict(fitting, strict=False)
    left_out = [name for name in state if name not in fitting]
    return Loaded(path, "images", record_sha256(path).sha256, left_out)


def save_weights(model: SEDModel, path: str | Path) -> None:
    """Write the model in this project's own layout, atomically; the ending decides the format.

    `.safetensors` and `.pt` hold the same names; safetensors also the checkpoint's name and class
    list as metadata.
    """
    path = Path(path)
    state = {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()}
    part = path.with_name(path.name + ".part")
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        facts = {"checkpoint": model.provenance.get("checkpoint"), "labels": model.labels}
        save_file(state, part, metadata={"hear_pretrainedsed": json.dumps(facts)})
    elif path.suffix == ".pt":
        torch.save(state, part)
    else:
        raise ValueError(f"cannot write weights to {path}: the name has to end in .safetensors or .pt")
    part.replace(path)


def _check_name(path: Path, checkpoint: Checkpoint) -> None:
    """Refuse a published file given for another checkpoint: contents cannot always tell."""
    other = next((c for c in CHECKPOINTS.values() if c.file == path.name), checkpoint)
    if other.name != checkpoint.name:
        raise CheckpointError(
            f"{path} is the published file of {other.name}, not of {checkpoint.name} "
            f"({checkpoint.file})"
        )


def _read(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, by name."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page, not a checkpoint: the download went wrong")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # Lightning's settings
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is refused: {_cause(error)}") from error
    except Exception as error:  # torch, zipfile and safetensors raise a dozen kinds on bad bytes
        raise CheckpointError(f"{path} cannot be read, it may be truncated: {_cause(error)}") from error
    return _tensors(content, path)


def _cause(error: Exception) -> str:
    """First line of an error, without advice on how to switch the safety off."""
    text = str(error).strip().splitlines()
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"Unsupported (?:global|class|operand)[^\n]*?([\w.]+\.[\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        return f"it is not a plain file of tensors; it holds Python objects or code{what}"
    return (text[0] if text else type(error).__name__)[:200]


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    """The tensor dictionary inside what a file holds: itself, or under "model", "state_dict"."""
    while isinstance(content, Mapping):
        tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)}
        inner = [k for k in ("state_dict", "model") if isinstance(content.get(k), Mapping)]
        if tensors and not inner:
            return {str(k): v for k, v in tensors.items()}
        if not inner:
            break
        content = content[inner[0]]
    raise CheckpointError(f"{path} holds no tensors by name")


def _translate(
    model: SEDModel, state: dict[str, Tensor], path: Path, checkpoint: Checkpoint
) -> tuple[dict[str, Tensor], str, list[str]]:
    """Bring a file's names to the model's: (state, layout, names left out)."""
    body = model.backbone
    expected = set(body.state_dict())
    top = {name: new for name in state if (new := _top_name(name)) != name}
    rest = [name for name in state if name not in top]

    def below(prefix: str) -> dict[str, str]:
        found = {n: body.rename(n[len(prefix) :]) for n in rest if n.startswith(prefix)}
        return {n: new for n, new in found.items() if new in expected}

    layouts = {"own": ["backbone."], "release": body.prefixes, "upstream": body.upstream_prefixes}
    found, layout = max(
        ((below(prefix), layout) for layout, prefixes in layouts.items() for prefix in prefixes),
        key=lambda pair: len(set(pair[0].values())),
    )
    if not found:
        first = ", ".join(list(state)[:3])
        raise CheckpointError(
            f"{path} does not hold {checkpoint.name}: none of its {len(state)} keys belongs to "
            f"{checkpoint.backbone} (it begins with {first})"
        )
    names = {n: f"backbone.{new}" for n, new in found.items()}
    left_out = []
    for name in state:
        if name in found:
            continue
        new = name if layout == "own" else _sequence_name(model, top.get(name, name))
        if layout == "upstream" or _unused(model, name, new, state[name]):
            left_out.append(name)
        else:
            names[name] = new
    return _without_constants(model, _gather(state, names, path), path), layout, left_out


def _top_name(name: str) -> str:
    for pattern, replacement in TOP_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _sequence_name(model: SEDModel, name: str) -> str:
    prefix = "sequence_model."
    if isinstance(model.sequence_model, SequenceModel) and name.startswith(prefix):
        return prefix + model.sequence_model.rename(name[len(prefix) :])
    return name


def _unused(model: SEDModel, name: str, new: str, value: Tensor) -> bool:
    """Whether a key has no use here.

    That is a listed one, a head where no trained one is wanted, or a clip head of other classes
    than the frame head's (EfficientSED's loader leaves it out as well).
    """
    if any(re.fullmatch(pattern, name) for pattern in model.backbone.unused_keys):
        return True
    if new.startswith("head.weak.") and model.labels is not None:
        return tuple(value.shape[:1]) != (len(model.labels),)
    return new.startswith("head.") and model.head is None


def _without_constants(model: SEDModel, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state without tensors that are computed here, once they are seen to be the same."""
    if not isinstance(model.sequence_model, SequenceModel):
        return state
    constants = {f"sequence_model.{k}": v for k, v in model.sequence_model.constants().items()}
    for name in constants.keys() & state.keys():
        given, own = state[name].float(), constants[name]
        if given.shape != own.shape or not torch.allclose(given, own, rtol=1e-5, atol=0):
            raise CheckpointError(f"{path}: {name} holds other constants than this model computes")
    return {name: value for name, value in state.items() if name not in constants}


def _gather(state: dict[str, Tensor], names: dict[str, str], path: Path) -> dict[str, Tensor]:
    """Tensors under their new names; several names of one tensor have to agree."""
    out: dict[str, Tensor] = {}
    for name, new in names.items():
        if new in out and not torch.equal(out[new], state[name]):
            raise CheckpointError(f"{path}: {name} should repeat {new}, and differs from it")
        out[new] = state[name]
    return out


def _compare(model: SEDModel, state: dict[str, Tensor], path: Path, checkpoint: Checkpoint) -> None:
    """Compare names and shapes as sets; raise on any difference."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    if isinstance(model.sequence_model, SequenceModel):
        prefix = "sequence_model."
        below = {k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}
        shapes = model.sequence_model.file_shapes(below)
        expected |= {prefix + name: shape for name, shape in shapes.items()}
    for name in ("head.weak.weight", "head.weak.bias"):  # a file without clip head is complete
        if model.head is not None and "head.weak.weight" not in state:
            expected.pop(name, None)
    parts = _differences(expected, given)
    if not parts:
        return
    missing, foreign = expected.keys() - given.keys(), given.keys() - expected.keys()
    hint = ""
    if any(name.startswith("head.strong") for name in missing):
        hint = "; it has no trained strong head: is it an SSL or weak file?"
    if any(name.startswith("sequence_model.") for name in foreign):
        own = "another one than" if checkpoint.sequence_model else "none of which is in"
        hint = f"; it holds a sequence model, {own} this checkpoint's"
    raise CheckpointError(f"{path} does not hold {checkpoint.name}: {'; '.join(parts)}{hint}")


def _differences(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """What is missing, unknown or of another shape, in words; nothing where all is the same."""
    missing = sorted(expected.keys() - given.keys())
    foreign = sorted(given.keys() - expected.keys())
    shapes = [
        f"{name} has {given[name]}, not {expected[name]}"
        for name in sorted(expected.keys() & given.keys())
        if given[name] != expected[name]
    ]
    return [
        f"{len(found)} {what}: {', '.join(found[:N_SHOWN])}{', ...' if len(found) > N_SHOWN else ''}"
        for what, found in (("missing", missing), ("unknown", foreign), ("of another shape", shapes))
        if found
    ]
