"""A finished cell (checkpoint x task x protocol x mode x seed) and its line of JSON.

One line says what was measured, with what, and how it can be repeated. A line is strict JSON: what
is not defined (NaN) is null, and an infinite number is the text "inf" or "-inf".
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from downstream import cell_fields
from downstream.embeddings import Weights
from downstream.intervals import Interval, Sampling, interval
from downstream.protocols import PROTOCOLS, Found, Settings
from downstream.scoring import Result
from downstream.tasks.task import Task
from hear_pretrainedsed import __version__
from hear_pretrainedsed.registry import unknown

SCHEMA = 1
_ROOT = Path(__file__).resolve().parents[1]


class Asked(Protocol):
    """What a result is asked of."""

    weights: Weights
    task: Task
    protocol: str
    mode: str
    seed: int


@dataclass(frozen=True)
class Key:
    """Everything that is set about a cell before it is run; `id` is its sha256.

    config: the settings that the run depends on. device: where it runs, which is not part of `id`.
    """

    checkpoint: str
    weights_sha256: str
    task: str
    task_version: str
    task_digest: str
    protocol: str
    mode: str
    seed: int
    config: Mapping[str, Any]
    version: str = __version__
    device: str = "cpu"

    @property
    def id(self) -> str:
        """sha256 of all fields but the device."""
        facts = {name: value for name, value in asdict(self).items() if name != "device"}
        text = json.dumps(plain(facts), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def key_of(asked: Asked, settings: Settings) -> Key:
    """The key of a cell under those of these settings that its protocol and mode depend on."""
    return Key(
        checkpoint=asked.weights.checkpoint,
        weights_sha256=asked.weights.sha256,
        task=asked.task.name,
        task_version=asked.task.version,
        task_digest=asked.task.digest(),
        protocol=asked.protocol,
        mode=asked.mode,
        seed=asked.seed,
        config=PROTOCOLS[asked.protocol].config(asked.mode, settings),
        device=settings.device,
    )


@dataclass(frozen=True)
class Measured:
    """A metric of a cell, as in `scoring.Result`, with the interval over units of this one cell."""

    value: float
    micro: float
    macro: float
    per_class: dict[str, float]
    interval: Interval | None
    draws: np.ndarray = field(compare=False, repr=False)  # float32 (draws,)

    @classmethod
    def of(cls, result: Result) -> Measured:
        """From a task's score."""
        within = interval(result.value, result.draws, result.sampling)
        draws = result.draws.astype(np.float32)
        parts = (result.value, result.micro, result.macro, result.per_class)
        return cls(*parts, within, draws)

    def to_json(self) -> dict[str, Any]:
        """Plain values; draws as base64 of little-endian float32."""
        text = base64.b64encode(self.draws.astype("<f4").tobytes()).decode("ascii")
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "draws"}
        return plain(known) | {"draws": text}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Measured:
        """From what `to_json` gave."""
        numbers = {name: _number(content[name]) for name in ("value", "micro", "macro")}
        per_class = {label: _number(value) for label, value in content["per_class"].items()}
        within = content["interval"] and tuple(content["interval"])
        draws = np.frombuffer(base64.b64decode(content["draws"], validate=True), "<f4")
        return cls(**numbers, per_class=per_class, interval=within, draws=draws)


@dataclass(frozen=True)
class Cell:
    """One finished cell.

    id: `Key.id` of what was asked for. protocol: its name with what marks the result, as
    `paper-scaled`. config: settings of the run; recipe: all else that the protocol was set to;
    chosen: what it selected on valid in each rotation. metrics: by name, the task's main one first.
    unit, sampling: what intervals resample. seconds: what took how long.
    """

    id: str
    checkpoint: str
    weights_sha256: str
    task: str
    task_version: str
    task_digest: str
    protocol: str
    mode: str
    seed: int
    config: dict[str, Any]
    recipe: dict[str, Any]
    chosen: tuple[dict[str, Any], ...]
    main_metric: str
    metrics: dict[str, Measured]
    unit: str
    sampling: Sampling
    n_test_frames: int
    seconds: dict[str, float]
    version: str
    commit: str | None
    platform: dict[str, Any]
    created: str
    schema: int = SCHEMA

    def to_line(self) -> str:
        """One line of strict JSON, without a line end."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        content["metrics"] = {name: one.to_json() for name, one in self.metrics.items()}
        content["sampling"] = asdict(self.sampling)
        return json.dumps(plain(content), allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_line(cls, line: str) -> Cell:
        """From a line; `ValueError` for another schema, other fields or values, or no JSON."""
        content = json.loads(line, parse_constant=_refuse)
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        if content.get("schema") != SCHEMA:
            raise ValueError(f"{unknown('schema', content.get('schema'), [SCHEMA])}")
        names = {f.name for f in fields(cls)}
        if apart := sorted(names ^ content.keys()):
            what = "is missing" if apart[0] in names else "is none of this schema"
            raise ValueError(f"the field {apart[0]!r} {what}")
        cell_fields.check(content)
        content["chosen"] = tuple(content["chosen"])
        content["sampling"] = Sampling(**content["sampling"])
        metrics = content["metrics"].items()
        content["metrics"] = {name: Measured.from_json(one) for name, one in metrics}
        return cls(**content)


def make_cell(
    key: Key,
    asked: Asked,
    found: Found,
    scored: Mapping[str, Result],
    seconds: Mapping[str, float],
    n_threads: int,
) -> Cell:
    """The cell of a finished run, made now."""
    return cell_of(
        key,
        asked,
        protocol=found.config.get("protocol", key.protocol),
        metrics={name: Measured.of(result) for name, result in scored.items()},
        sampling=next(iter(scored.values())).sampling,
        recipe=plain(found.config),
        chosen=tuple(plain(one) for one in found.chosen),
        n_test_frames=sum(len(found.scores[file]) for fold in found.folds for file in fold),
        seconds=dict(seconds),
        n_threads=n_threads,
    )


def cell_of(key: Key, asked: Asked, *, n_threads: int, **measured: Any) -> Cell:
    """A cell made now: `measured` are the fields of `Cell` that neither key nor task tell."""
    facts = asdict(key)
    device = facts.pop("device")
    return Cell(
        **facts
        | {
            "id": key.id,
            "main_metric": asked.task.metrics[0],
            "unit": asked.task.facts.unit,
            "commit": commit(),
            "platform": _platform(device, n_threads),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        | measured
    )


def _platform(device: str, n_threads: int) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
        "device_name": name,
        "threads": n_threads,
        "system": platform.system(),
    }


@cache
def commit() -> str | None:
    """Commit of the checkout that this code is in, with "-dirty" if it was edited, or None."""
    if not (_ROOT / ".git").exists():  # installed: a repository around it is not this one
        return None
    git = ("git", "-C", str(_ROOT))
    try:
        head, changes = (
            subprocess.run((*git, *words), capture_output=True, text=True, check=True).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("-dirty" if changes.strip() else "")


def plain(value: Any) -> Any:
    """A value as strict JSON holds it; `ValueError` for what it cannot hold."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        return None if math.isnan(value) else value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    raise ValueError(f"a result holds numbers, text, lists and dicts, got {value!r}")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not strict JSON")


def _number(value: Any) -> float:
    """A number as `plain` wrote it."""
    return math.nan if value is None else float(value)
