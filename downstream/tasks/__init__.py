"""Tasks: one file and one line of `TASKS` each.

A task is opened by its name, or by a folder in a layout that is known; both give a `Task`.
"""

from __future__ import annotations

from pathlib import Path

from downstream.tasks.hear_folder import METADATA, open_hear_folder, read_metadata
from downstream.tasks.task import Clip, Facts, Rotation, Task
from hear_pretrainedsed.registry import unknown

__all__ = ["TASKS", "Clip", "Facts", "Rotation", "Task", "open_task"]

TASKS: dict[str, Facts] = {}


def open_task(name_or_folder: str | Path, folder: Path | None = None, **options: object) -> Task:
    """A task by name, with `folder` holding its data, or by its folder alone.

    Raises `ValueError` for an unknown name, and for data that cannot be used.
    """
    name = str(name_or_folder)
    if name in TASKS:
        if folder is None:
            raise ValueError(f"{name}: give the folder of its data")
        return TASKS[name].open(folder, TASKS[name], **options)
    path = Path(name)
    if not path.is_dir():
        raise ValueError(f"{unknown('task', name, TASKS)}; or give a folder")
    if not (path / METADATA).is_file():
        raise ValueError(f"{path}: no {METADATA} in it, so it is no task in HEAR's layout")
    metadata = read_metadata(path)
    facts = TASKS.get(metadata["task_name"]) or _facts_of(metadata)
    return facts.open(path, facts, **options)


def _facts_of(metadata: dict[str, object]) -> Facts:
    """What a HEAR folder says of itself, for a task that nobody here knows."""
    grid = metadata.get("evaluation_params", {}).get("event_postprocessing_grid", {})
    medians, shortest = grid.get("median_filter_ms", [250]), grid.get("min_duration", [125])
    return Facts(
        name=metadata["task_name"],
        version=str(metadata["version"]),
        licence="see the folder",
        citation="",
        metrics=tuple(metadata["evaluation"]),
        unit="clip",
        open=open_hear_folder,
        median_s=min(medians) / 1000,
        min_duration_s=min(shortest) / 1000,
    )
