"""Tasks: one file and one line of `TASKS` each.

A task is opened by its name, or by a folder in a layout that is known; both give a `Task`.
"""

from __future__ import annotations

from inspect import signature
from pathlib import Path

from downstream.tasks.audioset_strong import AUDIOSET_STRONG
from downstream.tasks.dcase2016_task2 import DCASE2016_TASK2
from downstream.tasks.desed import DESED, DESED_PUBLIC
from downstream.tasks.hear_folder import HEAR_FOLDER
from downstream.tasks.maestro_5hr import MAESTRO_5HR
from downstream.tasks.own import OWN, LabelChoice
from downstream.tasks.task import Clip, ExtraClip, Facts, Rotation, Task
from hear_pretrainedsed.audio import EXTENSIONS
from hear_pretrainedsed.registry import unknown

__all__ = [
    "OWN",
    "TASKS",
    "Clip",
    "ExtraClip",
    "Facts",
    "LabelChoice",
    "Rotation",
    "Task",
    "find_task",
    "open_task",
]

# A folder is the first one's that recognises it.
_ALL = (
    DCASE2016_TASK2,
    MAESTRO_5HR,
    DESED_PUBLIC,
    DESED,
    HEAR_FOLDER,
    OWN,
    AUDIOSET_STRONG,
)

TASKS: dict[str, Facts] = {facts.name: facts for facts in _ALL}


def open_task(name_or_folder: str | Path, folder: Path | None = None, **options: object) -> Task:
    """A task by name, with `folder` holding its data, or by its folder alone.

    A `Path` is a folder whatever its name. `options` are those of the task; `strict` (warnings are
    errors) is one of every task. Raises `ValueError` for an unknown name, and for data that cannot
    be used.
    """
    facts, path = find_task(name_or_folder, folder)
    allowed = [name for name in signature(facts.open).parameters if name not in ("folder", "facts")]
    for option in options:
        if option not in allowed:
            raise ValueError(unknown(f"option of {facts.name}", option, allowed))
    return facts.open(path, facts, **options)


def find_task(name_or_folder: str | Path, folder: Path | None = None) -> tuple[Facts, Path]:
    """Which task that is, by what `open_task` takes, and the folder of its data."""
    name = str(name_or_folder)
    if name in TASKS and not isinstance(name_or_folder, Path):
        if folder is None:
            raise ValueError(f"{name}: give the folder of its data")
        if not Path(folder).is_dir():
            raise ValueError(f"{name}: {folder} is no folder")
        return TASKS[name], Path(folder)
    path = Path(name)
    if path.is_file():
        raise ValueError(f"a task is a folder, and {path} is a file")
    if not path.is_dir():
        if "/" in name or isinstance(name_or_folder, Path):
            raise ValueError(f"there is no folder {path}")
        raise ValueError(f"{unknown('task', name, TASKS)}; or give a folder")
    facts = next((one for one in TASKS.values() if one.recognises(path)), None)
    if facts is None:
        raise ValueError(
            f"no audio in {path} ({', '.join(sorted(EXTENSIONS))}), nor the layout of a task"
        )
    return facts, path
