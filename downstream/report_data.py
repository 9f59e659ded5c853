"""What a report shows: of each protocol a grid of networks x columns, and fine-tuning's gains.

A column is one task, mode and configuration; a protocol's columns are of that protocol alone.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from downstream.cells import Cell
from downstream.intervals import Comparison, compare, holm
from downstream.report_cells import Collection, differing_facts
from downstream.scoring import get_metric
from downstream.tables import Row, order_of, order_of_protocol, table
from hear_pretrainedsed.complexity import complexity
from hear_pretrainedsed.registry import CHECKPOINTS, STAGES

SIGNIFICANT = 0.05


@dataclass(frozen=True, order=True)
class Network:
    """A checkpoint with its weights: a line of the tables.

    variant: what its name has after the stage. weights: start of their sha256, where one name has
    several. gmacs (per 10 s, attention included), parameters: of the published network, if it is
    known here.
    """

    backbone: str
    stage_order: int
    variant: str
    checkpoint: str
    weights: str = ""
    stage: str = field(default="", compare=False)
    gmacs: float | None = field(default=None, compare=False)
    parameters: int | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The checkpoint, and its weights where one name has several."""
        return f"{self.checkpoint} ({self.weights})" if self.weights else self.checkpoint


@dataclass(frozen=True)
class Column:
    """Numbers that may be compared: one task, mode, configuration and metric."""

    task: str
    mode: str
    differing: tuple[tuple[str, Any], ...]
    metric: str
    is_main: bool
    n_units: int
    unit: str

    @property
    def settings(self) -> str:
        """Settings in which other columns of this task and mode differ, and unusual ones."""
        return ", ".join(f"{name} {value}" for name, value in self.differing)

    @property
    def title(self) -> str:
        """Task, mode and settings in words."""
        return f"{self.task}, {self.mode}" + (f" ({self.settings})" if self.differing else "")

    @property
    def maximize(self) -> bool:
        """Whether more is better."""
        return get_metric(self.metric).maximize


@dataclass(frozen=True)
class Gain:
    """What fine-tuning adds to the probe of one network; p is Holm-corrected over the networks."""

    network: Network
    probe: Row
    finetune: Row
    comparison: Comparison
    p: float | None

    @property
    def maximize(self) -> bool:
        """Whether more is better."""
        return get_metric(self.probe.metric).maximize


@dataclass(frozen=True)
class Section:
    """All of one protocol. values: (network, column) -> row."""

    protocol: str
    networks: tuple[Network, ...]
    columns: tuple[Column, ...]
    values: dict[tuple[Network, Column], Row]
    gains: dict[str, tuple[Gain, ...]]  # by task and settings in words
    notes: tuple[str, ...]

    @property
    def main_columns(self) -> tuple[Column, ...]:
        """Those of the tasks' main metrics."""
        return tuple(column for column in self.columns if column.is_main)

    def rows(self, column: Column) -> list[tuple[Network, Row]]:
        """A column's rows, the best first."""
        found = [(n, r) for (n, c), r in self.values.items() if c == column]
        sign = -1 if column.maximize else 1
        return sorted(found, key=lambda one: (math.isnan(one[1].value), sign * one[1].value))

    def marks(self, column: Column) -> dict[Network, str]:
        """`best`, `tied` (not told apart from the best one) or `worse`; "" where not known."""
        ranked = self.rows(column)
        found = {network: _mark(row) for network, row in ranked}
        if len(ranked) > 1 and not math.isnan(ranked[0][1].value):
            found[ranked[0][0]] = "best"
        return found


@dataclass(frozen=True)
class Report:
    """Everything that is on the page. cells: in the order of the page's JSON."""

    cells: tuple[Cell, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]


def make_report(found: Collection) -> Report:
    """The report of cells that `read_cells` gave."""
    cells = sorted(found.cells.values(), key=_order)
    names: dict[str, set[str]] = {}
    for cell in cells:
        names.setdefault(cell.checkpoint, set()).add(cell.weights_sha256)
    network_of = {
        (name, sha): network(name, sha[:8] if len(hashes) > 1 else "")
        for name, hashes in names.items()
        for sha in hashes
    }
    sections = [
        _section(protocol, list(group), network_of)
        for protocol, group in itertools.groupby(cells, key=lambda cell: cell.protocol)
    ]
    return Report(tuple(cells), tuple(sections), tuple(found.notes) + tuple(_twice(names)))


def _order(cell: Cell) -> tuple[Any, ...]:
    return *order_of_protocol(cell.protocol), *order_of(cell), cell.id


def _twice(names: dict[str, set[str]]) -> Iterable[str]:
    for name, hashes in names.items():
        if len(hashes) > 1:
            yield f"{name}: {len(hashes)} files of weights bear this name; each has its own line"


def network(checkpoint: str, weights: str = "") -> Network:
    """What is known of a checkpoint by its name: backbone.stage[-variant][+seq-dim]."""
    backbone, _, rest = checkpoint.partition(".")
    stage, variant = re.match(r"([^-+]*)(.*)", rest, re.DOTALL).groups()
    order = STAGES.index(stage) if stage in STAGES else len(STAGES)
    known = CHECKPOINTS.get(checkpoint)
    cost = complexity(known) if known else None
    facts = {"stage": stage, "gmacs": cost and cost.macs_with_attention / 1e9}
    facts["parameters"] = cost and cost.parameters
    return Network(backbone, order, variant, checkpoint, weights, **facts)


def _section(
    protocol: str, cells: list[Cell], network_of: dict[tuple[str, str], Network]
) -> Section:
    values: dict[tuple[Network, Column], Row] = {}
    for row in table(cells):
        cell = row.cells[0]
        is_main = row.metric == cell.main_metric
        names = (row.task, row.mode, row.differing, row.metric, is_main)
        column = Column(*names, row.n_units, row.unit)
        values[network_of[cell.checkpoint, cell.weights_sha256], column] = row
    networks = tuple(sorted({network for network, _ in values}))
    columns = tuple(dict.fromkeys(column for _, column in values))
    notes = [note for column in columns if column.is_main for note in _mixed(column, values)]
    gains, unpaired = _gains(values)
    return Section(protocol, networks, columns, values, gains, (*notes, *unpaired))


def _mixed(column: Column, values: dict[tuple[Network, Column], Row]) -> Iterable[str]:
    """Says what the cells of a column were made with where that is not the same for all."""
    cells = [cell for (_, c), row in values.items() if c == column for cell in row.cells]
    apart = [f"{name} {', '.join(map(str, v))}" for name, *v in differing_facts(cells)]
    if apart:
        yield f"{column.title}: made with different {'; '.join(apart)}"
    recipes = [cell.recipe for cell in cells]
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    if other := [n for n in names if any(r.get(n) != recipes[0].get(n) for r in recipes)]:
        yield f"{column.title}: recipes differ between checkpoints in {', '.join(other)}"


def _gains(
    values: dict[tuple[Network, Column], Row],
) -> tuple[dict[str, tuple[Gain, ...]], list[str]]:
    """Fine-tuning less probe by task and settings, of main metrics; why there is none."""
    pairs: dict[str, list[tuple[Network, Row, Row]]] = {}
    apart: dict[tuple[str, Network], tuple[str, ...]] = {}
    mains = {key: row for key, row in values.items() if key[1].is_main}
    for (one, column), probe in mains.items():
        if column.mode != "probe":
            continue
        for (other, tuned), row in mains.items():
            if (other, tuned.mode, tuned.task) != (one, "finetune", column.task):
                continue
            if reasons := unequal(probe.cells[0], row.cells[0]):
                apart[column.task, one] = reasons
                continue
            both = dict(column.differing) | dict(tuned.differing)
            settings = ", ".join(f"{name} {value}" for name, value in both.items())
            title = column.task + (f" ({settings})" if settings else "")
            pairs.setdefault(title, []).append((one, probe, row))
    paired = {(probe.task, net) for rows in pairs.values() for net, probe, _ in rows}
    told = {
        (task, reasons): None for (task, n), reasons in apart.items() if (task, n) not in paired
    }
    notes = [
        f"{task}: probe and fine-tuning are not compared where they differ in {', '.join(reasons)}"
        for task, reasons in told
    ]
    return {title: _compared(rows) for title, rows in pairs.items()}, notes


_FACTS = {
    "task": "task",
    "task_digest": "data",
    "version": "version",
    "main_metric": "metric",
    "sampling": "test units",
}


def unequal(one: Cell, other: Cell) -> tuple[str, ...]:
    """In what two cells differ that have to be of the same test units, data and settings.

    Two modes have settings of their own: there, those that both have count, and the share of steps
    that was made.
    """
    found = [word for name, word in _FACTS.items() if getattr(one, name) != getattr(other, name)]
    names = one.config.keys() & other.config.keys()
    if one.mode == other.mode:
        names = one.config.keys() | other.config.keys()
    elif len({cell.recipe.get("steps_scale") or 1 for cell in (one, other)}) > 1:
        found.append("the share of steps")
    found += sorted(n for n in names if one.config.get(n, ...) != other.config.get(n, ...))
    return tuple(found)


def _compared(rows: Sequence[tuple[Network, Row, Row]]) -> tuple[Gain, ...]:
    found = [
        (net, a, b, compare(b.value, b.draws, a.value, a.draws, a.cells[0].sampling))
        for net, a, b in rows
    ]
    p_values = iter(holm([c.p for *_, c in found if c.p is not None]))
    return tuple(
        Gain(net, a, b, c, None if c.p is None else next(p_values)) for net, a, b, c in found
    )


def _mark(row: Row) -> str:
    if row.p is None:
        return ""
    return "tied" if row.p >= SIGNIFICANT else "worse"


# ---- Words for numbers


def number(value: float | None) -> str:
    """A score in words, as on the page."""
    return "none" if value is None or math.isnan(value) else f"{value:.3f}"


def span(interval: tuple[float, float] | None) -> str:
    """An interval in words, empty if there is none."""
    if interval is None:
        return ""
    return ("{:.3f}\u2013{:.3f}" if interval[0] >= 0 else "{:.3f} to {:.3f}").format(*interval)


def p_text(p: float | None) -> str:
    """A p-value in words, empty if there is none."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def stars(marks: Mapping[Network, str]) -> dict[Network, str]:
    """Marks as signs: ★ the best, ≈ not told apart from it, "" worse or not known."""
    return {network: {"best": "★", "tied": "≈"}.get(mark, "") for network, mark in marks.items()}


def signed(value: float) -> str:
    """A difference in words."""
    return "none" if math.isnan(value) else f"{value:+.3f}"
