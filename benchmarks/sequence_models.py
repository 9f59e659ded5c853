"""Sequence models: what they add to a backbone's time against what they add to its MACs.

    python -m benchmarks.sequence_models [--batch 8] [--rounds 5] [--only fmn10+tf-256 ...]

A row is a backbone with a sequence model of some width: clips/s (10 s each, front end and all),
against the same network as a plain fp32 module, and the sequence model's share of the time beside
its share of the multiply-accumulates, attention included. Weights are stand-ins.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.embed import clips
from benchmarks.measure import interleaved, machine, spread
from hear_pretrainedsed.complexity import count
from hear_pretrainedsed.model import SEDModel, build_model
from hear_pretrainedsed.registry import CHECKPOINTS, SEQUENCE_MODELS
from hear_pretrainedsed.rule_weights import fill

NAMES = [f"fmn10+{name}-{dim}" for name in SEQUENCE_MODELS for dim in (256, 1024)]
NAMES += sorted(
    {
        f"{c.backbone}+{c.sequence_model[0]}-{c.sequence_model[1]}"
        for c in CHECKPOINTS.values()
        if c.sequence_model and c.backbone != "fmn10"
    }
)


def model_of(name: str) -> SEDModel:
    """`backbone+sequence-dim` at stand-in weights, without a head."""
    backbone, _, text = name.partition("+")
    sequence, _, dim = text.partition("-")
    with torch.device("meta"):
        model = build_model(backbone, sequence_model=(sequence, int(dim)))
    return fill(model).requires_grad_(False)


def shares(name: str) -> float:
    """The sequence model's share of the multiply-accumulates."""
    backbone, _, text = name.partition("+")
    sequence, _, dim = text.partition("-")
    with torch.device("meta"):
        models = [build_model(backbone, sequence_model=(sequence, int(dim))), build_model(backbone)]
    whole, alone = map(count, models)
    added = whole.macs_with_attention - alone.macs_with_attention
    return added / whole.macs_with_attention


def row(name: str, batch: int, rounds: int) -> list[str]:
    """One model's line."""
    model, audio = model_of(name), clips(batch)
    frames = torch.randn(batch, 250, model.backbone.embed_dim)
    _, sequence = model.inference_parts()
    jobs = {
        "ours": lambda: model.frames(audio),
        "plain": lambda: model(audio),
        "sequence": lambda: [sequence(x) for x in frames.split(4 * sequence.n_together)],
    }
    with torch.inference_mode():
        times = interleaved(jobs, rounds)
    part = statistics.median(times["sequence"]) / statistics.median(times["ours"])
    gain = [a / b for a, b in zip(times["plain"], times["ours"], strict=True)]
    rates = [batch / t for t in times["ours"]]
    macs = shares(name)
    return [
        name,
        spread(rates, 1),
        spread(gain),
        f"{part:.2f}",
        f"{macs:.2f}",
        f"{part / macs:.2f}",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=NAMES)
    given = parser.parse_args()
    table = Table(title=f"{given.batch} clips of 10 s, median (range) of {given.rounds} rounds")
    for column in ("model", "clips/s", "against plain", "time share", "MAC share", "time / MACs"):
        table.add_column(column)
    console = Console(width=120)
    for name in given.only:
        cells = row(name, given.batch, given.rounds)
        console.print("  ".join(cells), style="dim")
        table.add_row(*cells)
    console.print(table)
    console.print(machine())


if __name__ == "__main__":
    main()
