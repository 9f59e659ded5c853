"""Weight files: bytes <-> tensors by name. torch.save's formats and safetensors, no code run.

Every way in which a file can be no weight file is one `CheckpointError` here; what its tensors
mean is told in `checkpoints`.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hear_pretrainedsed.decoding import Decoding
from hear_pretrainedsed.events import disk_errors
from hear_pretrainedsed.fetch import is_web_page
from hear_pretrainedsed.frames import WINDOWINGS

ZIP, PICKLE, SAFETENSORS = "zip", "pickle", "safetensors"
FACTS_KEY = "hear_pretrainedsed"  # of the facts that this project's own files carry
MAX_DEPTH = 4  # of dictionaries around the tensors
NETWORKS = ("state_dict", "model", "sed_teacher")  # what those that hold the tensors are called


class CheckpointError(ValueError):
    """A file that does not hold the checkpoint it was given for; the model is left as it was."""


@dataclass(frozen=True)
class Saved:
    """What a file of this project's own layout says about itself."""

    checkpoint: str | None
    head: str | None = None  # key of `heads.HEADS`
    labels: tuple[str, ...] | None = None
    n_classes: int | None = None
    decoding: Decoding | None = None  # of its scores, class by class
    origin: dict[str, Any] | None = None  # what it was trained from, and how
    n_layers: int | None = None  # of its sequence model, where that may be chosen
    clip_s: float | None = None  # what `SEDModel.clip_samples` is of; older files do not tell

    @property
    def windowing(self) -> str | None:
        """The windowing of the scores that its decoding was calibrated on, where it tells it."""
        recipe = (self.origin or {}).get("recipe")
        return recipe.get("windowing") if isinstance(recipe, dict) else None


class Contents(NamedTuple):
    """What a file holds: tensors, the names of everything else, and this project's own facts."""

    tensors: dict[str, Tensor]
    others: list[str]
    saved: Saved | None


def read(path: Path) -> Contents:
    """Everything in a file; `CheckpointError` names the file and says what is wrong with it."""
    kind = _kind(path)
    if kind == SAFETENSORS:
        return _read_safetensors(path)
    return _contents(_load(path), path)


def read_saved(path: Path) -> Saved | None:
    """What this project's own file says about itself, without its tensors; None for any other."""
    try:
        kind = _kind(path)
        if kind == SAFETENSORS:
            with _safetensors_file(path) as file:
                return _saved(file.metadata() or {}, path)
        content = _load(path, mmap=True) if kind == ZIP else None
    except CheckpointError:
        return None  # `read` will say it
    return _saved(content, path) if isinstance(content, Mapping) else None


def write(path: Path, tensors: dict[str, Tensor], saved: Saved) -> None:
    """Write tensors and facts, atomically; the ending decides the format.

    Raises `ValueError` for another ending or a folder that is not there, `OSError` with the file's
    name where the disk does not take it.
    """
    if path.suffix not in (".safetensors", ".pt"):
        raise ValueError(
            f"cannot write weights to {path}: the name has to end in .safetensors or .pt"
        )
    if not path.parent.is_dir():
        raise ValueError(f"cannot write weights to {path}: there is no folder {path.parent}")
    facts = {FACTS_KEY: json.dumps(asdict(saved))}
    part = path.with_name(path.name + ".part")
    try:
        if path.suffix == ".safetensors":
            safetensors = _safetensors(path)
            try:
                safetensors.torch.save_file(tensors, part, metadata=facts)
            except safetensors.SafetensorError as error:
                raise OSError(f"cannot write {path}: {error}") from error
        else:
            with disk_errors(path), part.open("wb") as file:
                torch.save({**facts, "state_dict": tensors}, file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _kind(path: Path) -> str:
    """Format of a file, from its first bytes."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a file of weights")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if is_web_page(start):
        raise CheckpointError(f"{path} is a web page, not a file of weights: fetch it again")
    if len(start) < 16:
        raise CheckpointError(f"{path} is empty or cut off: it has {len(start)} bytes")
    if start.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return ZIP
    if start[8:9] == b"{":
        return SAFETENSORS
    if start.startswith(b"\x80"):
        return PICKLE
    raise CheckpointError(f"{path} is no file of weights: it begins with {start[:16]!r}")


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except Exception:  # zipfile raises many kinds on bad bytes
        raise CheckpointError(f"{path} is cut off or damaged: fetch it again") from None
    if "constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript program, not a file of weights")
    if "data.pkl" not in names:
        raise CheckpointError(f"{path} is a zip archive, but not one that holds weights")


def _load(path: Path, mmap: bool = False) -> object:
    """What torch.load gives, Python objects refused."""
    try:
        # Lightning keeps its settings in a Namespace.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        if not found:
            raise CheckpointError(
                f"{path} is damaged, or a pickle of something else than tensors, and is not run"
            ) from None
        # Not chained: torch's text tells how to switch this safety off.
        raise CheckpointError(
            f"{path} is refused: it is damaged, or holds Python objects or code ({found[1]})"
        ) from None
    except Exception as error:  # torch raises a dozen kinds on bad bytes
        raise CheckpointError(f"{path} is cut off or damaged ({_cause(error)})") from None


def _cause(error: Exception) -> str:
    """First sentence of an error."""
    text = str(error).strip()
    first = re.split(r"\n|\. ", text)[0] if "weights_only" not in text else ""
    return f"{type(error).__name__}: {first[:150]}" if first else type(error).__name__


def _safetensors(path: Path) -> ModuleType:
    try:
        import safetensors.torch
    except ImportError:
        raise CheckpointError(f"{path} needs the package safetensors, which is missing") from None
    return safetensors


@contextmanager
def _safetensors_file(path: Path) -> Iterator[Any]:
    library = _safetensors(path)
    try:
        with library.safe_open(path, framework="pt") as file:
            yield file
    except CheckpointError:
        raise
    except Exception as error:  # its header is checked against the file's length when it is opened
        raise CheckpointError(f"{path} is cut off or damaged ({_cause(error)})") from None


def _read_safetensors(path: Path) -> Contents:
    with _safetensors_file(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        saved = _saved(file.metadata() or {}, path)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name")
    return Contents(tensors, [], saved)


def _contents(content: object, path: Path) -> Contents:
    """The tensors inside what a file holds: itself, or under one of `NETWORKS`."""
    saved = _saved(content, path) if isinstance(content, Mapping) else None
    others: list[str] = []
    for _ in range(MAX_DEPTH):
        if not isinstance(content, Mapping):
            break
        inner = next((k for k in NETWORKS if isinstance(content.get(k), Mapping)), 0)
        if inner:
            others += [str(k) for k in content if k not in (inner, FACTS_KEY)]
            content = content[inner]
            continue
        tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        others += [str(k) for k in content if k not in tensors and k != FACTS_KEY]
        if not tensors:
            break
        for name, value in tensors.items():
            if value.layout != torch.strided or value.is_meta or value.is_quantized:
                raise CheckpointError(f"{path}: {name} is no plain tensor with values")
        return Contents(tensors, others, saved)
    raise CheckpointError(f"{path} holds no tensors by name")


def _saved(content: Mapping, path: Path) -> Saved | None:
    """This project's own facts among what a file holds."""
    if FACTS_KEY not in content:
        return None
    try:
        facts = json.loads(content[FACTS_KEY])
        if facts.get("decoding") is not None:
            facts["decoding"] = Decoding(**{k: tuple(v) for k, v in facts["decoding"].items()})
        saved = Saved(**facts)
    except (AttributeError, TypeError, ValueError, RecursionError):
        saved = Saved(None, labels=0)
    fields = (
        (saved.checkpoint, str | None),
        (saved.head, str | None),
        (saved.labels, list | None),
        (saved.n_classes, int | None),
        (saved.origin, dict | None),
        (saved.n_layers, int | None),
        (saved.clip_s, int | float | None),
    )
    n_classes = saved.n_classes if saved.labels is None else len(saved.labels or ())
    fits = saved.decoding is None or len(saved.decoding.thresholds) == n_classes
    fits &= all(isinstance(value, kind) for value, kind in fields)
    if not (fits and saved.windowing in (None, *WINDOWINGS)):
        raise CheckpointError(f"{path}: what it says about itself cannot be read")
    return replace(saved, labels=saved.labels and tuple(map(str, saved.labels)))
