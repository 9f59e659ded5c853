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
from downstream.tasks.own import OWN
from downstream.tasks.task import Clip, ExtraClip, Facts, Rotation, Task
from hear_pretrainedsed.registry import unknown

__all__ = ["TASKS", "Clip", "ExtraClip", "Facts", "Rotation", "Task", "open_task"]

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

    `options` are those of the task; `strict` (warnings are errors) is one of every task. Raises
    `ValueError` for an unknown name, and for data that cannot be used.
    """
    name = str(name_or_folder)
    if name in TASKS:
        if folder is None:
            raise ValueError(f"{name}: give the folder of its data")
        facts, path = TASKS[name], Path(folder)
    else:
        path = Path(name)
        if not path.is_dir():
            raise ValueError(f"{unknown('task', name, TASKS)}; or give a folder")
        facts = next((one for one in TASKS.values() if one.recognises(path)), None)
        if facts is None:
            raise ValueError(f"{path}: a folder in no layout that is known; name its task")
    if not path.is_dir():
        raise ValueError(f"{name}: {path} is no folder")
    allowed = [name for name in signature(facts.open).parameters if name not in ("folder", "facts")]
    for option in options:
        if option not in allowed:
            raise ValueError(unknown(f"option of {facts.name}", option, allowed))
    return facts.open(path, facts, **options)
