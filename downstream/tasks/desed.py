"""DESED, and what is laid out as DESED in HEAR's format."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import soundfile

from downstream.tasks import checks
from downstream.tasks.hear_folder import (
    SAMPLE_RATE,
    is_hear_folder,
    read_hear_folder,
    read_metadata,
)
from downstream.tasks.task import ExtraClip, Facts, Task
from hear_pretrainedsed.registry import unknown

_METRICS = ("psds1", "psds2", "intersection_f1", "collar_f1")
_TABLES = "metadata_tsv"


def _recognises(folder: Path) -> bool:
    return is_hear_folder(folder) and _TABLES in read_metadata(folder)


def _open(folder: Path, facts: Facts, *, strict: bool = False) -> Task:
    metadata = read_metadata(folder)
    more = [name for name in metadata["evaluation"] if name not in _METRICS]
    facts = replace(
        facts,
        name=metadata["task_name"],
        version=str(metadata["version"]),
        metrics=(*_METRICS, *more),
    )
    with checks.strictly(strict):
        task = read_hear_folder(folder, facts)
        task = replace(task, extra=_extra(task))
        checks.check_task(task)
    return task


def _extra(task: Task) -> dict[str, tuple[ExtraClip, ...]]:
    tables = task.hear[_TABLES]
    return {
        kind: read_extra(
            task.folder / tables[kind], task.folder / str(SAMPLE_RATE) / kind, task.labels
        )
        for kind in ("weak", "unlabeled")
        if kind in tables
    }


def read_extra(table: Path, audio: Path, labels: Sequence[str]) -> tuple[ExtraClip, ...]:
    """Clips of a table filename, event_labels (joined by commas); without that: labels unknown."""
    rows = read_table(table)
    names = [row["filename"] for row in rows]
    checks.check_files(table.stem, names, audio)
    clips = []
    for row in rows:
        found = tuple(row["event_labels"].split(",")) if "event_labels" in row else None
        for label in found or ():
            if label not in labels:
                raise ValueError(f"{table}: {row['filename']}: {unknown('label', label, labels)}")
        path = audio / row["filename"]
        clips.append(ExtraClip(row["filename"], path, soundfile.info(str(path)).duration, found))
    return tuple(clips)


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a tab-separated file with a heading."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None


DESED = Facts(
    name="desed",
    version="1",
    licence="annotations: MIT; recordings: their authors' (AudioSet: YouTube's terms)",
    citation=(
        "Turpault, Serizel, Salamon, Shah, Sound event detection in domestic environments with "
        "weakly labeled data and soundscape synthesis, DCASE 2019"
    ),
    metrics=(*_METRICS, "event_onset_200ms_fms", "segment_1s_er"),
    unit="clip",
    open=_open,
    recognises=_recognises,
)
