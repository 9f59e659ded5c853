"""`hear-pretrainedsed compare A B`: two checkpoints on the same test units, from stored cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table
from rich.text import Text

from downstream.cells import Cell
from downstream.intervals import Comparison, holm
from downstream.intervals import compare as compared
from downstream.report_cells import read_cells
from downstream.report_data import number, p_text, signed, span, unequal
from downstream.scoring import get_metric
from downstream.tables import Row, table
from hear_pretrainedsed.cli_options import Argument, Option
from hear_pretrainedsed.registry import unknown

First = Annotated[str, Argument(metavar="A", help="A checkpoint of the results.")]
Second = Annotated[str, Argument(metavar="B", help="Another one.")]
Results = Annotated[list[Path], Option("--results", help="Folder of results.")]
Tasks = Annotated[list[str] | None, Option("--task", help="Task; none: all that both have.")]
OneProtocol = Annotated[str | None, Option("--protocol", help="Protocol; none: all.")]
OneMode = Annotated[str | None, Option("--mode", help="probe, finetune, knn; none: all.")]
OneMetric = Annotated[str | None, Option("--metric", help="Metric; none: each task's first.")]


@dataclass(frozen=True)
class Pair:
    """Rows of two checkpoints that may be compared, and the comparison: the first less the second.

    p: of no difference, with Holm's correction over all pairs that are shown.
    """

    first: Row
    second: Row
    comparison: Comparison
    p: float | None


def compare(
    first: First,
    second: Second,
    results: Results,
    task: Tasks = None,
    protocol: OneProtocol = None,
    mode: OneMode = None,
    metric: OneMetric = None,
) -> None:
    """A less B on the same test units: difference, interval and p of a paired bootstrap."""
    cells = list(read_cells(results).cells.values())
    tasks = [name for value in task or [] for name in value.split(",") if name]
    wanted = {"task": tasks, "protocol": [protocol] if protocol else []}
    wanted |= {"mode": [mode] if mode else []}
    pairs = pair(select(cells, first, second, wanted), first, second, metric)
    Console().print(pairs_table(pairs))


def select(
    cells: Sequence[Cell], first: str, second: str, wanted: dict[str, list[str]]
) -> list[Cell]:
    """Cells of two checkpoints with the wanted values of fields (empty: all).

    Raises `ValueError` for names that no cell has, and naming the checkpoint that lacks cells.
    """
    if first == second:
        raise ValueError(f"both checkpoints are {first!r}: give two")
    for name in (first, second):
        known = sorted({cell.checkpoint for cell in cells})
        if name not in known:
            raise ValueError(unknown("checkpoint", name, known))
    for what, values in wanted.items():
        known = sorted({getattr(cell, what) for cell in cells})
        for value in values:
            if value not in known:
                raise ValueError(unknown(what, value, known))
    kept = [
        cell
        for cell in cells
        if cell.checkpoint in (first, second)
        and all(getattr(cell, what) in values for what, values in wanted.items() if values)
    ]
    for name in (first, second):
        if not any(cell.checkpoint == name for cell in kept):
            asked = ", ".join(f"{what} {' or '.join(v)}" for what, v in wanted.items() if v)
            raise ValueError(f"no cell of {name} with {asked}")
    return kept


def pair(cells: Sequence[Cell], first: str, second: str, metric: str | None) -> list[Pair]:
    """Every pair of rows of the two that may be compared.

    Raises `ValueError` for a metric that no row has, and where nothing may be compared: naming
    what the nearest pair differs in.
    """
    rows = table(cells)
    if metric is not None and metric not in {row.metric for row in rows}:
        raise ValueError(unknown("metric", metric, sorted({row.metric for row in rows})))
    rows = [row for row in rows if row.metric == (metric or row.cells[0].main_metric)]
    sides = [[row for row in rows if row.checkpoint == name] for name in (first, second)]
    near = [(a, b) for a in sides[0] for b in sides[1] if _names(a) == _names(b)]
    found = [(a, b) for a, b in near if not unequal(a.cells[0], b.cells[0])]
    if not found:
        raise ValueError(_why_not(first, second, near))
    compared_rows = [
        (a, b, compared(a.value, a.draws, b.value, b.draws, a.cells[0].sampling)) for a, b in found
    ]
    p_values = iter(holm([one.p for *_, one in compared_rows if one.p is not None]))
    return [
        Pair(a, b, one, None if one.p is None else next(p_values)) for a, b, one in compared_rows
    ]


def _names(row: Row) -> tuple[str, str, str]:
    return row.task, row.protocol, row.mode


def _why_not(first: str, second: str, near: Sequence[tuple[Row, Row]]) -> str:
    if not near:
        return f"{first} and {second} have no task, protocol and mode in common here"
    a, b = near[0][0].cells[0], near[0][1].cells[0]
    fixed = ("version", "task_digest")
    what = next((name for name in fixed if getattr(a, name) != getattr(b, name)), None)
    if what is None and a.config != b.config:
        apart = [name for name in a.config | b.config if a.config.get(name) != b.config.get(name)]
        values = ", ".join(f"{n} {a.config.get(n)} and {b.config.get(n)}" for n in apart)
        return f"{first} and {second} on {a.task} were run with other settings: {values}"
    if what is None:
        return f"{first} and {second} were not measured on the same test units of {a.task}"
    one, other = (str(getattr(cell, what))[:8] for cell in (a, b))
    return f"{first} and {second} on {a.task} differ in {what}: {one} and {other}"


def pairs_table(pairs: Sequence[Pair]) -> Table:
    """The pairs for a terminal."""
    first, second = pairs[0].first.checkpoint, pairs[0].second.checkpoint
    title = Text(f"A: {first}, B: {second}")
    out = Table(title=title, caption=Text(_caption(pairs)), title_justify="left")
    out.caption_justify = "left"
    out.add_column("task, protocol, mode", overflow="fold")
    for name in ("A", "B", "A - B", "95 % interval", "p"):
        out.add_column(name, justify="right", no_wrap=True)
    for one in pairs:
        a, b = one.first, one.second
        numbers = (number(a.value), number(b.value), signed(one.comparison.difference))
        within = span(one.comparison.interval)
        out.add_row(Text(_words(one, pairs)), *numbers, within, p_text(one.p))
    return out


def _words(one: Pair, pairs: Sequence[Pair]) -> str:
    """What a line is of; the files of weights too, where there are several."""
    a, b = one.first, one.second
    lines = [f"{a.task}, {a.protocol}, {a.mode}", a.metric]
    lines += [] if get_metric(a.metric).maximize else ["less is better"]
    lines += [", ".join(f"{name} {value}" for name, value in a.differing)] if a.differing else []
    sides = ({_weights(one.first) for one in pairs}, {_weights(one.second) for one in pairs})
    if any(len(files) > 1 for files in sides):
        lines.append(f"weights {_weights(a)} and {_weights(b)}")
    return "\n".join(lines)


def _weights(row: Row) -> str:
    return row.cells[0].weights_sha256[:8]


def _caption(pairs: Sequence[Pair]) -> str:
    units = sorted({f"{one.first.n_units} {one.first.unit}s" for one in pairs})
    caption = f"Paired bootstrap over {', '.join(units)} and seeds"
    counted = [one for one in pairs if one.p is not None]
    missing = [_why_no_interval(one) for one in pairs if one.p is None]
    why = ", ".join(dict.fromkeys(filter(None, missing)))
    if not counted:
        return f"{', '.join(units)}: no interval" + (f", {why}." if why else ".")
    if len(counted) > 1:
        caption += f"; p with Holm's correction over {len(counted)} lines"
    return caption + (f"; no interval: {why}" if why else "") + "."


def _why_no_interval(pair: Pair) -> str:
    """Why there is none, in words; "" where a value is not defined, which the table shows."""
    if math.isnan(pair.comparison.difference):
        return ""
    if not pair.first.cells[0].sampling.suffices:
        return "too few units"
    if not min(len(row.draws) for row in (pair.first, pair.second)):
        return "metric without resampling"
    return "not defined for many resampled units"
