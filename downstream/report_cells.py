"""Cells for a report: read from several folders of results, and refused where they contradict.

Numbers that were made under other settings stand in other columns (`tables`). What is left here are
runs that differ in nothing that was set: two results of one cell, or seeds of one cell under
different recipes. Neither can be told right or wrong, so both are refused.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from downstream import results
from downstream.cells import Cell, Measured

LINES = "results.jsonl"


@dataclass
class Collection:
    """Cells of all folders, one an id; where each was read; what a reader has to know of them."""

    cells: dict[str, Cell] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, cell: Cell, place: str) -> None:
        """Take a cell; `ValueError` if another run of it gave other numbers."""
        known = self.cells.setdefault(cell.id, cell)
        here = self.places.setdefault(cell.id, place)
        if known is not cell and (metric := _apart(known, cell)) is not None:
            one, other = (c.metrics[metric].value for c in (known, cell))
            raise ValueError(
                f"{here} and {place}: {name_of(cell)} was run twice with other numbers ({metric} "
                f"{one:.6g} and {other:.6g}) and {_unset(known, cell)}: leave one of them out"
            )


def read_cells(folders: Iterable[Path]) -> Collection:
    """All cells of folders of results.

    Half a line at the end of a file is left out with a warning, which is also a note. Raises
    `ValueError` for a folder without results, a line of another schema, and contradictions.
    """
    found = Collection()
    for folder in folders:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            last = {cell.id: cell for cell in results.read(folder)}
        for warning in caught:
            found.notes.append(str(warning.message))
            warnings.warn(str(warning.message), stacklevel=2)
        if not last:
            raise ValueError(_nothing_in(Path(folder)))
        for number, cell in _lines(Path(folder) / LINES):
            found.add(cell, f"{Path(folder) / LINES}, line {number}")
    _check_seeds(found)
    return found


def name_of(cell: Cell) -> str:
    """A cell in words."""
    return f"{cell.checkpoint} {cell.task} {cell.protocol} {cell.mode} seed {cell.seed}"


def _nothing_in(folder: Path) -> str:
    if not folder.exists():
        return f"no folder {str(folder)!r}"
    if not folder.is_dir():
        return f"{str(folder)!r} is a file; give the folder of results that it is in"
    if not (folder / LINES).exists():
        stock = next(folder.rglob("test.predicted-scores.json"), None)
        hint = "; it holds results of heareval: add --leaderboard hear" if stock else ""
        return f"{str(folder)!r} has no {LINES}: no folder of results{hint}"
    return f"{folder / LINES}: no finished cell in it"


def _lines(path: Path) -> Iterator[tuple[int, Cell]]:
    """Whole lines with their numbers; `results.read` has said what is wrong with others."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            yield number, Cell.from_line(line.decode())
        except ValueError:
            continue


def _apart(one: Cell, other: Cell) -> str | None:
    """The first metric in which two results of one cell differ."""
    if one.metrics.keys() != other.metrics.keys():
        return next(iter(one.metrics.keys() & other.metrics.keys()), one.main_metric)
    return next((m for m in one.metrics if not _same(one.metrics[m], other.metrics[m])), None)


def _same(one: Measured, other: Measured) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("value", "micro", "macro")]
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs)


def _unset(one: Cell, other: Cell) -> str:
    """In which facts that are not set two runs of one cell differ."""
    apart = []
    for name, a, b in differing_facts([one, other]):
        apart.append(f"{name} ({a} and {b})")
    return f"differs in {', '.join(apart)}" if apart else "nothing that is recorded differs"


def made_by(cell: Cell) -> dict[str, Any]:
    """What a cell was made with and is no setting."""
    wanted = ("device", "device_name", "torch", "threads", "python")
    machine = {name: cell.platform[name] for name in wanted if name in cell.platform}
    return {"commit": (cell.commit or "none")[:8] + _dirty(cell), **machine}


def _dirty(cell: Cell) -> str:
    return "-dirty" if (cell.commit or "").endswith("-dirty") else ""


def differing_facts(cells: Sequence[Cell]) -> list[tuple[Any, ...]]:
    """Facts of `made_by` that are not equal in all cells: (name, its values, sorted ...)."""
    facts = [made_by(cell) for cell in cells]
    out: list[tuple[Any, ...]] = []
    for name in dict.fromkeys(name for one in facts for name in one):
        values = list(dict.fromkeys(one.get(name) for one in facts))
        if len(values) > 1:
            out.append((name, *sorted(values, key=str)))
    return out


def _check_seeds(found: Collection) -> None:
    """Seeds of one cell have one recipe; `ValueError` if not."""
    first: dict[str, Cell] = {}
    for cell in found.cells.values():
        names = (cell.checkpoint, cell.weights_sha256, cell.task, cell.task_digest)
        settings = (cell.protocol, cell.mode, cell.config, cell.version)
        key = json.dumps([*names, *settings], sort_keys=True)
        known = first.setdefault(key, cell)
        apart = sorted(_different_keys(known.recipe, cell.recipe))
        if apart:
            one, other = (c.recipe.get(apart[0]) for c in (known, cell))
            raise ValueError(
                f"{found.places[known.id]} and {found.places[cell.id]}: {name_of(cell)} and seed "
                f"{known.seed} differ in {apart[0]!r} ({one} and {other}), which no setting says: "
                "they are no runs of one cell; leave one of them out"
            )


def _different_keys(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in one | other if one.get(name) != other.get(name)}
