"""The command `build-task`: a task's folder in HEAR's layout, from the raw data that a user has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from downstream.tasks import TASKS
from downstream.tasks.hear_writer import whole_folder
from downstream.tasks.sources import Sources
from downstream.tasks.task import Progress
from hear_pretrainedsed.progress import count_bar
from hear_pretrainedsed.registry import unknown


def build(task: str, sources: Iterable[Path], out: Path, progress: Progress | None = None) -> Path:
    """Make the folder of a task from its raw data; returns `out`.

    It appears whole or not at all: meanwhile it is OUT.part. Raises `ValueError` if it is there
    already, and for what is missing or damaged in the raw data.
    """
    buildable = [name for name, facts in TASKS.items() if facts.build]
    if task not in buildable:
        raise ValueError(unknown("task to build", task, buildable))
    make = TASKS[task].build
    assert make is not None
    with Sources(sources) as raw, whole_folder(Path(out)) as folder:
        make(raw, folder, progress or (lambda n_done, n_clips: None))
    return Path(out)


def build_task(
    name: Annotated[str, typer.Argument(help="Task, as dcase2016_task2, maestro_5hr, desed.")],
    source: Annotated[list[Path], typer.Option(help="Folder or zip of raw data; repeatable.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The task's new folder.")],
) -> None:
    """Make a task's folder from its authors' archives: HEAR's splits, 16 kHz."""
    with count_bar(name) as progress:
        build(name, source, out, progress)
