"""What a weak run gives: best checkpoint, averaged weights and ensembles, as a table.

As PSLA reports it (Gong, Chung and Glass, TASLP 2021). The best checkpoint is that of the
validation clips, on both splits: the evaluation clips choose nothing.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from hear_pretrainedsed.events import whole_file
from pretraining.ensembling import RunningMean
from pretraining.weak_metrics import WeakMetrics, weak_metrics

VALIDATION, EVALUATION = "validation", "evaluation"

Scores = Mapping[str, np.ndarray]
"""Scores (clips, classes) by split."""


@dataclass(frozen=True)
class Row:
    """A line of the table: a system on a split."""

    system: str
    split: str
    n_models: int
    map: float
    auc: float
    d_prime: float


class WeakResults:
    """Takes in a run's checkpoints one by one; keeps the best one's metrics and their mean scores.

    targets: (clips, classes) by split; `validation` has to be one of them.
    """

    def __init__(self, targets: Scores) -> None:
        if VALIDATION not in targets:
            raise ValueError(f"targets of {sorted(targets)}; the best is chosen on {VALIDATION!r}")
        self.targets = targets
        self.best: str | None = None
        self.epochs: list[Row] = []  # of every checkpoint, and of the ensemble up to it
        self._best_rows: list[Row] = []
        self._means = {split: RunningMean() for split in targets}
        self._others: list[Row] = []

    def add_checkpoint(self, name: str, scores: Scores) -> None:
        """One more checkpoint of the run, in the order of its epochs."""
        self._check(name, scores)
        own = [self._row(name, split, 1, scores[split]) for split in self.targets]
        means = {split: self._means[split].add(scores[split]) for split in self.targets}
        n = self._means[VALIDATION].n
        so_far = [self._row(f"ensemble up to {name}", s, n, means[s]) for s in self.targets]
        self.epochs += [*own, *so_far]
        if not self._best_rows or _decides(own) > _decides(self._best_rows):
            self.best = name
            self._best_rows = own

    def add(self, system: str, scores: Scores, n_models: int = 1) -> None:
        """Another system: averaged weights, or an ensemble of `n_models` runs."""
        self._check(system, scores)
        rows = [self._row(system, split, n_models, scores[split]) for split in self.targets]
        self._others += rows

    def rows(self) -> list[Row]:
        """The table: best single checkpoint, the ensemble of all, then what was added."""
        best = [Row(f"best single ({self.best})", *_rest(row)) for row in self._best_rows]
        n = self._means[VALIDATION].n
        one_run = []
        if n:
            one_run = [
                self._row("ensemble of one run", split, n, self._means[split].mean)
                for split in self.targets
            ]
        return [*best, *one_run, *self._others]

    def _row(self, system: str, split: str, n_models: int, scores: np.ndarray) -> Row:
        found: WeakMetrics = weak_metrics(scores, self.targets[split])
        return Row(system, split, n_models, found.mean_ap, found.mean_auc, found.d_prime)

    def _check(self, system: str, scores: Scores) -> None:
        if scores.keys() != self.targets.keys():
            raise ValueError(
                f"{system} has scores for {sorted(scores)}; wanted {sorted(self.targets)}"
            )


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write a table, whole or not at all; numbers have 6 decimals, what is not known is empty."""
    out = io.StringIO()
    names = [field.name for field in fields(Row)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_text(getattr(row, name)) for name in names] for row in rows)
    with whole_file(path) as file:
        file.write(out.getvalue().encode("utf-8"))


def _text(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6f}"
    return str(value)


def _rest(row: Row) -> list:
    return [getattr(row, field.name) for field in fields(Row)[1:]]


def _decides(rows: list[Row]) -> float:
    value = next(row.map for row in rows if row.split == VALIDATION)
    return -math.inf if math.isnan(value) else value
