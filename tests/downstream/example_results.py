"""Made-up results: a grid of cells whose numbers look like real ones and are none."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from downstream.cells import Cell, Key, Measured
from downstream.intervals import Units, interval
from downstream.protocols import PROTOCOLS, Settings
from downstream.scoring import METRICS

TASKS = {
    "office_like": (("event_onset_200ms_fms", "segment_1s_er"), 14, "scene", 11),
    "piano_like": (("event_onset_50ms_fms", "event_onset_offset_50ms_20perc_fms"), 40, "piece", 30),
    "domestic_like": (("psds1", "psds2", "intersection_f1"), 60, "clip", 10),
}
STAGES = {"ssl": 0.0, "weak": 0.08, "strong": 0.2}
N_DRAWS = 300


def chance(*names: object) -> np.random.Generator:
    """A generator that these names alone decide."""
    digest = hashlib.sha256(repr(names).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def example_cell(
    checkpoint: str = "beats.strong",
    task: str = "office_like",
    protocol: str = "hear",
    mode: str = "probe",
    seed: int = 0,
    *,
    facts: Sequence[Any] | None = None,
    shift: float = 0.0,
    **other: Any,
) -> Cell:
    """A cell; `facts` are those of a task that is none of TASKS, `other` fields of the cell."""
    metrics, n_units, unit, n_classes = facts or TASKS[task]
    units = Units.of([[f"{task}{i}" for i in range(n_units)]])
    config = config_of(protocol, mode) | other.pop("config", {})
    weights = other.pop("weights_sha256", hashlib.sha256(checkpoint.encode()).hexdigest())
    version = other.pop("version", "0.1.0")
    digest = other.pop("task_digest", hashlib.sha256(task.encode()).hexdigest())
    key = Key(checkpoint, weights, task, "v1", digest, protocol, mode, seed, config, version)
    measured = {
        name: _measured(name, checkpoint, task, protocol, mode, seed, units, n_classes, shift)
        for name in metrics
    }
    platform = {"python": "3.11.2", "torch": "2.13.0", "device": "cpu", "device_name": "x86_64"}
    cell = Cell(
        id=key.id,
        checkpoint=checkpoint,
        weights_sha256=weights,
        task=task,
        task_version="v1",
        task_digest=digest,
        protocol=protocol,
        mode=mode,
        seed=seed,
        config=config,
        recipe={"lr": 0.001},
        chosen=({"threshold": 0.5, "valid_score": 0.4},),
        main_metric=metrics[0],
        metrics=measured,
        unit=unit,
        sampling=units.sampling,
        n_test_frames=250 * n_units,
        seconds={"run_s": 12.5, "scoring_s": 0.5},
        version=version,
        commit="0123456789abcdef0123456789abcdef01234567",
        platform=platform | {"threads": 2, "system": "Linux"},
        created="2026-03-01T10:00:00+00:00",
    )
    return replace(cell, **other)


def _measured(
    metric: str, checkpoint: str, task: str, protocol: str, mode: str, seed: int,
    units: Units, n_classes: int, shift: float,
) -> Measured:  # fmt: skip
    backbone, _, rest = checkpoint.partition(".")
    stage = rest.split("-")[0].split("+")[0]
    level = 0.3 + 0.15 * chance("backbone", backbone).random() + STAGES.get(stage, 0.1)
    level += 0.12 * (chance("gain", backbone, stage, task).random() - 0.5)
    level += {"paper": 0.06, "best": 0.1}.get(protocol, 0.0) + shift
    if mode == "finetune":
        level += 0.16 - 0.5 * STAGES.get(stage, 0.1) + 0.06 * chance(checkpoint, task).normal()
    level += {"knn": -0.15}.get(mode, 0.0) + 0.01 * chance(checkpoint, seed, mode, metric).normal()
    weights = units.weights(N_DRAWS, units.generator()) / len(units.names)
    own = chance(checkpoint, task, mode, protocol).normal(0, 0.12, len(units.names))
    shared = chance(task, metric).normal(0, 0.15, len(units.names))
    by_unit = own + shared
    value = min(max(level, 0.01), 0.97)
    draws = np.clip(value + weights @ (by_unit - by_unit.mean()), 0, 1)
    if not METRICS[metric].maximize:
        value, draws = 1.4 - value, 1.4 - draws
    labels = [f"class {i}" for i in range(n_classes)]
    spread = np.clip(value + chance(checkpoint).normal(0, 0.1, n_classes), 0, 1)
    per_class = {label: float(one) for label, one in zip(labels, spread, strict=True)}
    draws = draws.astype(np.float32)
    within = interval(value, draws.astype(np.float64), units.sampling)
    return Measured(float(value), float(value), math.nan, per_class, within, draws)


def write(folder: Path, cells: Iterable[Cell]) -> Path:
    """A folder of results with these cells."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(cell.to_line() + "\n" for cell in cells)
    return folder


def grid(
    checkpoints: Sequence[str],
    tasks: Sequence[str] = tuple(TASKS),
    protocols: Sequence[str] = ("hear", "paper", "best"),
    seeds: int = 3,
) -> list[Cell]:
    """Every combination: probe in all protocols, knn in `hear`, finetune in the others."""
    return [
        example_cell(checkpoint, task, protocol, mode, seed)
        for checkpoint in checkpoints
        for task in tasks
        for protocol in protocols
        for mode in (("probe", "knn") if protocol == "hear" else ("probe", "finetune"))
        for seed in range(1 if mode == "knn" else seeds)
    ]


def config_of(protocol: str, mode: str) -> dict[str, Any]:
    """What a cell of this protocol, or of one that was marked, and mode has as its config."""
    known = PROTOCOLS.get(protocol.split("-")[0])
    return known.config(mode, Settings()) if known else {"precision": "fp32"}
