"""Checkpoints of the user's own: a file in the cache folder each, and `imported.json` with facts.

They are added to `registry.CHECKPOINTS` when the package is imported, and behave like published
ones from then on.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hear_pretrainedsed.checkpoints import load_weights, save_weights, top_name
from hear_pretrainedsed.events import whole_file
from hear_pretrainedsed.model import build_model
from hear_pretrainedsed.records import cache_folder, forget_sha256, known_sha256, locked
from hear_pretrainedsed.registry import (
    BACKBONES,
    CHECKPOINTS,
    SEQUENCE_MODELS,
    STAGES,
    Checkpoint,
    read_labels,
    read_vocabulary,
    unknown,
)
from hear_pretrainedsed.weight_files import read

REGISTRY = "imported.json"
LICENCE = "the user's own"
FORM = "BACKBONE.STAGE[-VARIANT][+SEQUENCE-DIM], lower case, as fmn04.strong-mine"
_LOCK = "import.lock"  # of the registry and the files together
_UNUSABLE = (OSError, ValueError, TypeError, AttributeError, RecursionError)
_TAKEN = "there is a checkpoint {} already: take another name"
_NAME = re.compile(
    r"(?P<backbone>[a-z0-9_]+)\.(?P<stage>[a-z]+)(?P<variant>(-[a-z0-9_]+)*)"
    r"(\+(?P<sequence>[a-z0-9]+)-(?P<dim>[1-9][0-9]*))?"
)


def add_imported() -> None:
    """Add the user's checkpoints to the registry; what cannot be is told in a warning."""
    for name, facts in _read_registry().items():
        try:
            checkpoint = _checkpoint(facts)
            check_name(checkpoint.name)
        except (TypeError, ValueError) as error:
            warnings.warn(f"{_path()}: {name} is left out: {error}", stacklevel=2)
            continue
        CHECKPOINTS[checkpoint.name] = checkpoint


def import_checkpoint(
    path: str | os.PathLike[str], name: str, vocabulary: str | os.PathLike[str] | None = None
) -> Checkpoint:
    """Take a file of weights in as the checkpoint `name`, as a copy in the cache folder.

    Args:
        path: in any layout that `load_model` takes, or as `finetune` wrote it.
        name: new, and telling the network: see `FORM`.
        vocabulary: file with the head's class names, for a file that does not tell them.

    Raises:
        ValueError: the name is taken or tells no network, or the file does not hold the network.
    """
    path = Path(path)
    check_name(name)
    checkpoint = _described(path, name, vocabulary)
    model = build_model(
        checkpoint.backbone,
        sequence_model=checkpoint.sequence_model,
        head=checkpoint.head if checkpoint.n_classes else None,
        labels=checkpoint.names,
        n_classes=checkpoint.n_classes,
        clip_s=checkpoint.clip_s,
    )
    loaded = load_weights(model, path, checkpoint)
    origin = model.provenance["origin"]
    model.provenance["origin"] = origin or {"file": path.name, "sha256": loaded.sha256}
    note = f"imported from {path.name} (sha256 {loaded.sha256[:12]}...)"
    if origin and origin.get("mode") == "pretrain":
        note += f"; made by the recipe {origin.get('recipe')}"
    elif origin:
        note += f"; {origin.get('checkpoint')} fine-tuned on {origin.get('task')}"
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / checkpoint.file
    with locked(folder / _LOCK):  # from the look at the names to the new one among them
        if name in _read_registry():  # of another process, since this one read them
            raise ValueError(_TAKEN.format(name))
        forget_sha256(copy)
        save_weights(model, copy)
        checkpoint = replace(checkpoint, sha256=known_sha256(copy), note=note)
        _change({name: asdict(checkpoint)})
    CHECKPOINTS[name] = checkpoint
    return checkpoint


def remove_checkpoint(name: str) -> Path:
    """Forget a checkpoint of the user's and remove its file; where that was."""
    known = _read_registry()
    if name not in known and name in CHECKPOINTS:
        raise ValueError(f"{name} is a published checkpoint: only imported ones can be removed")
    if name not in known:
        raise ValueError(unknown("imported checkpoint", name, known or ["none so far"]))
    path = cache_folder() / _file(name)  # its facts may be a newer version's
    with locked(cache_folder() / _LOCK):
        _change({name: None})
        path.unlink(missing_ok=True)
        forget_sha256(path)
    CHECKPOINTS.pop(name, None)
    return path


def check_name(name: str) -> None:
    """Refuse a name that is taken, tells no network, or would share a HEAR module."""
    found = _NAME.fullmatch(name)
    if not found:
        raise ValueError(f"{name!r} is no checkpoint's name: {FORM}")
    if found["backbone"] not in BACKBONES:
        raise ValueError(unknown("backbone", found["backbone"], BACKBONES))
    if found["stage"] not in STAGES:
        raise ValueError(unknown("stage", found["stage"], STAGES))
    if found["sequence"] and found["sequence"] not in SEQUENCE_MODELS:
        raise ValueError(unknown("sequence model", found["sequence"], SEQUENCE_MODELS))
    module = Checkpoint(name, "", "").module
    for other in CHECKPOINTS.values():
        if other.name == name:
            raise ValueError(_TAKEN.format(name))
        if other.module == module:
            raise ValueError(f"{name} would have the HEAR module {module}, as {other.name} has")


def _described(path: Path, name: str, vocabulary: str | os.PathLike[str] | None) -> Checkpoint:
    """What a file is to be loaded as: the network is the name's, the head is the file's."""
    base = _nearest(Checkpoint(name, "", ""))
    contents = read(path)
    new = replace(
        base,
        name=name,
        file=_file(name),
        licence=LICENCE,
        release=None,
        sha256=None,
        labels=None,
        psds1=None,
        n_classes=None,
        own=True,
    )
    if (saved := contents.saved) is not None:
        new = replace(new, n_layers=saved.n_layers, clip_s=saved.clip_s or base.clip_s)
        if saved.head is not None:
            count = len(saved.labels) if saved.labels else saved.n_classes
            new = replace(new, head=saved.head, names=saved.labels, n_classes=count)
    elif base.labels or base.n_classes:
        heads = {top_name(key): value for key, value in contents.tensors.items()}
        rows = [len(v) for k, v in heads.items() if k.startswith("head.") and v.ndim > 1]
        names = read_labels(base.labels) if base.labels else None
        count = rows[0] if rows else None
        new = replace(new, names=names if names and len(names) == count else None, n_classes=count)
    if vocabulary is not None:
        new = replace(new, names=read_vocabulary(vocabulary, replace(new, names=None)))
    return new


def _file(name: str) -> str:
    return f"{name}.safetensors"


def _nearest(wanted: Checkpoint) -> Checkpoint:
    """The published checkpoint whose facts a new one shares: the network's, best of its stage."""
    published = [c for c in CHECKPOINTS.values() if not c.own and c.backbone == wanted.backbone]
    return max(
        published,
        key=lambda c: (c.stage == wanted.stage, c.sequence_model == wanted.sequence_model),
    )


def _checkpoint(facts: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint from what JSON kept of it."""
    names = facts.get("names")
    return Checkpoint(**{**facts, "names": names and tuple(names)})


def _path() -> Path:
    return cache_folder() / REGISTRY


def _read_registry() -> dict[str, dict[str, Any]]:
    """Facts by name; none, and a warning, where the file cannot be used."""
    try:
        return _content()
    except _UNUSABLE as error:
        warnings.warn(
            f"{_path()} cannot be used, imported checkpoints are unknown: {error}", stacklevel=3
        )
        return {}


def _content() -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(_path().read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {str(name): dict(facts) for name, facts in content.items()}


def _change(entries: Mapping[str, dict[str, Any] | None]) -> None:
    """Put entries into the file, or take them out (None), whatever other processes do."""
    path = _path()
    with locked(path.with_name(f"{REGISTRY}.lock")):
        try:
            content = _content() | entries
        except _UNUSABLE:
            aside = path.with_name(f"{REGISTRY}.unusable")
            os.replace(path, aside)
            warnings.warn(f"{path} was unusable: moved to {aside}, begun anew", stacklevel=3)
            content = dict(entries)
        content = {name: facts for name, facts in sorted(content.items()) if facts is not None}
        with whole_file(path) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")
