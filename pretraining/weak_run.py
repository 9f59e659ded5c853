"""After a weak run: its checkpoints averaged and put together, as PSLA reports them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from hear_pretrainedsed import weight_files
from hear_pretrainedsed.model import SEDModel
from pretraining.corpus import Corpus
from pretraining.validation import clip_table
from pretraining.weak_results import WeakResults, write_csv
from pretraining.weight_averaging import average_files

EPOCHS, AVERAGED = "epochs", "averaged.safetensors"
RESULTS, BY_EPOCH = "results.csv", "epochs.csv"


def averaged_of(files: Sequence[Path], from_step: int | None) -> list[Path]:
    """Those of the kept files that are averaged: from a step on, or all."""
    first = from_step or 0
    return [path for path in files if int(path.stem.removeprefix("step-")) >= first]


def summarise(
    model: SEDModel,
    out: Path,
    splits: Mapping[str, Corpus],
    *,
    average_from_step: int | None = None,
    first_twice: bool,
    device: torch.device,
) -> None:
    """Write averaged weights, and mAP, AUC and d' of best checkpoint, average and ensemble.

    Where there are no splits or no files in `out / EPOCHS`, nothing is written; what an earlier
    run has left is taken away in any case.

    Args:
        model: the network of these files; left as it is.
        splits: corpora by `weak_results`' names, validation among them.
        average_from_step: of the files that are averaged; the ensemble is of all. None: all are.
        first_twice: see `weight_averaging`.
        device: where clips are scored.
    """
    for name in (AVERAGED, RESULTS, BY_EPOCH):
        (out / name).unlink(missing_ok=True)
    files = sorted((out / EPOCHS).glob("step-*.safetensors"))
    if not files or not splits:
        return
    model = copy.deepcopy(model).to(device)
    targets: dict[str, np.ndarray] = {}

    def scores(path: Path) -> dict[str, np.ndarray]:
        model.load_state_dict(weight_files.read(path).tensors)
        found = {}
        for split, corpus in splits.items():
            found[split], targets[split] = clip_table(model, corpus)
        return found

    of_files = {path.stem: scores(path) for path in files}
    results = WeakResults(targets)
    for name, one in of_files.items():
        results.add_checkpoint(name, one)
    averaged = averaged_of(files, average_from_step)
    average_files(averaged, out / AVERAGED, first_twice=first_twice)
    results.add("averaged weights", scores(out / AVERAGED))
    write_csv(out / RESULTS, results.rows())
    write_csv(out / BY_EPOCH, results.epochs)
