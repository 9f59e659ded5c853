"""Write the checkpoint table of README.md from the registry.

.venv/bin/python tools/readme.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from hear_pretrainedsed.complexity import complexity
from hear_pretrainedsed.registry import CHECKPOINTS, Checkpoint

README = Path(__file__).resolve().parents[1] / "README.md"
MARKS = ("<!-- checkpoints: made by tools/readme.py -->", "<!-- /checkpoints -->")
HEADING = (
    "| checkpoint | stages | parameters, M | GMACs per 10 s | PSDS1 | licence of the weights |",
    "|---|---|---|---|---|---|",
)


def network(checkpoint: Checkpoint) -> tuple[str, str]:
    """What a row is about: backbone and the part of the name after the plus sign."""
    return checkpoint.backbone, checkpoint.name.partition("+")[2]


def row(group: list[Checkpoint]) -> str:
    """One network: its checkpoints, its size, the strong one's score."""
    first = group[0]
    backbone, sequence = network(first)
    stages = [c.name.split(".")[1].split("+")[0] for c in group]
    costs = [complexity(c) for c in group if c.stage == group[-1].stage]
    name = f"`{backbone}.<stage>{'+' + sequence if sequence else ''}`"
    scores = [f"{c.psds1}" for c in group if c.psds1 is not None]
    cells = (
        name,
        " ".join(f"`{stage}`" for stage in stages),
        _each(f"{cost.parameters / 1e6:.1f}" for cost in costs),
        _each(f"{cost.macs_with_attention / 1e9:.2f}" for cost in costs),
        " / ".join(scores) or "-",
        first.licence,
    )
    return f"| {' | '.join(cells)} |"


def _each(values: Iterable[str]) -> str:
    """Values that differ, in their order: PSLA's heads have 527 or 200 classes."""
    return " / ".join(dict.fromkeys(values))


def table() -> str:
    """The whole table, marks included."""
    order = {"ssl": 0, "weak": 1, "strong": 2}
    published = [c for c in CHECKPOINTS.values() if not c.own]
    known = sorted(published, key=lambda c: (*network(c), order[c.stage], c.name))
    rows = [row(list(group)) for _, group in groupby(known, key=network)]
    return "\n".join((MARKS[0], *HEADING, *rows, MARKS[1]))


def with_table(text: str) -> str:
    """README's text with the table as it should be."""
    pattern = f"{re.escape(MARKS[0])}.*{re.escape(MARKS[1])}"
    return re.sub(pattern, lambda _: table(), text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(with_table(README.read_text("utf-8")), "utf-8")
