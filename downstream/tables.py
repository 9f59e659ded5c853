"""Cells -> rows of numbers that may be compared -> a table for the terminal.

Only numbers of one task, protocol, mode and configuration stand in one column.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from downstream.cells import Cell
from downstream.intervals import Interval, Sampling, holm, interval, over_seeds, p_of_none
from downstream.protocols import Settings
from downstream.scoring import get_metric

_PROTOCOLS = ("hear", "paper", "best")
_MODES = ("probe", "finetune", "knn")
_USUAL = {one.name: one.default for one in fields(Settings)} | {"set": None}  # by --set


def order_of_protocol(protocol: str) -> tuple[int, str]:
    """Sorts protocols: hear, paper, best, each before what is marked after it."""
    return _place(re.split("[-:]", protocol)[0], _PROTOCOLS), protocol


def order_of(cell: Cell) -> tuple[Any, ...]:
    """Sorts cells by what they are of, in whatever order they were finished."""
    mode = (_place(cell.mode, _MODES), cell.mode)
    return cell.task, *order_of_protocol(cell.protocol), *mode, cell.checkpoint, cell.seed


def _place(name: str, known: Sequence[str]) -> int:
    return known.index(name) if name in known else len(known)


@dataclass(frozen=True)
class Row:
    """A metric of one checkpoint, over its seeds, under one task, protocol, mode and configuration.

    differing: settings in which results of this task, protocol and mode differ, and what was set to
    another value than the usual one. value: mean over seeds. interval: 95 %, over units and seeds.
    p: of no difference from the best checkpoint, with Holm's correction over all pairs of
    checkpoints (the best one is only known afterwards); None for the best one itself, and without
    intervals. cells: what it is of, by seed. draws: of `value` (draws,).
    """

    task: str
    protocol: str
    mode: str
    differing: tuple[tuple[str, Any], ...]
    metric: str
    checkpoint: str
    value: float
    interval: Interval | None
    p: float | None
    n_seeds: int
    n_units: int
    unit: str
    cells: tuple[Cell, ...] = field(default=(), compare=False, repr=False)
    draws: np.ndarray = field(default_factory=lambda: np.zeros(0), compare=False, repr=False)


def table(cells: Iterable[Cell]) -> list[Row]:
    """Rows by task, protocol, mode, configuration and metric, the best checkpoint first.

    The same cells give the same rows, in whatever order they come; but of cells with one
    checkpoint, configuration and seed the last one counts.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_key(cell), []).append(cell)
    found = [groups[key] for key in sorted(groups, key=lambda k: (order_of(groups[k][0])[:5], k))]
    rows: list[Row] = []
    for group in found:
        rivals = [other[0] for other in found if _name(other[0]) == _name(group[0])]
        differing = _differing(group[0], rivals)
        for metric in group[0].metrics:
            rows += _rows(group, metric, differing)
    return rows


def _name(cell: Cell) -> tuple[str, str, str]:
    return cell.task, cell.protocol, cell.mode


def _facts(cell: Cell) -> dict[str, Any]:
    """What has to be equal for numbers to be comparable, beside names."""
    data = {"data": cell.task_digest[:8], "units": cell.sampling.digest[:8]}
    return {**cell.config, "version": cell.version, **data}


def _key(cell: Cell) -> str:
    return json.dumps([*_name(cell), _facts(cell)], sort_keys=True)


def _differing(cell: Cell, rivals: Sequence[Cell]) -> tuple[tuple[str, Any], ...]:
    facts, others = _facts(cell), [_facts(rival) for rival in rivals]
    return tuple(
        (name, value)
        for name, value in facts.items()
        if any(other.get(name, None) != value for other in others)
        or (name in cell.config and _USUAL.get(name, value) != value)
    )


@dataclass
class _Entry:
    """A checkpoint's cells by seed."""

    checkpoint: str
    weights_sha256: str
    cells: dict[int, Cell] = field(default_factory=dict)
    value: float = math.nan
    draws: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def measure(self, metric: str) -> None:
        """Set value and draws of a metric.

        Seeds are drawn alike in every table of this entry, but not as those of another mode or
        protocol: seed 0 of a probe and of a fine-tuning have nothing in common.
        """
        cells = [self.cells[seed] for seed in sorted(self.cells)]
        words = f"{self.checkpoint} {self.weights_sha256} {metric} {_key(cells[0])}"
        generator = np.random.default_rng(zlib.crc32(words.encode()))
        measured = [cell.metrics[metric] for cell in cells]
        n_draws = min(len(one.draws) for one in measured)
        draws = np.array([one.draws[:n_draws] for one in measured], dtype=np.float64)
        self.value = float(np.mean([one.value for one in measured]))
        self.draws = over_seeds(draws, generator)


def _rows(group: Sequence[Cell], metric: str, differing: tuple) -> list[Row]:
    entries: dict[tuple[str, str], _Entry] = {}
    for cell in group:
        key = (cell.checkpoint, cell.weights_sha256)
        entries.setdefault(key, _Entry(*key)).cells[cell.seed] = cell
    sign = -1 if get_metric(metric).maximize else 1
    for entry in entries.values():
        entry.measure(metric)
    ranked = [entries[key] for key in sorted(entries)]
    ranked.sort(key=lambda one: (math.isnan(one.value), sign * one.value))
    first = group[0]
    names = (first.task, first.protocol, first.mode, differing, metric)
    sampling = first.sampling
    return [
        Row(
            *names,
            entry.checkpoint,
            entry.value,
            interval(entry.value, entry.draws, sampling),
            p,
            len(entry.cells),
            sampling.n_units,
            first.unit,
            tuple(entry.cells[seed] for seed in sorted(entry.cells)),
            entry.draws,
        )
        for entry, p in zip(ranked, _against_best(ranked, sampling), strict=True)
    ]


def _against_best(ranked: Sequence[_Entry], sampling: Sampling) -> list[float | None]:
    """p-values against the first one, corrected over all pairs; of the first one None."""
    p_values: dict[tuple[int, int], float] = {}
    for a, b in itertools.combinations(range(len(ranked)), 2):
        one, other = ranked[a], ranked[b]
        p = p_of_none(one.value, one.draws, other.value, other.draws, sampling)
        if p is not None:
            p_values[a, b] = p
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [None, *(corrected.get((0, b)) for b in range(1, len(ranked)))][: len(ranked)]


def results_table(cells: Iterable[Cell]) -> Group:
    """The rows of `table` for a terminal of 80 columns: a table a task, protocol and mode."""
    blocks: dict[tuple[Any, ...], list[Row]] = {}
    for row in table(cells):
        head = (row.task, row.protocol, row.mode, repr(row.differing))
        blocks.setdefault(head, []).append(row)
    return Group(*(_block(rows) for rows in blocks.values()))


def _block(rows: Sequence[Row]) -> Table:
    first = rows[0]
    title = f"{first.task}, protocol {first.protocol}, {first.mode}"
    if first.differing:
        title += ": " + ", ".join(f"{name} {value}" for name, value in first.differing)
    out = Table(title=Text(title), caption=Text(_caption(rows)), title_justify="left")
    out.caption_justify = "left"
    out.add_column("checkpoint", overflow="fold")
    for name in ("value", "95 % interval", "p", "seeds"):
        out.add_column(name, justify="right", no_wrap=True)
    for metric, group in itertools.groupby(rows, key=lambda row: row.metric):
        less = "" if get_metric(metric).maximize else " (less is better)"
        out.add_row(Text(metric + less, style="bold"))
        for row in group:
            out.add_row(f"  {row.checkpoint}", *_numbers(row))
        out.add_section()
    return out


def _caption(rows: Sequence[Row]) -> str:
    first = rows[0]
    what = f"{first.n_units} {first.unit}{'s' if first.n_units != 1 else ''}"
    counted = first.cells[0].recipe.get("clips") if first.cells else None
    if counted is not None:  # of how many the published number is
        what = f"{counted} clips"
    if all(row.interval is None for row in rows):
        return f"{what}: no intervals."
    seeds = "seeds" if max(row.n_seeds for row in rows) > 1 else "one seed"
    caption = f"Intervals over {what} and {seeds}"
    if any(row.p is not None for row in rows):
        caption += "; p: no difference from the best, Holm-corrected"
    return caption + "."


def _numbers(row: Row) -> tuple[str, str, str, str]:
    within = "" if row.interval is None else "{:.3f} to {:.3f}".format(*row.interval)
    value = "none" if math.isnan(row.value) else f"{row.value:.3f}"
    return value, within, _p_text(row.p), str(row.n_seeds)


def _p_text(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
