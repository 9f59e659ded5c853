"""`hear-pretrainedsed pseudo-labels`: an ensemble's logits for a corpus, for `pretrain` to read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from hear_pretrainedsed.api import load_model
from hear_pretrainedsed.cli_options import Device, device_of
from hear_pretrainedsed.progress import count_bar
from hear_pretrainedsed.registry import get_checkpoint
from pretraining.corpus import open_corpus
from pretraining.pseudo_labels import check_free, write_pseudo_labels

Checkpoints = Annotated[
    list[str], typer.Option(help="Members of the ensemble, as in `list`; imported ones too.")
]
CorpusFolder = Annotated[Path, typer.Option("--corpus", help="Folder, as `corpus` makes it.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The HDF5 file.")]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Clips at a time.")]


def pseudo_labels(
    checkpoints: Checkpoints,
    corpus: CorpusFolder,
    out: Out,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    batch_size: Batch = 8,
) -> None:
    """Write the mean of the checkpoints' logits for every clip; goes on after a kill."""
    check_free(out)
    opened = open_corpus(corpus)
    for name in checkpoints:
        get_checkpoint(name)
    where = device_of(device)
    models = [
        load_model(checkpoint=name, device=where, precision=precision, batch_size=batch_size)
        for name in checkpoints
    ]
    with count_bar("clips") as progress, torch.inference_mode():
        written = write_pseudo_labels(models, opened, out, batch_size=batch_size, progress=progress)
    n_broken = len(written.broken)
    typer.echo(f"{out}: logits of {len(opened) - n_broken} clips, {n_broken} broken")
