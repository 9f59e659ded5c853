"""`--tasks all`: every task that has data below a folder."""

from __future__ import annotations

from pathlib import Path

from downstream.sweep import AS_IT_IS, open_named
from downstream.tasks import TASKS, LabelChoice
from hear_pretrainedsed.records import cache_folder

ALL = "all"


def every_task(
    data: Path | None, corpus: Path | None, strict: bool, choice: LabelChoice = AS_IT_IS
) -> tuple[list[str], list[str]]:
    """Tasks in the folders right below `data` (None: the cache's), and lines on what is left out.

    Left out are folders that are no task, and known tasks that have no data there; tasks for
    evaluation only have theirs in `corpus`. Raises `ValueError` if nothing is left, and with
    `strict` for a folder that is no task.
    """
    data = data or cache_folder() / "tasks"
    if not data.is_dir():
        raise ValueError(f"--tasks {ALL}: there is no folder {data}; give one of tasks as --data")
    found: list[str] = []
    left_out: list[str] = []
    known: set[str] = set()
    for path in sorted(data.iterdir()):
        if not path.is_dir() or path.name.startswith(".") or path.suffix == ".part":
            continue
        try:
            known.add(open_named(str(path), data, strict, choice).facts.name)
            found.append(str(path))
        except ValueError as error:
            if strict:
                raise
            left_out.append(f"{path.name}: {error}")
    for name, facts in TASKS.items():
        if facts.score_head is not None:
            if corpus is not None:
                found.append(f"{name}={corpus}")
            else:
                left_out.append(f"{name}: needs --corpus DIR")
        elif facts.build is not None and name not in known:
            left_out.append(f"{name}: no data of it in {data}")
    if not found:
        raise ValueError(f"--tasks {ALL}: no task in {data}: {'; '.join(left_out)}")
    return found, left_out
