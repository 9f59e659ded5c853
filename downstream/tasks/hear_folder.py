"""Any event task in HEAR's folder layout: task_metadata.json, labelvocabulary.csv, a JSON a split.

The layout is that of the HEAR 2021 release (Turian et al., HEAR: Holistic Evaluation of Audio
Representations, 2022): `<split>.json` is {file: [{"label", "start", "end"}, ...]} in milliseconds,
audio lies in `16000/<split>/`. Departure from heareval: none in what is read; what heareval takes
without a word (unknown labels, times that are no times, a clip in two splits) is refused.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from downstream.tasks import checks
from downstream.tasks.sources import duration_s
from downstream.tasks.task import Clip, Facts, Rotation, Task, Triple

SAMPLE_RATE = 16_000
METADATA = "task_metadata.json"
_KFOLD = ("new_split_kfold", "presplit_kfold")


def open_hear_folder(folder: Path, facts: Facts, *, strict: bool = False) -> Task:
    """Read a task in HEAR's layout; `strict` makes warnings errors.

    Raises `ValueError` for what is missing, contradictory or out of range, with the first few.
    """
    with checks.strictly(strict):
        task = read_hear_folder(folder, facts)
        checks.check_task(task)
    return task


def read_hear_folder(folder: Path, facts: Facts) -> Task:
    """The task as it is in its folder, not yet checked as a whole."""
    metadata = read_metadata(folder)
    labels = read_labels(folder)
    return Task(
        facts=facts,
        name=metadata["task_name"],
        version=str(metadata["version"]),
        folder=folder,
        labels=labels,
        splits={split: read_split(folder, split) for split in metadata["splits"]},
        rotations=rotations(metadata),
        hear=metadata,
    )


def read_named_folder(folder: Path, facts: Facts, names: Sequence[str]) -> Task:
    """`read_hear_folder` of a task that has one of these names in its metadata."""
    name = read_metadata(folder)["task_name"]
    if name not in names:
        raise ValueError(f"{folder} holds the task {name!r}, not {facts.name}; open it by its path")
    return read_hear_folder(folder, facts)


def task_name(folder: Path) -> str | None:
    """The name of the task in a folder, None if the folder is not in HEAR's layout."""
    return read_metadata(folder)["task_name"] if is_hear_folder(folder) else None


def read_metadata(folder: Path) -> dict[str, Any]:
    """A HEAR task's metadata, checked for what is used of it."""
    path = folder / METADATA
    metadata = _json(path)
    wanted = ("task_name", "version", "splits", "split_mode", "embedding_type", "evaluation")
    for key in wanted:
        if key not in metadata:
            raise ValueError(f"{path}: no {key!r} in it; a HEAR task has {', '.join(wanted)}")
    if metadata["embedding_type"] != "event":
        raise ValueError(
            f"{path}: embedding_type is {metadata['embedding_type']!r}; only event tasks have "
            "frames to score ('event')"
        )
    return metadata


def read_labels(folder: Path) -> tuple[str, ...]:
    """The classes of `labelvocabulary.csv`, by their index."""
    path = folder / "labelvocabulary.csv"
    try:
        table = io.StringIO(checks.read_utf8(path), newline="")
    except FileNotFoundError:
        raise ValueError(f"{folder}: no labelvocabulary.csv in it") from None
    try:
        rows = {int(row["idx"]): row["label"] for row in csv.DictReader(table)}
    except (KeyError, ValueError, TypeError):
        raise ValueError(f"{path}: wanted the columns idx (0, 1, ...) and label") from None
    if sorted(rows) != list(range(len(rows))) or not rows:
        raise ValueError(f"{path}: idx has to count 0, 1, ... without a gap, got {sorted(rows)}")
    return tuple(rows[i] for i in range(len(rows)))


def read_split(folder: Path, split: str) -> tuple[Clip, ...]:
    """The clips of a split in the order of its JSON file; a clip is its own unit."""
    listed = _json(folder / f"{split}.json")
    audio = folder / str(SAMPLE_RATE) / split
    if not audio.is_dir():
        raise ValueError(f"no folder {audio}: HEAR tasks hold their audio at 16 kHz there")
    checks.check_files(split, listed, audio)
    return tuple(_clip(audio / file, file, rows) for file, rows in listed.items())


def _clip(path: Path, file: str, rows: list[Mapping[str, Any]]) -> Clip:
    in_ms = tuple(_triple(file, row) for row in rows)
    events = tuple((a / 1000.0, b / 1000.0, label) for a, b, label in in_ms)
    return Clip(file, path, events, duration_s(path, SAMPLE_RATE), file, in_ms)


def _triple(file: str, row: Mapping[str, Any]) -> Triple:
    try:
        return float(row["start"]), float(row["end"]), str(row["label"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file}: an event has label, start and end (ms), got {row}") from None


def rotations(metadata: Mapping[str, Any]) -> tuple[Rotation, ...]:
    """As heareval rotates folds: fold k is test, the next one valid, the rest (sorted) train."""
    mode, splits = metadata["split_mode"], metadata["splits"]
    if mode == "trainvaltest":
        return (Rotation(("train",), ("valid",), ("test",)),)
    if mode not in _KFOLD:
        allowed = ", ".join(("trainvaltest", *_KFOLD))
        raise ValueError(f"split_mode is {mode!r}; allowed: {allowed}")
    return fold_rotations(splits)


def fold_rotations(splits: Iterable[str]) -> tuple[Rotation, ...]:
    """A rotation for each fold as test: the next one valid, the others (sorted) train."""
    folds = sorted(splits)
    if len(folds) < 3:
        raise ValueError(f"{len(folds)} folds: test, valid and train need at least 3")
    pairs = [(fold, folds[(i + 1) % len(folds)]) for i, fold in enumerate(folds)]
    return tuple(
        Rotation(tuple(f for f in folds if f not in pair), pair[1:], pair[:1]) for pair in pairs
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(checks.read_utf8(path))
    except FileNotFoundError:
        raise ValueError(f"{path.parent}: no {path.name} in it, so it is no HEAR task") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: no JSON: {error}") from None


def is_hear_folder(folder: Path) -> bool:
    """Whether a folder is laid out as HEAR's tasks are."""
    return (folder / METADATA).is_file()


def _open_any(folder: Path, facts: Facts, *, strict: bool = False) -> Task:
    return open_hear_folder(folder, _facts_of(read_metadata(folder), facts), strict=strict)


def _facts_of(metadata: Mapping[str, Any], facts: Facts) -> Facts:
    """What a HEAR folder says of itself, for a task that nobody here knows."""
    grid = metadata.get("evaluation_params", {}).get("event_postprocessing_grid", {})
    return replace(
        facts,
        name=metadata["task_name"],
        version=str(metadata["version"]),
        metrics=tuple(metadata["evaluation"]),
        median_s=min(grid.get("median_filter_ms", [1000 * facts.median_s])) / 1000,
        min_duration_s=min(grid.get("min_duration", [125])) / 1000,
    )


HEAR_FOLDER = Facts(
    name="hear_folder",
    version="that of the folder",
    licence="that of the folder",
    citation="Turian et al., HEAR: Holistic Evaluation of Audio Representations, PMLR 176, 2022",
    metrics=("event_onset_200ms_fms", "segment_1s_er"),
    unit="clip",
    open=_open_any,
    recognises=is_hear_folder,
)
