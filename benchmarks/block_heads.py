"""Protocol `best`: a training step of its heads against the same formulas as they are read.

    python -m benchmarks.block_heads [--only atst_f.strong ...] [--classes 11 88] [--rounds 5]

A row is a checkpoint's blocks, a number of classes and of heads (learning rates that are searched
at once): seconds of a step on 32 pieces of 10 s from float16, standardisation, gradients and all,
and the share of the machine's peak that is left for matrix products with the prototypes. The rival
standardises a batch as a whole, sums blocks by `matmul`, and normalises frames by autograd.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.measure import interleaved, machine, peak_gflops, spread, table
from downstream import probe
from downstream.block_heads import BlockHeads, Layout, Statistics
from downstream.protocols.best import RECIPE, specs

PIECES = RECIPE.batch_pieces
NAMES = ("atst_f.strong", "fmn04.strong", "fmn10.strong", "psla.weak-audioset")


def frames_of(dim: int, n_classes: int) -> probe.LabelledFrames:
    """Random frames (float16) and targets of a batch of clips of 10 s."""
    rng = np.random.default_rng(0)
    frames = [
        [rng.standard_normal((probe.PIECE_FRAMES, dim), np.float32).astype(np.float16)]
        for _ in range(PIECES)
    ]
    targets = [(rng.random((probe.PIECE_FRAMES, n_classes)) < 0.05) for _ in range(PIECES)]
    return probe.LabelledFrames(frames, [one.astype(np.float32) for one in targets])


def plain(heads: BlockHeads, frames: Tensor) -> Tensor:
    """Logits (rows, heads, classes) of frames that are not yet standardised."""
    assert heads.standard is not None
    x, shares = (frames - heads.standard.mean) * heads.standard.scale, heads.convex()
    parts, block, column = [], 0, 0
    for n, width in heads.layout.groups:
        stacked = x[:, column : column + n * width].unflatten(1, (n, width))
        parts.append(shares[:, block : block + n] @ stacked)
        block, column = block + n, column + n * width
    logits = []
    for i, sums in enumerate(torch.cat(parts, dim=2).unbind(1)):
        if heads.n_prototypes is None:
            logits.append(sums @ heads.weights[i].T + heads.biases[i])
            continue
        units = nn.functional.normalize(heads.weights[i], dim=1)
        cosines = (sums @ units.T) / sums.norm(dim=1, keepdim=True).clamp(min=1e-5)
        sharp = cosines.unflatten(1, (-1, heads.n_prototypes)) * heads.sharpness[i].exp()[:, None]
        logits.append(sharp.logsumexp(dim=2) - math.log(heads.n_prototypes) + heads.biases[i])
    return torch.stack(logits, dim=1)


def step(
    heads: BlockHeads,
    data: probe.LabelledFrames,
    buffer: tuple[Tensor, Tensor],
    standard: probe.Standard | None,
    logits_of: Callable[[Tensor], Tensor],
) -> None:
    """Frames from float16 to gradients."""
    x, y = data.gather([(i, 0) for i in range(PIECES)], buffer, standard)
    heads.zero_grad()
    probe.bce(logits_of(x), y).sum().backward()


def row(name: str, n_classes: int, n_heads: int, rounds: int, peak: float) -> list[str]:
    """One line of the table."""
    _, layout = specs(name, RECIPE, "fp32")
    data, generator = frames_of(layout.in_dim, n_classes), torch.Generator().manual_seed(0)
    statistics_ = Statistics.of(data, generator)
    heads = BlockHeads(layout, statistics_, n_heads, RECIPE.n_prototypes, generator)
    buffer = data.buffer(PIECES)
    times = interleaved(
        {
            "ours": lambda: step(heads, data, buffer, heads.standard, heads),
            "plain": lambda: step(heads, data, buffer, None, lambda x: plain(heads, x)),
        },
        rounds,
    )
    ratios = [b / a for a, b in zip(times["ours"], times["plain"], strict=True)]
    ours = statistics.median(times["ours"])
    return [
        f"{name} ({layout.in_dim} columns)",
        f"{n_classes}",
        f"{n_heads}",
        spread(times["ours"]),
        spread(times["plain"]),
        f"{spread(ratios)}x",
        f"{products(layout, n_classes, n_heads) / ours / peak:.2f}",
    ]


def products(layout: Layout, n_classes: int, n_heads: int) -> float:
    """GFLOP of the products with prototypes, forth and back."""
    n_rows, n_prototypes = PIECES * probe.PIECE_FRAMES, RECIPE.n_prototypes or 1
    return 3 * 2 * n_rows * layout.out_dim * n_classes * n_prototypes * n_heads / 1e9


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=NAMES, metavar="CHECKPOINT")
    parser.add_argument("--classes", nargs="+", type=int, default=(11, 88))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    console, peak = Console(), peak_gflops(torch.float32)
    columns = ("blocks", "classes", "heads", "s a step", "plain", "plain / ours", "share of peak")
    rows = (
        row(name, n_classes, n_heads, options.rounds, peak)
        for name in options.only
        for n_classes in options.classes
        for n_heads in (len(RECIPE.lrs), 1)
    )
    console.print(f"{machine()}, peak {peak:.0f} GFLOP/s")
    console.print(table("Heads of protocol best, 32 pieces of 10 s", columns, rows))


if __name__ == "__main__":
    main()
