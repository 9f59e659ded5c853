"""The report's charts: stage gains, accuracy against cost, probe against fine-tune, published ones.

The published trade-off charts show numbers of EfficientSED (arXiv 2503.11373) and PretrainedSED
(arXiv 2409.09546) on AudioSet Strong from the registry, against multiply-accumulates as counted
here (`complexity`); nothing in them was measured by the report's runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from downstream.report_data import Column, Gain, Network, Section, number, span
from downstream.report_markup import Markup
from downstream.report_svg import HEIGHT, SHAPES, WIDTH, Chart, Ink, Scale, log_span, span_of
from downstream.tables import Row
from hear_pretrainedsed.complexity import complexity
from hear_pretrainedsed.registry import CHECKPOINTS, STAGES, Checkpoint

_LEFT, _TOP, _BOTTOM = 44.0, 26.0, HEIGHT - 44.0
_STAGE_INK = {stage: Ink(i, SHAPES[i]) for i, stage in enumerate(STAGES)}
_OTHER_INK = Ink(7, "diamond")
_MODEL_INK = {"": Ink(7), "tf": Ink(0, "square"), "hybrid": Ink(1, "triangle"), "gru": Ink(2)}
_MODEL_INK["transformers"] = Ink(3, "diamond")
_WIDTH_DIMS = {"fmn04": 104, "fmn06": 160, "fmn10": 256, "fmn20": 512, "fmn30": 768}


def _hint(network: Network, row: Row) -> str:
    within = f" ({span(row.interval)})" if row.interval else ""
    return f"{network.name}: {number(row.value)}{within}"


def _known(section: Section, column: Column) -> list[tuple[Network, Row]]:
    return [one for one in section.rows(column) if math.isfinite(one[1].value)]


def _ends(rows: Iterable[Row]) -> list[float]:
    """Values and ends of intervals: what an axis has to hold."""
    return [v for row in rows for v in (row.value, *(row.interval or ()))]


# ---- Stages


def stage_gains(section: Section, column: Column) -> Markup | None:
    """A line a backbone over SSL, Weak and Strong; None where no backbone has two stages.

    Only checkpoints without a variant and with one file of weights: a line is one network.
    """
    lines: dict[str, list[tuple[Network, Row]]] = {}
    for network, row in _known(section, column):
        if network.stage in STAGES and not network.variant and not network.weights:
            lines.setdefault(network.backbone, []).append((network, row))
    lines = {
        backbone: sorted(line, key=lambda one: one[0])
        for backbone, line in sorted(lines.items())
        if len(line) > 1
    }
    if not lines:
        return None
    y = Scale(*span_of(_ends(row for line in lines.values() for _, row in line)), _BOTTOM, _TOP)
    chart = Chart(column.title, Scale(-0.15, 2.15, _LEFT, WIDTH - 84), y)
    chart.axes("", column.metric, [{"ssl": "SSL"}.get(s, s.capitalize()) for s in STAGES])
    ends: list[tuple[float, str, Ink]] = []
    for i, (backbone, line) in enumerate(lines.items()):
        ink = Ink(i, dash=i // 8)
        shift = (i - (len(lines) - 1) / 2) * 0.015  # intervals do not cover each other
        places = [(n.stage_order + shift, row) for n, row in line]
        chart.line([(x, row.value) for x, row in places], ink)
        for (x, row), (network, _) in zip(places, line, strict=True):
            if row.interval:
                chart.bar(x, *row.interval, ink)
            chart.point(x, row.value, ink, _hint(network, row))
        ends.append((line[-1][1].value, backbone, ink))
    chart.right_labels(ends)
    return chart.done()


# ---- Cost


def accuracy_against_macs(section: Section, column: Column) -> Markup | None:
    """Values against multiply-accumulates; networks that none is better and cheaper than, named."""
    found = [(n, row) for n, row in _known(section, column) if n.gmacs]
    if len(found) < 2:
        return None
    x = Scale(*log_span([n.gmacs for n, _ in found]), _LEFT, WIDTH - 12, log=True)
    chart = Chart(column.title, x, Scale(*span_of(_ends(r for _, r in found)), _BOTTOM, _TOP))
    chart.axes("GMACs per 10 s", column.metric)
    front = _front(found, column.maximize)
    chart.line([(n.gmacs, row.value) for n, row in front], Ink(7, extra="faint"))
    for network, row in found:
        if row.interval:
            ink = _STAGE_INK.get(network.stage, _OTHER_INK)
            chart.bar(network.gmacs, *row.interval, Ink(ink.colour, extra="faint"))
    for network, row in found:
        ink = _STAGE_INK.get(network.stage, _OTHER_INK)
        chart.point(network.gmacs, row.value, ink, f"{_hint(network, row)}, {network.gmacs:.2f} G")
    for network, row in front:
        chart.label(network.gmacs, row.value, network.name)
    shown = {n.stage for n, _ in found}
    legend = [(stage, ink) for stage, ink in _STAGE_INK.items() if stage in shown]
    return chart.done(legend + ([("other", _OTHER_INK)] if shown - set(STAGES) else []))


def _front(found: Sequence[tuple[Network, Row]], maximize: bool) -> list[tuple[Network, Row]]:
    """Those that no other is better than at equal or lower cost, the cheapest first."""
    sign = 1 if maximize else -1
    front: list[tuple[Network, Row]] = []
    for network, row in sorted(found, key=lambda one: (one[0].gmacs, -sign * one[1].value)):
        if not front or sign * row.value > sign * front[-1][1].value:
            front.append((network, row))
    return front


# ---- Probe against fine-tune


def dumbbells(title: str, gains: Sequence[Gain]) -> Markup | None:
    """A line a network from its probe (open) to its fine-tuned value (full)."""
    found = [g for g in gains if math.isfinite(g.comparison.difference)]
    if not found:
        return None
    sign = 1 if found[0].maximize else -1
    found.sort(key=lambda g: sign * g.finetune.value)
    longest = max(len(g.network.name) for g in found)
    left = min(170.0, 12 + 6.2 * longest)
    height = 62.0 + 17 * len(found)
    x = Scale(
        *span_of([v for g in found for v in (g.probe.value, g.finetune.value)]), left, WIDTH - 12
    )
    chart = Chart(title, x, Scale(-0.7, len(found) - 0.3, height - 40, 26.0), height=height)
    names = [g.network.name for g in found]
    chart.rows(names, found[0].probe.metric)
    for i, gain in enumerate(found):
        chart.line([(gain.probe.value, i), (gain.finetune.value, i)], Ink(7, extra="faint"))
        chart.point(gain.probe.value, i, Ink(0, extra="open"), _hint(gain.network, gain.probe))
        chart.point(gain.finetune.value, i, Ink(2), _hint(gain.network, gain.finetune))
    return chart.done([("probe", Ink(0, extra="open")), ("finetune", Ink(2))])


# ---- Published


def _published() -> list[tuple[Checkpoint, float]]:
    return [(c, complexity(c).macs / 1e9) for c in CHECKPOINTS.values() if c.psds1 is not None]


def by_sequence_model() -> Markup:
    """PSDS1 against cost of fmn10 with each sequence model, over the model's dim."""
    lines: dict[str, list[tuple[float, float, str, str]]] = {}
    for checkpoint, gmacs in _published():
        if checkpoint.backbone == "fmn10" and "akd" not in checkpoint.name:
            model, dim, *_ = checkpoint.sequence_model or ("", 0)
            point = (gmacs, checkpoint.psds1, str(dim or ""), checkpoint.name)
            lines.setdefault(model, []).append(point)
    (alone,) = lines.pop("")
    return _trade_off("fmn10 by sequence model and its dim", {"": [alone], **lines})


def by_width() -> Markup:
    """PSDS1 against cost over the MobileNet's width, with and without sequence models."""
    lines: dict[str, list[tuple[float, float, str, str]]] = {}
    for checkpoint, gmacs in _published():
        width = checkpoint.backbone
        model, dim, *_ = checkpoint.sequence_model or ("", None)
        if width in _WIDTH_DIMS and "akd" not in checkpoint.name:
            if dim in (None, _WIDTH_DIMS[width]):
                point = (gmacs, checkpoint.psds1, "" if model else width, checkpoint.name)
                lines.setdefault(model, []).append(point)
        elif not width.startswith(("fmn", "frame_mn")):
            point = (gmacs, checkpoint.psds1, width, checkpoint.name)
            lines.setdefault("transformers", []).append(point)
    return _trade_off("MobileNets by width, and the transformers", lines)


def _trade_off(title: str, lines: dict[str, list[tuple[float, float, str, str]]]) -> Markup:
    """Lines of (GMACs, PSDS1, label, checkpoint) by sequence model."""
    points = [point for line in lines.values() for point in line]
    x = Scale(*log_span([p[0] for p in points]), _LEFT, WIDTH - 12, log=True)
    chart = Chart(title, x, Scale(*span_of([p[1] for p in points]), _BOTTOM, _TOP))
    chart.axes("GMACs per 10 s", "PSDS1 on AudioSet Strong, published")
    for model, line in lines.items():
        if model != "transformers":
            chart.line([point[:2] for point in sorted(line)], _MODEL_INK[model])
    for model, line in lines.items():
        for gmacs, psds1, _, name in line:
            chart.point(gmacs, psds1, _MODEL_INK[model], f"{name}: {psds1} at {gmacs:.2f} GMACs")
    for line in lines.values():
        for gmacs, psds1, label, _ in line:
            chart.label(gmacs, psds1, label)
    return chart.done([(model or "no sequence model", _MODEL_INK[model]) for model in lines])
