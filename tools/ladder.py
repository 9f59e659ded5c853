"""One checkpoint on one task, from protocol `hear` over `paper` to `best`, as a picture.

.venv/bin/python tools/ladder.py RESULTS --checkpoint beats.strong --task office_like -o ladder.png
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from downstream.results import Row, read, table  # noqa: E402
from hear_pretrainedsed.registry import unknown  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNGS = (("hear",), ("paper", "paper-scaled"), ("best",))
CAUSES = {
    ("hear", "paper"): "a linear layer instead of MLPs; crops of 10 s, lr searched on valid, "
    "last epoch; logits above 0.5",
    ("paper", "best"): "sum of all blocks, prototypes, overlapping windows; thresholds and "
    "medians a class, from valid",
    ("hear", "best"): "all that protocol best has: see docs/protocols.md",
}
INK, SOFT, UP, DOWN = "#1b1b1b", "#6f6f6f", "#1f6f5c", "#a3432f"


def ladder(rows: Sequence[Row], checkpoint: str, task: str, mode: str = "probe") -> list[Row]:
    """The rows of a checkpoint under hear, paper and best, in this order; main metrics only.

    Raises `ValueError` where fewer than two protocols are there, or one with several settings.
    """
    for what, value, known in (
        ("task", task, {row.task for row in rows}),
        ("checkpoint", checkpoint, {row.checkpoint for row in rows if row.task == task}),
        ("mode", mode, {row.mode for row in rows}),
    ):
        if value not in known:
            raise ValueError(unknown(what, value, sorted(known)))
    mine = [
        row
        for row in rows
        if (row.task, row.checkpoint, row.mode) == (task, checkpoint, mode)
        and row.metric == row.cells[0].main_metric
    ]
    found = []
    for names in RUNGS:
        there = [row for row in mine if row.protocol in names]
        if len(there) > 1:
            settings = "; ".join(f"{row.protocol} {dict(row.differing)}" for row in there)
            raise ValueError(f"{task}, {checkpoint}: several results of one protocol: {settings}")
        found += there
    if len(found) < 2:
        raise ValueError(
            f"{task}, {checkpoint}: a ladder has two protocols at least, and there is "
            f"{', '.join(row.protocol for row in found) or 'none'} in mode {mode}"
        )
    return found


def cause(lower: Row, upper: Row) -> str:
    """What makes the difference between two protocols."""
    first, second = (row.protocol.removesuffix("-scaled") for row in (lower, upper))
    return CAUSES[first, second]


def draw(rows: Sequence[Row]) -> Figure:
    """A rung for each row, at its value with its interval; between them difference and cause."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(2.6 + 2.9 * len(rows), 4.6), layout="constrained")
    axes = figure.add_subplot()
    values = [0.0 if math.isnan(row.value) else 100 * row.value for row in rows]
    for i, (row, value) in enumerate(zip(rows, values, strict=True)):
        left, right = 2 * i - 0.45, 2 * i + 0.45
        axes.plot((left, right), (value, value), color=INK, linewidth=3, solid_capstyle="butt")
        if row.interval:
            low, high = (100 * end for end in row.interval)
            axes.fill_between((left, right), low, high, color=SOFT, alpha=0.25, linewidth=0)
        axes.annotate(
            "no event" if math.isnan(row.value) else f"{value:.1f}",
            (2 * i, value),
            (0, 6),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=12,
            fontweight="bold",
        )
    for i, (lower, upper) in enumerate(zip(rows, rows[1:], strict=False)):
        _step(axes, i, (values[i], values[i + 1]), cause(lower, upper))
    first = rows[0]
    axes.set_xticks([2 * i for i in range(len(rows))], [row.protocol for row in rows])
    axes.set_xlim(-0.8, 2 * len(rows) - 1.2)
    axes.margins(y=0.25)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.35 * (high - low), high)  # room for the causes under the lowest rung
    axes.set_ylabel(f"{first.metric}, %")
    axes.set_title(f"{first.checkpoint} on {first.task}, mode {first.mode}", loc="left")
    counts = sorted({row.n_seeds for row in rows})
    seeds = " and ".join("1 seed" if n == 1 else f"{n} seeds" for n in counts)
    units = f"; grey: 95 % over {first.n_units} units ({first.unit}) and seeds"
    figure.supxlabel(seeds + (units if any(r.interval for r in rows) else ""), fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _step(axes: object, i: int, values: tuple[float, float], why: str) -> None:
    """The arrow from rung i to the next one, the difference, and what causes it."""
    low, high = values
    colour = UP if high >= low else DOWN
    middle = 2 * i + 1
    arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (middle + 0.5, high), (middle - 0.5, low), arrowprops=arrow)
    text = f"{high - low:+.1f}\n{fill(why, 26)}"
    axes.annotate(
        text,
        (middle, min(values)),
        (0, -10),
        textcoords="offset points",
        ha="center",
        va="top",
        color=colour,
        fontsize=8,
    )


def main(given: Sequence[str] | None = None) -> None:
    """Draw the picture that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder with results.jsonl")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--mode", default="probe")
    parser.add_argument("-o", "--out", type=Path, default=Path("ladder.png"))
    arguments = parser.parse_args(given)
    try:
        rows = ladder(
            table(read(arguments.results)), arguments.checkpoint, arguments.task, arguments.mode
        )
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    draw(rows).savefig(arguments.out, dpi=160)
    print(arguments.out)


if __name__ == "__main__":
    main()
