"""The report as one page of HTML that needs nothing else: styles, charts, cells and script in it.

Its content security policy forbids every request and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files

from downstream import report_plots as plots
from downstream.cells import Cell
from downstream.leaderboard import Beside, beside_numbers
from downstream.report_cells import made_by
from downstream.report_data import (
    SIGNIFICANT,
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
from downstream.report_markup import Markup, breakable, el
from downstream.tables import Row
from hear_pretrainedsed import __version__

_DIGITS = 6  # of the numbers in a cell's JSON
_LEGEND = (
    "Values are means over seeds, with 95 % intervals over test units and seeds below them. "
    "★: best in its column; ≈: not told apart from the best (Holm-corrected p ≥ 0.05). "
    "A value opens to the JSON of its cells; a heading sorts."
)
_STAGES = (
    "From SSL to Weak to Strong, a line a backbone, with intervals. Checkpoints with a variant in "
    "their name are left out."
)
_COSTS = (
    "Multiply-accumulates of the whole published network for one 10 s window, those inside "
    "attention included. Named: none is better and cheaper."
)
_GAINS = (
    "Paired bootstrap on the same test units; p is Holm-corrected over the lines of a table. "
    "Below 0.05 a difference stands with ▲ or ▼: fine-tuning is better or worse."
)
_PUBLISHED = (
    "Numbers of EfficientSED (arXiv 2503.11373) and PretrainedSED (arXiv 2409.09546): PSDS1 on "
    "AudioSet Strong, macro over 407 classes, no variance penalty; multiply-accumulates as counted "
    "here in EfficientSED's way, without those inside attention. Nothing in these two charts was "
    "measured by the runs above."
)


def page(report: Report, stock: Sequence[Beside] = ()) -> str:
    """The page's text; `stock` are scores of heareval beside ours."""
    place = {cell.id: i for i, cell in enumerate(report.cells)}
    script, style = _asset("report.js"), _asset("report.css")
    parts = [
        _head(report, bool(stock)),
        [_section(section, i, place) for i, section in enumerate(report.sections)],
        _stock(stock) if stock else None,
        _published(),
    ]
    title = "Report: " + ", ".join(section.protocol for section in report.sections)
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=_policy(script, style)),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("link", rel="icon", href="data:,"),
        el("title", title),
        el("style", Markup(style)),
    )
    cells = el("script", _json(report.cells), type="application/json", id="cells")
    body = el("body", el("main", parts), cells, el("script", Markup(script)))
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _asset(name: str) -> str:
    return files("downstream").joinpath("assets", name).read_text("utf-8")


def _policy(script: str, style: str) -> str:
    def hashed(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; script-src 'sha256-{hashed(script)}'; "
        f"style-src 'sha256-{hashed(style)}'; img-src data:"
    )


def _json(cells: Iterable[Cell]) -> Markup:
    """Cells without draws, in a form that no markup can end."""
    content = []
    for cell in cells:
        one = json.loads(cell.to_line())
        for metric in one["metrics"].values():
            metric.pop("draws")
        content.append(_short(one))
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _short(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {name: _short(one) for name, one in value.items()}
    return [_short(one) for one in value] if isinstance(value, list) else value


# ---- The page's parts


def _head(report: Report, with_stock: bool) -> Markup:
    cells = report.cells
    counts = [(len({getattr(cell, what) for cell in cells}), f"{what}s") for what in _COUNTED]
    counts.append((len(cells), "cells"))
    counted = [
        el("span", el("b", n), f" {what if n > 1 else what[:-1]}", class_="count")
        for n, what in counts
    ]
    links = [
        el("a", f"Protocol {section.protocol}", href=f"#{_anchor(i)}")
        for i, section in enumerate(report.sections)
    ]
    links += [el("a", "Stock heareval", href="#heareval")] if with_stock else []
    links.append(el("a", "Published trade-offs", href="#published"))
    return el(
        "header",
        el("h1", "Sound event detection backbones, downstream"),
        el("p", counted, class_="counts"),
        el("p", _made(cells), class_="note"),
        el("nav", links),
        el("p", _LEGEND, class_="note"),
        _notes(report.notes),
    )


_COUNTED = ("checkpoint", "task", "protocol", "mode", "seed")


def _made(cells: Sequence[Cell]) -> str:
    if not cells:
        return f"Page made by hear-pretrainedsed {__version__}."
    days = sorted({cell.created[:10] for cell in cells})
    versions = ", ".join(sorted({cell.version for cell in cells}))
    commits = ", ".join(sorted({made_by(cell)["commit"] for cell in cells}))
    between = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"Runs of {between}; hear-pretrainedsed {versions}, commit {commits}."


def _anchor(index: int) -> str:
    return f"protocol-{index + 1}"


def _notes(notes: Sequence[str]) -> Markup | None:
    return el("ul", [el("li", note) for note in notes], class_="notes") if notes else None


def _section(section: Section, index: int, place: dict[str, int]) -> Markup:
    columns = section.main_columns
    stages = [plots.stage_gains(section, column) for column in columns]
    costs = [plots.accuracy_against_macs(section, column) for column in columns]
    gains = [_gain_part(title, rows, place) for title, rows in section.gains.items()]
    return el(
        "section",
        el("h2", f"Protocol {section.protocol}"),
        _notes(section.notes),
        _matrix(section, place),
        _figures("Gains by stage", _STAGES, stages),
        _figures("Accuracy against cost", _COSTS, costs),
        [el("h3", "Probe against fine-tune"), el("p", _GAINS, class_="note"), gains]
        if gains
        else None,
        el("h3", "All metrics"),
        _all_metrics(section, place),
        id=_anchor(index),
    )


def _figures(title: str, note: str, figures: Iterable[Markup | None]) -> list[Markup] | None:
    shown = [figure for figure in figures if figure is not None]
    if not shown:
        return None
    return [
        el("h3", title),
        el("p", note, class_="note"),
        el("div", shown, class_="plots"),
    ]


def _published() -> Markup:
    return el(
        "section",
        el("h2", "Published trade-offs"),
        el("p", _PUBLISHED, class_="note"),
        el("div", plots.by_sequence_model(), plots.by_width(), class_="plots two"),
        id="published",
    )


# ---- Tables


def _table(heads: Sequence[Markup], rows: Iterable[Markup]) -> Markup:
    table = el("table", el("thead", el("tr", heads)), el("tbody", rows))
    return el("div", table, class_="wide")


def _th(*content: object, is_number: bool = True, first: str = "descending") -> Markup:
    """A heading that sorts; `first`: the order of the first click."""
    kind, style = ("number", "n") if is_number else ("text", None)
    first = first if is_number else "ascending"
    inner = el("button", content, type="button")
    return el("th", inner, scope="col", class_=style, data_kind=kind, data_first=first)


def _names(network: Network) -> list[Markup]:
    weights = el("small", f"weights {network.weights}") if network.weights else None
    stage = el("td", network.stage, class_="stage", data_v=network.stage_order)
    return [el("th", breakable(network.checkpoint), weights, scope="row"), stage]


_NAMES = (_th("checkpoint", is_number=False), _th("stage", is_number=False))


def _value(row: Row | None, sign: str, place: dict[str, int]) -> Markup:
    """A cell of a table: a value that opens, with its mark and its interval."""
    if row is None:
        return el("td", class_="n", data_v="")
    numbers = " ".join(str(place[cell.id]) for cell in row.cells)
    p = f"p {p_text(row.p)}" if row.p is not None else None
    seeds = f"{len(row.cells)} seeds" if len(row.cells) > 1 else "1 seed"
    hint = ", ".join(filter(None, (p, seeds, f"{row.n_units} {row.unit}s")))
    button = el(
        "button",
        el("span", sign, class_="mark-of"),
        el("span", number(row.value), class_="v"),
        el("small", span(row.interval)) if row.interval else None,
        type="button",
        title=hint,
        data_cells=numbers,
        aria_expanded="false",
    )
    style = "n best" if sign == "★" else "n"
    return el("td", button, class_=style, data_v=_sortable(row.value))


def _sortable(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(value)


def _matrix(section: Section, place: dict[str, int]) -> Markup:
    """Checkpoints x (tasks and modes): main metrics."""
    columns = section.main_columns
    signs = {column: stars(section.marks(column)) for column in columns}
    heads = [*_NAMES, _th("GMACs", first="ascending"), *(_column_head(c) for c in columns)]
    rows = []
    for network in section.networks:
        gmacs = "" if network.gmacs is None else f"{network.gmacs:.2f}"
        cost = el("td", gmacs, class_="n", data_v=_sortable(network.gmacs))
        values = [
            _value(section.values.get((network, c)), signs[c].get(network, ""), place)
            for c in columns
        ]
        rows.append(el("tr", *_names(network), cost, values))
    return _table(heads, rows)


def _column_head(column: Column) -> Markup:
    units = f"{column.n_units} {column.unit}{'s' if column.n_units != 1 else ''}"
    less = "" if column.maximize else ", less is better"
    return _th(
        breakable(column.task),
        el("small", el("b", column.mode)),
        el("small", breakable(column.metric), less),
        el("small", column.settings) if column.differing else None,
        el("small", units),
        first="descending" if column.maximize else "ascending",
    )


def _all_metrics(section: Section, place: dict[str, int]) -> list[Markup]:
    """A table a task, mode and configuration, with every metric, interval and p-value."""
    blocks: dict[tuple[object, ...], list[Column]] = {}
    for column in section.columns:
        key = (column.task, column.mode, repr(column.differing))
        blocks.setdefault(key, []).append(column)
    return [
        el("details", el("summary", columns[0].title), _metrics_table(section, columns, place))
        for columns in blocks.values()
    ]


def _metrics_table(section: Section, columns: Sequence[Column], place: dict[str, int]) -> Markup:
    signs = {column: stars(section.marks(column)) for column in columns}
    less = [
        ("", "descending") if c.maximize else (", less is better", "ascending") for c in columns
    ]
    heads = [
        (_th(breakable(c.metric), words, first=first), _th("p, Holm", first="ascending"))
        for c, (words, first) in zip(columns, less, strict=True)
    ]
    rows = []
    for network, main in section.rows(columns[0]):
        cells = []
        for column in columns:
            row = section.values.get((network, column))
            p = row.p if row else None
            cells.append(_value(row, signs[column].get(network, ""), place))
            cells.append(el("td", p_text(p), class_="n", data_v=_sortable(p)))
        seeds = el("td", main.n_seeds, class_="n")
        rows.append(el("tr", *_names(network), cells, seeds))
    return _table([*heads, _th("seeds")], rows)


def _gain_part(title: str, gains: Sequence[Gain], place: dict[str, int]) -> list[Markup | None]:
    heads = [*_NAMES, _th("probe"), _th("finetune"), _th("difference"), _th("p, Holm")]
    rows = []
    for gain in gains:
        found = gain.comparison
        arrow, style = _direction(gain)
        difference = el(
            "td",
            el("span", arrow, class_=f"mark-of {style}"),
            signed(found.difference),
            el("small", span(found.interval)) if found.interval else None,
            class_="n",
            data_v=_sortable(found.difference),
        )
        p = el("td", p_text(gain.p), class_="n", data_v=_sortable(gain.p))
        values = (_value(row, "", place) for row in (gain.probe, gain.finetune))
        rows.append(el("tr", *_names(gain.network), *values, difference, p))
    metric = gains[0].probe.metric + ("" if gains[0].maximize else " (less is better)")
    chart = plots.dumbbells(f"{title}: {metric}", gains)
    table = el("div", _table(heads, rows))
    parts = el("div", table, chart, class_="beside")
    return [el("h4", f"{title}: {metric}"), parts]


def _direction(gain: Gain) -> tuple[str, str]:
    """An arrow where the difference is significant, and its class."""
    if gain.p is None or gain.p >= SIGNIFICANT:
        return "", ""
    better = (gain.comparison.difference > 0) == gain.maximize
    return ("▲", "up") if better else ("▼", "down")


def _stock(found: Sequence[Beside]) -> Markup:
    """Scores of stock heareval and ours."""
    heads = [_th("model", is_number=False), _th("task", is_number=False)]
    heads += [_th(name) for name in ("heareval", "ours", "difference", "seeds")]
    rows = []
    for one in found:
        settings = ", ".join(f"{k} {v}" for k, v in (one.ours.differing if one.ours else ()))
        task = f"{one.stock.task} {one.stock.version} {one.stock.mode}"
        names = [
            el("th", breakable(one.stock.model), scope="row"),
            el("td", task, el("small", one.stock.metric), el("small", settings)),
        ]
        ours = (one.ours.value, one.difference, one.ours.n_seeds) if one.ours else (None,) * 3
        values = zip(beside_numbers(one), (one.stock.score, *ours), strict=True)
        numbers = [el("td", text, class_="n", data_v=_sortable(value)) for text, value in values]
        rows.append(el("tr", names, numbers))
    note = "Scores of stock heareval, and protocol hear, mode probe, here, on the same task."
    return el(
        "section",
        el("h2", "Stock heareval"),
        el("p", note, class_="note"),
        _table(heads, rows),
        id="heareval",
    )
