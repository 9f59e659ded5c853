"""Exported ONNX files and their metadata: written, read, compared with the graph.

An exported file says in `metadata_props` what it is, and holds a hash of all its content, so that
a file whose graph or metadata were changed is told from a whole one. ONNX's IR:
https://onnx.ai/onnx/repo-docs/IR.html.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

HASH_KEY = "content_sha256"


class ExportError(ValueError):
    """A model that cannot be exported, or an ONNX file that is not what its metadata say."""


@dataclass(frozen=True)
class OnnxFacts:
    """Metadata of an exported file: an entry of `metadata_props` each, as JSON where not text.

    checkpoint, weights_sha256, licence: "" for a network that was loaded from no file.
    classes: names in the order of the outputs; None without a head, and where nobody knows them.
    n_classes: 0 without a head.
    thresholds, median_frames: of each class, as calibrated for the model (`decoding.Decoding`);
    None where that was not done.
    windowing: how windows are cut from longer audio ("reference", "overlap": `Options`), and were
    where these were calibrated.
    sample_rate, hop_s, window_s: in Hz; from frame to frame, and of the one window, in seconds.
    batch_norms: "folded" into the convolutions; "none" where the network has none.
    inputs, outputs: name -> what it is, with axes; outputs are named after `SEDModel`'s methods.
    package_version: of hear_pretrainedsed.
    """

    checkpoint: str
    weights_sha256: str
    licence: str
    classes: tuple[str, ...] | None
    n_classes: int
    thresholds: tuple[float, ...] | None
    median_frames: tuple[int, ...] | None
    windowing: str
    sample_rate: int
    hop_s: float
    window_s: float
    batch_norms: str
    opset: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    package_version: str


#: name -> type, as it is written above
_FACTS: dict[str, str] = {field.name: field.type for field in fields(OnnxFacts)}


def require(*packages: str) -> None:
    """Refuse to go on without packages of the extra `export`."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ExportError(
            f"ONNX files need {' and '.join(missing)}, which this environment has not: "
            "pip install 'hear-pretrainedsed[export]'"
        )


def write_facts(proto: ModelProto, facts: OnnxFacts) -> None:
    """Put the facts, and then a hash of all there is, into the model."""
    proto.producer_name = __name__.partition(".")[0]
    proto.producer_version = facts.package_version
    for key, value in asdict(facts).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        proto.metadata_props.add(key=key, value=text)
    proto.metadata_props.add(key=HASH_KEY, value=_content_sha256(proto))


def _content_sha256(proto: ModelProto) -> str:
    """Hash of a model without `HASH_KEY`."""
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def read_onnx(path: str | os.PathLike[str]) -> OnnxFacts:
    """Metadata of a file that `export_onnx` wrote, once it is seen that they still hold.

    Compared are the number of classes with the outputs' widths, names of inputs and outputs, the
    opset, and the hash of the whole content.

    Raises:
        ExportError: the file cannot be read, was not written by `export_onnx`, or was changed.
    """
    path = Path(path)
    proto = _load(path)
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    missing = [key for key in (*_FACTS, HASH_KEY) if key not in entries]
    if missing:
        raise ExportError(
            f"{path} was not written by `export`, or has lost its metadata: "
            f"it has no {', '.join(missing[:3])}{', ...' if missing[3:] else ''}"
        )
    try:
        facts = OnnxFacts(**{key: _parsed(key, entries[key]) for key in _FACTS})
    except (TypeError, ValueError, RecursionError) as error:
        raise ExportError(f"{path}: its metadata cannot be read: {error}") from None
    if difference := _difference(proto, facts):
        raise ExportError(f"{path} no longer matches its metadata: {difference}")
    for i in reversed(range(len(proto.metadata_props))):
        if proto.metadata_props[i].key == HASH_KEY:
            del proto.metadata_props[i]
    if (found := _content_sha256(proto)) != entries[HASH_KEY]:
        raise ExportError(
            f"{path} was changed after its export: the sha256 of its content is {found[:12]}..., "
            f"and {entries[HASH_KEY][:12]}... is recorded: export it again"
        )
    return facts


def describe(path: str | os.PathLike[str]) -> list[str]:
    """`read_onnx` for people: a line each, class names left out."""
    lines = []
    for key, value in asdict(read_onnx(path)).items():
        if isinstance(value, dict):
            lines += [f"{key[:-1] + ':':<17}{name}, {text}" for name, text in value.items()]
        elif key != "classes" and value not in ("", None):
            lines.append(f"{key + ':':<17}{value}")
    return lines


def _load(path: Path) -> ModelProto:
    require("onnx")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path, format="protobuf", load_external_data=False)
    except FileNotFoundError:
        raise ExportError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError:
        raise ExportError(f"{path} is no ONNX file, or is cut off or damaged") from None


def _parsed(key: str, text: str) -> object:
    """An entry's value, of its field's type."""
    if _FACTS[key] == "str":
        return text
    value = json.loads(text)
    kinds = {"int": int, "float": float, "dict[str, str]": dict}
    if not isinstance(value, kinds.get(_FACTS[key], list | None)):
        raise ValueError(f"{key} is {text[:40]!r}")
    if not isinstance(value, list):
        return value
    of = next(kind for kind in (str, float, int) if kind.__name__ in _FACTS[key])
    return tuple(map(of, value))


def _difference(proto: ModelProto, facts: OnnxFacts) -> str:
    """What graph and facts disagree about; "" if nothing."""
    graph = proto.graph
    for kind, nodes in (("inputs", graph.input), ("outputs", graph.output)):
        found, told = [node.name for node in nodes], list(getattr(facts, kind))
        if found != told:
            return f"its {kind} are {', '.join(found)}, and {', '.join(told)} are recorded"
    opsets = [entry.version for entry in proto.opset_import if entry.domain == ""]
    if opsets != [facts.opset]:
        return f"its opset is {opsets}, and {facts.opset} is recorded"
    if facts.classes is not None and len(facts.classes) != facts.n_classes:
        return f"it names {len(facts.classes)} classes of {facts.n_classes}"
    for node in graph.output:
        axes = node.type.tensor_type.shape.dim
        width = axes[-1].dim_value if axes else 0
        if node.name != "frames" and width != facts.n_classes:
            return f"{node.name} has {width} classes, and {facts.n_classes} are recorded"
    return ""
