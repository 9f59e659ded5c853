"""`hear-pretrainedsed ensemble-results`: weak runs compared and put together (PSLA).

`pretrain` writes such a table of its own run; this one is of several: with other seeds, with other
settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from hear_pretrainedsed import weight_files
from hear_pretrainedsed.cli_options import Argument, BatchSize, Device, Option, device_of
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.progress import count_bar
from pretraining.corpus import Corpus, open_corpus
from pretraining.ensembling import Member, ensemble, members
from pretraining.run_folders import RunFolder, names_of_settings, read_runs
from pretraining.validation import clip_table
from pretraining.weak_results import EVALUATION, VALIDATION, Row, Scores, WeakResults, write_csv

WAYS = ("other seeds", "other settings")  # those of more than one run

Runs = Annotated[list[Path], Argument(help="Folders that `pretrain` made, of weak recipes.")]
Valid = Annotated[Path, Option("--valid", help="Corpus that the best checkpoint is chosen on.")]
Evaluation = Annotated[Path | None, Option("--eval", help="Corpus that chooses nothing.")]
Out = Annotated[Path, Option("--out", "-o", help="The table, CSV.")]

Tell = Callable[[], None]


def ensemble_results(
    runs: Runs,
    valid: Valid,
    out: Out,
    evaluation: Evaluation = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
) -> None:
    """Best checkpoint, averaged weights and ensembles of weak runs: mAP, AUC and d' as CSV."""
    if not out.parent.is_dir():
        raise ValueError(f"cannot write {out}: there is no folder {out.parent}")
    found = read_runs(runs)
    splits = {VALIDATION: open_corpus(valid)}
    if evaluation is not None:
        splits[EVALUATION] = open_corpus(evaluation)
    n_files = sum(len(run.epochs) + 1 for run in found)
    done = count(1)
    with count_bar("files of weights") as bar:
        place = device_of(device)
        rows = table(found, splits, place, batch_size, lambda: bar(next(done), n_files))
    write_csv(out, rows)
    for row in rows:
        values = f"mAP {row.map:.4f}  AUC {row.auc:.4f}  d' {row.d_prime:.3f}"
        print(f"{row.split:<11} {values}  {row.system}")
    print(out)


def table(
    runs: list[RunFolder],
    splits: Mapping[str, Corpus],
    device: torch.device,
    batch_size: int | None = None,
    tell: Tell = lambda: None,
) -> list[Row]:
    """The rows of each run, then of the ensembles of several.

    A run stands in these with its averaged weights, or, where none were kept, its last ones.
    """
    names = names_of_settings(runs)
    targets: dict[str, np.ndarray] = {}
    results: dict[str, Scores] = {}
    rows: list[Row] = []
    for run in runs:
        scorer = _Scorer(run.network(batch_size).to(device), splits, targets, tell)
        own, results[run.name] = _of_run(run, scorer)
        rows += [replace(row, system=f"{run.name}: {row.system}") for row in own]
    everyone = [Member(run.name, names[run.settings], run.seed) for run in runs]
    several = WeakResults(targets)
    for way in WAYS:
        for group, taken in members(way, everyone).items():
            scores = {
                split: ensemble(results[member.name][split] for member in taken) for split in splits
            }
            several.add(f"ensemble of {way} ({group})", scores, len(taken))
    return [*rows, *several.rows()]


def _of_run(run: RunFolder, scores: _Scorer) -> tuple[list[Row], Scores]:
    """Rows of one run, and the scores that it has in an ensemble of runs."""
    path = run.averaged or run.last
    result = scores(path)
    found = WeakResults(scores.targets)
    for epoch in run.epochs:
        found.add_checkpoint(epoch.stem, scores(epoch))
    found.add("averaged weights" if run.averaged else "last weights", result)
    return found.rows(), result


class _Scorer:
    """Clip scores of the files of a run by split; `targets` are filled in."""

    def __init__(
        self,
        model: SEDModel,
        splits: Mapping[str, Corpus],
        targets: dict[str, np.ndarray],
        tell: Tell,
    ) -> None:
        self.model, self.splits, self.targets, self.tell = model, splits, targets, tell

    def __call__(self, path: Path) -> Scores:
        try:
            self.model.load_state_dict(weight_files.read(path).tensors)
        except RuntimeError:
            raise ValueError(f"{path} does not hold the network that its card tells") from None
        found = {}
        for split, corpus in self.splits.items():
            found[split], self.targets[split] = clip_table(self.model, corpus)
        self.tell()
        return found
