"""Options of commands that take recordings of the user's own: which labels, which splits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from downstream.tasks import LabelChoice, Task
from hear_pretrainedsed.cli_options import Option

LabelsFile = Annotated[
    str | None, Option("--labels", help="Own recordings: the file of labels, or audacity.")
]
SplitColumn = Annotated[
    str | None, Option("--split-column", help="Own recordings: the table's column of splits.")
]
SplitSeed = Annotated[
    int | None, Option("--split-seed", help="Own recordings: draws other splits (none: 0).")
]


def check_used(choice: LabelChoice, tasks: Iterable[Task]) -> None:
    """Refuse a choice that no task takes."""
    names = {task.name: task.facts.name for task in tasks}
    if choice.options() and "own" not in names.values():
        raise ValueError(
            "--labels, --split-column and --split-seed are for recordings of your own, and "
            f"{', '.join(names)} has its labels and splits in another layout"
        )
