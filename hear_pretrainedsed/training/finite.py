"""A loss or a gradient that is not finite stops a run before the weights take it in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hear_pretrainedsed.events import whole_file
from hear_pretrainedsed.training.material import Material
from hear_pretrainedsed.training.stream import Stream

BAD_BATCH = "bad_batch.txt"
_N_NAMED = 5


def check_finite(
    streams: Sequence[Stream],
    step: int,
    losses: Sequence[Tensor],
    norm: Tensor,
    folder: Path | None,
) -> None:
    """Stop at a loss or gradient that is not finite.

    `losses` are of each stream's whole batch (batch,), `norm` is the gradient's. All names of the
    bad rows, or of the whole batch where no row is bad by itself, are written to `BAD_BATCH` in
    `folder` (None: another process does it).

    Raises `ValueError` that names the first of them.
    """
    if norm.isfinite() and all(rows.isfinite().all() for rows in losses):
        return
    bad: list[tuple[Material, Any]] = []
    everything: list[tuple[Material, Any]] = []
    values: list[float] = []
    for stream, rows in zip(streams, losses, strict=True):
        items = [(stream.material, item) for item in stream.material.step(step)]
        numbers = (~rows.isfinite()).nonzero().flatten().tolist()
        bad += [items[number] for number in numbers]
        values += [rows[number].item() for number in numbers]
        everything += items
    what = f"the loss is {values[0]}" if values else "the gradient is not finite"
    named = [material.name(item) for material, item in bad or everything]
    if folder is not None:
        with whole_file(folder / BAD_BATCH) as file:
            file.write("".join(f"{name}\n" for name in named).encode())
    more = f", ... (all in {BAD_BATCH})" if len(named) > _N_NAMED else ""
    raise ValueError(
        f"step {step + 1}: {what} for {len(named)} of {len(everything)} pieces: "
        f"{', '.join(named[:_N_NAMED])}{more}; what was saved before is kept. Listen to them, or "
        "take a lower lr, in another folder"
    )
