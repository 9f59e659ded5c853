"""The curve of a run as CSV: one line a step, one curve however often the run was killed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from hear_pretrainedsed.events import disk_errors, whole_file

COLUMNS = ("step", "loss", "lr", "gradient_norm", "valid_score")


class Curve:
    """Lines of a CSV file, each written when its step is done.

    A run that goes on from step n takes out the lines of later steps, which it makes again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def go_on_from(self, step: int) -> None:
        """Keep the lines up to `step`, whole ones alone; make the file if there is none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = io.StringIO()
        writer = csv.DictWriter(kept, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in read_curve(self.path) if int(row["step"]) <= step)
        with whole_file(self.path) as file:
            file.write(kept.getvalue().encode())

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One line; numbers as they are read back to the last bit."""
        row = [str(step), *(repr(values[name]) if name in values else "" for name in COLUMNS[1:])]
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(",".join(row) + "\n")


def read_curve(path: Path) -> list[dict[str, str]]:
    """Lines by column; none where there is no file, without a last one that was cut off."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = csv.DictReader(line for line in lines if line.endswith("\n"))
    return [row for row in rows if row["step"] and None not in row.values()]
