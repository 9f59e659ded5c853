"""Files -> weights in a model: read, rename, compare as sets, copy; or one clear error.

Layouts: PretrainedSED releases (`model.<...>`, `strong_head.*`, `weak_head.*`, `seq_model.*`),
EfficientSED's (`net.model.<...>`, `net.strong_head.*`, ...), files of the backbones' own authors,
and this project's own (.pt or .safetensors).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from hear_pretrainedsed.backbones.base import Backbone
from hear_pretrainedsed.heads import LinearHead
from hear_pretrainedsed.model import HEADS, Options, SEDModel, build_checkpoint, build_model
from hear_pretrainedsed.records import HashRecord, record_sha256
from hear_pretrainedsed.registry import CHECKPOINTS, Checkpoint
from hear_pretrainedsed.sequence_models.base import SequenceModel
from hear_pretrainedsed.weight_files import CheckpointError, Contents, Saved, read, write

#: names of heads and sequence model: published -> here
TOP_NAMES = (
    (r"^(?:net\.|model\.)?strong_head\.", "head.strong."),
    (r"^(?:net\.|model\.)?weak_head\.", "head.weak."),
    (r"^(?:net\.|model\.)?seq_model\.", "sequence_model."),
    (r"^(?:module\.)?attention\.", "head."),
    (r"^(?:sed_teacher\.)?dense\.", "head.strong."),
    (r"^(?:sed_teacher\.)?dense_softmax\.", "head.weak."),
)
#: counters of batches seen: no weights; files may lack them or have more of them
COUNTERS = re.compile(r"(.*\.)?(num_batches_tracked|n_averaged)")
N_SHOWN = 5


@dataclass
class Loaded:
    """What `load_weights` found: layout, sha256 of the file, and the keys it left out."""

    path: Path
    layout: str
    sha256: str
    left_out: list[str] = field(default_factory=list)


def build_for(
    saved: Saved | None, checkpoint: Checkpoint, options: Options | None = None
) -> SEDModel:
    """The network of a checkpoint, with the head and classes that a file of this project names."""
    if saved is None or (saved.labels is None and options and options.vocabulary):
        return build_checkpoint(checkpoint, options)
    return build_model(
        checkpoint.backbone,
        sequence_model=checkpoint.sequence_model,
        head=saved.head,
        labels=saved.labels,
        n_classes=saved.n_classes,
        clip_s=saved.clip_s or checkpoint.clip_s,
        options=options,
    )


def load_weights(model: SEDModel, path: str | Path, checkpoint: Checkpoint) -> Loaded:
    """Fill `model` from the file `path`, which has to hold `checkpoint`; all or nothing.

    Parameters are replaced, in float32: make optimisers afterwards. Files without a trained clip
    head, or with one of other classes, leave the model without one. Warns at the first load of a
    published file whose sha256 is not known, and when a file's sha256 has changed since.

    Raises:
        CheckpointError: the file cannot be read, holds something else, lacks or has more keys than
            the model, or other shapes. The message names file, checkpoint and first differences.
    """
    path = Path(path)
    with _named(checkpoint):
        _check_name(path, checkpoint)
        contents = read(path)
        _check_saved(model, contents.saved, path, checkpoint)
        state, layout, left_out = _translate(model, contents, path, checkpoint)
        _compare(model, state, path, checkpoint)
        state = _converted(model, _without_constants(model, state, path), path)
    record = record_sha256(path)
    _tell_first_load(record, path, checkpoint)
    if getattr(model.head, "weak", None) is not None and "head.weak.weight" not in state:
        model.head.weak = None  # never at random values
        left_out.append("(no weak_head in the file: the model has no clip scores)")
    model.load_state_dict(state, strict=True, assign=True)
    loaded = Loaded(path, layout, record.sha256, left_out)
    saved = contents.saved or Saved(None)
    model.decoding = saved.decoding
    model.provenance = {
        "checkpoint": checkpoint.name,
        "file": path.name,
        "sha256": loaded.sha256,
        "layout": layout,
        "left_out": left_out,
        "origin": saved.origin,
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
    state, layout, left_out = _translate(model, read(path), path, checkpoint)
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    dropped = [k for k, shape in given.items() if k.startswith("head.") and own.get(k) != shape]
    fitting = {k: value for k, value in state.items() if k not in dropped}
    body = {k: shape for k, shape in own.items() if k in fitting or not k.startswith("head.")}
    if parts := _differences(body, {k: tuple(value.shape) for k, value in fitting.items()}):
        raise CheckpointError(f"{path} does not hold {checkpoint.name}: {'; '.join(parts)}")
    model.load_state_dict(_converted(model, fitting, path), strict=False)
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
    skipped = re.compile("|".join([*body.image_skips, COUNTERS.pattern])).fullmatch
    state = read(path).tensors
    own = {k: tuple(value.shape) for k, value in body.state_dict().items() if not skipped(k)}
    fitting = {k: value for k, value in state.items() if not skipped(k)}
    if parts := _differences(own, {k: tuple(value.shape) for k, value in fitting.items()}):
        raise CheckpointError(f"{path} does not hold this backbone: {'; '.join(parts)}")
    body.load_state_dict(_converted(body, fitting, path), strict=False)
    left_out = [k for k in state if k not in fitting and not COUNTERS.fullmatch(k)]
    return Loaded(path, "images", record_sha256(path).sha256, left_out)


def save_weights(model: SEDModel, path: str | Path) -> None:
    """Write the model in this project's own layout, atomically; the ending decides the format.

    `.safetensors` and `.pt` hold the same: tensors under the names here, the checkpoint's name, the
    kind of head, its classes and their decoding, what it was trained from. Raises ValueError for
    another ending or a missing folder.
    """
    state = {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()}
    head = next((name for name, kind in HEADS.items() if type(model.head) is kind), None)
    n = next((len(v) for k, v in state.items() if k.startswith("head.") and v.ndim > 1), None)
    name, origin = (model.provenance.get(key) for key in ("checkpoint", "origin"))
    layers = getattr(model.sequence_model, "n_layers", None)
    clip_s = model.clip_samples / model.grid.sample_rate
    facts = Saved(name, head, model.labels, n, model.decoding, origin, layers, clip_s)
    write(Path(path), state, facts)


@contextmanager
def _named(checkpoint: Checkpoint) -> Iterator[None]:
    """Name the checkpoint in every error about its file."""
    try:
        yield
    except CheckpointError as error:
        if checkpoint.name in str(error):
            raise
        raise CheckpointError(f"cannot load {checkpoint.name}: {error}") from None


def _check_name(path: Path, checkpoint: Checkpoint) -> None:
    """Refuse a published file given for another checkpoint: contents cannot always tell."""
    other = next((c for c in CHECKPOINTS.values() if c.file == path.name), checkpoint)
    if other.name != checkpoint.name:
        raise CheckpointError(
            f"{path} is the published file of {other.name}, not of {checkpoint.name} "
            f"({checkpoint.file})"
        )


def _check_saved(model: SEDModel, saved: Saved | None, path: Path, checkpoint: Checkpoint) -> None:
    """Compare what a file of this project says about itself: its tensors cannot tell."""
    if saved is None:
        return
    published = saved.checkpoint in CHECKPOINTS and checkpoint.name in CHECKPOINTS
    if published and saved.checkpoint != checkpoint.name:
        raise CheckpointError(f"{path} says it holds {saved.checkpoint}, not {checkpoint.name}")
    if saved.labels and model.labels and saved.labels != model.labels:
        raise CheckpointError(
            f"{path} does not hold {checkpoint.name} with the model's {len(model.labels)} classes: "
            f"it has {len(saved.labels)} of its own ({', '.join(saved.labels[:3])}, ...)"
        )


def _tell_first_load(record: HashRecord, path: Path, checkpoint: Checkpoint) -> None:
    published = path.name == checkpoint.file and checkpoint.sha256 is None
    if published and record.recorded is None:
        warnings.warn(
            f"first load of {path.name}: its sha256 {record.sha256} is recorded, and nobody here "
            "has seen another to compare it with; later loads are compared with this one",
            stacklevel=3,
        )


def _converted(module: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors of the module's own: contiguous, floating ones in float32 and finite."""
    out, taken = {}, set()
    for name, own in module.state_dict().items():
        if name not in state:  # a head that is dropped
            continue
        given, is_real = state[name].detach(), own.is_floating_point()
        if given.is_floating_point() != is_real:
            raise CheckpointError(
                f"{path}: {name} holds {given.dtype}, where {own.dtype} is wanted"
            )
        device = "cpu" if own.is_meta else own.device
        value = given.to(device, torch.float32 if is_real else own.dtype).contiguous()
        storage = value.untyped_storage()
        if storage.nbytes() != value.nbytes or storage.data_ptr() in taken:  # others share it
            value = value.clone()
        taken.add(storage.data_ptr())
        # A sum is finite where all values are, and faster; values near the limit may overflow it.
        if is_real and not (value.sum().isfinite() or value.isfinite().all()):
            raise CheckpointError(f"{path} is refused: {name} has values that are NaN or infinite")
        out[name] = value
    return out


def _translate(
    model: SEDModel, contents: Contents, path: Path, checkpoint: Checkpoint
) -> tuple[dict[str, Tensor], str, list[str]]:
    """Bring a file's names to the model's: (state, layout, names left out)."""
    body, state = model.backbone, contents.tensors
    expected = set(body.state_dict())
    top = {name: new for name in state if (new := top_name(name)) != name}
    layout, under = _best_layout(body, [name for name in state if name not in top])
    found = {name: new for name, new in under.items() if new in expected}
    if not found:
        first = ", ".join(list(state)[:3])
        raise CheckpointError(
            f"{path} does not hold {checkpoint.name}: none of its {len(state)} keys belongs to "
            f"{checkpoint.backbone} (it begins with {first})"
        )
    names = {n: f"backbone.{new}" for n, new in found.items()}
    left_out = list(contents.others)
    # An author's file holds other networks too. What is named like a part of this one is its own.
    parts = {name.split(".")[0] for name in expected} if layout == "upstream" else set()
    for name in state:
        if name in found:
            continue
        new = name if layout == "own" else _sequence_name(model, top.get(name, name))
        outside = name not in top and under.get(name, "").split(".")[0] not in parts
        if (outside and layout == "upstream") or _unused(model, name, new, state[name]):
            left_out.append(name)
        else:
            names[name] = new
    state = _gather(state, names, path)
    for name, own in model.state_dict().items():
        if COUNTERS.fullmatch(name) and name not in state:
            state[name] = torch.zeros(own.shape, dtype=own.dtype, device="cpu")
            left_out.append(f"(no {name} in the file: it is zero)")
    return state, layout, left_out


def _best_layout(body: Backbone, names: list[str]) -> tuple[str, dict[str, str]]:
    """The layout and prefix that most of a backbone's names are found under.

    Returns the layout's name and, for all names under the prefix, what they are called below it
    here: {name in the file: name here}.
    """

    def below(prefix: str) -> dict[str, str]:
        found = ((name, re.match(prefix, name)) for name in names)
        return {name: body.rename(name[match.end() :]) for name, match in found if match}

    layouts = {
        "own": [r"backbone\."],
        "release": [re.escape(prefix) for prefix in body.prefixes],
        "upstream": body.upstream_prefixes,
    }
    expected = set(body.state_dict())
    return max(
        ((layout, below(prefix)) for layout, prefixes in layouts.items() for prefix in prefixes),
        key=lambda pair: len(expected.intersection(pair[1].values())),
    )


def top_name(name: str) -> str:
    """Name of a head's or sequence model's tensor in a published file -> name here."""
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

    That is a listed one, a counter that the model has not, a head where no trained one is wanted,
    or a clip head of other classes than the frame head's (the originals' loaders drop it as well).
    """
    if any(re.fullmatch(pattern, name) for pattern in model.backbone.unused_keys):
        return True
    if COUNTERS.fullmatch(name):
        return new not in model.state_dict()
    if new.startswith("head.weak.") and isinstance(model.head, LinearHead) and model.head.strong:
        return tuple(value.shape[:1]) != (model.head.strong.out_features,)
    return new.startswith("head.") and model.head is None


def _constants(model: SEDModel) -> dict[str, Tensor]:
    """Tensors that a file may hold and that are computed here."""
    if not isinstance(model.sequence_model, SequenceModel):
        return {}
    return {f"sequence_model.{k}": v for k, v in model.sequence_model.constants().items()}


def _without_constants(model: SEDModel, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state without tensors that are computed here, once they are seen to be the same."""
    constants = _constants(model)
    for name in constants.keys() & state.keys():
        if not torch.allclose(state[name].float(), constants[name], rtol=1e-5, atol=0):
            raise CheckpointError(f"{path}: {name} holds other constants than this model computes")
    return {name: value for name, value in state.items() if name not in constants}


def _gather(state: dict[str, Tensor], names: dict[str, str], path: Path) -> dict[str, Tensor]:
    """Tensors under their new names; several names of one tensor have to agree."""
    out: dict[str, Tensor] = {}
    for name, new in names.items():
        value = state[name]
        if new in out and not (out[new].dtype == value.dtype and torch.equal(out[new], value)):
            raise CheckpointError(f"{path}: {name} should repeat {new}, and differs from it")
        out[new] = value
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
    constants = {name: tuple(value.shape) for name, value in _constants(model).items()}
    expected |= {name: shape for name, shape in constants.items() if name in given}
    if isinstance(model.head, LinearHead) and not any(k.startswith("head.weak.") for k in given):
        expected.pop("head.weak.weight", None)  # a file without clip head is complete
        expected.pop("head.weak.bias", None)
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
    found = {"missing": missing, "unknown": foreign, "of another shape": shapes}
    return [
        f"{len(names)} {what}: {', '.join(names[:N_SHOWN])}{', ...' if names[N_SHOWN:] else ''}"
        for what, names in found.items()
        if names
    ]
