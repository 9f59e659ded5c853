"""The report as Markdown, to be read, and as CSV, to be computed with."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence

from downstream.leaderboard import Beside, beside_numbers, beside_task
from downstream.report_data import (
    Column,
    Gain,
    Network,
    Report,
    Section,
    number,
    p_text,
    signed,
    span,
    stars,
)
from downstream.report_markup import clean

_LEGEND = (
    "95 % intervals over test units and seeds. ★: best in its column; ≈: not told apart from the "
    "best (Holm-corrected p ≥ 0.05)."
)
CSV_COLUMNS = (
    ("protocol", "task", "task_version", "mode", "settings", "metric", "is_main", "maximize")
    + ("checkpoint", "backbone", "stage", "weights_sha256", "gmacs", "parameters", "value", "low")
    + ("high", "p_holm", "n_seeds", "n_units", "unit", "version", "cells")
)


def markdown(report: Report, stock: Sequence[Beside] = ()) -> str:
    """The report's tables, protocol by protocol."""
    parts = ["# Sound event detection backbones, downstream", _LEGEND, _list(report.notes)]
    for section in report.sections:
        parts += [f"## Protocol {escaped(section.protocol)}", _list(section.notes)]
        parts += [_matrix(section)]
        parts += [_gains(title, gains) for title, gains in section.gains.items()]
        parts += [_metrics(section)]
    if stock:
        parts += ["## Stock heareval", _stock(stock)]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: object) -> str:
    """Text in which nothing is Markdown or HTML; underscores inside words are none."""
    line = clean(text).replace("\n", " ")
    line = re.sub(r"([\\`*\[\]<>#|~&]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", line)
    return re.sub(r"^(\s*)(\d*)(?=[-+=]|[.)](\s|$))", r"\1\2\\", line)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], n_left: int = 2) -> str:
    """A table of cells that are escaped already."""
    rule = ["---"] * n_left + ["---:"] * (len(heads) - n_left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, rule, *rows))


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in lines)


def _names(network: Network) -> list[str]:
    return [escaped(network.name), escaped(network.stage)]


def _value(section: Section, network: Network, column: Column, sign: str) -> str:
    row = section.values.get((network, column))
    if row is None:
        return ""
    within = f" ({span(row.interval)})" if row.interval else ""
    return f"{sign} {number(row.value)}{within}".strip()


def _title(column: Column, what: str) -> str:
    less = "" if column.maximize else ", less is better"
    return escaped(f"{what}{less}")


def _matrix(section: Section) -> str:
    columns = section.main_columns
    signs = {column: stars(section.marks(column)) for column in columns}
    heads = ["checkpoint", "stage"]
    heads += [_title(c, f"{c.title}: {c.metric}") for c in columns]
    rows = [
        [*_names(n), *(_value(section, n, c, signs[c].get(n, "")) for c in columns)]
        for n in section.networks
    ]
    return _table(heads, rows)


def _gains(title: str, gains: Sequence[Gain]) -> str:
    less = "" if gains[0].maximize else ", less is better"
    heads = ["checkpoint", "stage", "probe", "finetune", "difference", "interval", "p, Holm"]
    rows = [
        [
            *_names(gain.network),
            *(number(row.value) for row in (gain.probe, gain.finetune)),
            signed(gain.comparison.difference),
            span(gain.comparison.interval),
            escaped(p_text(gain.p)),
        ]
        for gain in gains
    ]
    words = escaped(f"{title}: {gains[0].probe.metric}{less}")
    return f"### Probe against fine-tune, {words}\n\n{_table(heads, rows)}"


def _metrics(section: Section) -> str:
    """Every column on its own, with p-values."""
    parts = []
    for column in section.columns:
        heads = ["checkpoint", "stage", "value", "95 % interval", "p, Holm", "seeds"]
        rows = [
            [*_names(n), number(row.value), span(row.interval), escaped(p_text(row.p))]
            + [str(row.n_seeds)]
            for n, row in section.rows(column)
        ]
        units = f"{column.n_units} {column.unit}{'s' if column.n_units != 1 else ''}"
        title = _title(column, f"{column.title}, {column.metric}, {units}")
        parts.append(f"### {title}\n\n{_table(heads, rows)}")
    return "\n\n".join(parts)


def _stock(found: Sequence[Beside]) -> str:
    heads = ["model", "task", "heareval", "ours", "difference", "seeds"]
    rows = [
        [escaped(one.stock.model), escaped(beside_task(one))]
        + [escaped(text) for text in beside_numbers(one)]
        for one in found
    ]
    return _table(heads, rows)


def csv_text(report: Report) -> str:
    """A line a value: one metric of one checkpoint under one task, protocol, mode, configuration.

    Empty: not known or not defined. `settings`: JSON of what other columns of this task, protocol
    and mode differ in, and of what is not as usual; `cells`: the ids of its cells in results.jsonl.
    """
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(CSV_COLUMNS)
    for section in report.sections:
        for column in section.columns:
            table.writerows(_lines(section, column))
    return out.getvalue()


def _lines(section: Section, column: Column) -> Iterable[list[object]]:
    for network, row in section.rows(column):
        cell = row.cells[0]
        low, high = row.interval or (None, None)
        names = [section.protocol, row.task, cell.task_version, row.mode]
        names += [json.dumps(dict(row.differing), sort_keys=True), row.metric]
        of = [network.checkpoint, network.backbone, network.stage, cell.weights_sha256]
        cost = [network.gmacs, network.parameters]
        numbers = [_plain(value) for value in (row.value, low, high, row.p)]
        counts = [row.n_seeds, row.n_units, row.unit, cell.version]
        ids = " ".join(one.id for one in row.cells)
        flags = [int(column.is_main), int(column.maximize)]
        yield [
            clean(one) if isinstance(one, str) else one
            for one in [*names, *flags, *of, *cost, *numbers, *counts, ids]
        ]


def _plain(value: float | None) -> float | None:
    return None if value is None or value != value else value
