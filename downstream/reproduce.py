"""`hear-pretrainedsed reproduce`: a published number on AudioSet Strong, and ours beside it."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from downstream.metrics import Score
from downstream.strong_scores import FILTERED, StrongScores, evaluate_audioset_strong
from downstream.tasks import checks
from downstream.tasks.audioset_strong import AUDIOSET_STRONG, StrongSet, read_strong_set
from hear_pretrainedsed import __version__
from hear_pretrainedsed.cli_options import (
    BatchSize,
    Device,
    Name,
    Option,
    Precision,
    Weights,
    load,
    say,
)
from hear_pretrainedsed.events import whole_file
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.registry import CHECKPOINTS, get_checkpoint, unknown

Corpus = Annotated[Path, Option("--corpus", help="Folder of AudioSet Strong's evaluation set.")]
Filtered = Annotated[str | None, Option(help="logits (as published, the default) or scores.")]
OutFile = Annotated[Path | None, Option("--out", "-o", help="All of it as JSON: a file.")]

RELEASED = {"atst_f.strong": 46.1, "fmn10.strong+tf-256": 43.7}
"""PSDS1 of released files where their authors give another number than their paper's mean."""

PUBLISHED: dict[str, float] = {
    name: RELEASED.get(name, checkpoint.psds1)
    for name, checkpoint in CHECKPOINTS.items()
    if checkpoint.psds1 is not None
}
"""Presets: PSDS1 in per cent, macro over 407 classes, no variance penalty."""


@dataclass(frozen=True)
class Reproduction:
    """A published number and what was measured, in per cent; `clips` is how many, of how many."""

    checkpoint: str
    published: float
    measured: float
    difference: float
    clips: str


def reproduction(checkpoint: str, clips: StrongSet, found: StrongScores) -> Reproduction:
    """The comparison of what was found with the checkpoint's preset.

    Raises `ValueError` for a checkpoint without one.
    """
    published = published_psds1(checkpoint)
    measured = 100 * found.psds1.macro
    return Reproduction(
        checkpoint, published, measured, measured - published, clips.count(found.n_clips)
    )


def published_psds1(checkpoint: str) -> float:
    """The number of a preset; `ValueError` names the nearest."""
    get_checkpoint(checkpoint)
    if checkpoint not in PUBLISHED:
        raise ValueError(unknown("preset", checkpoint, PUBLISHED))
    return PUBLISHED[checkpoint]


def reproduce(
    name: Name,
    corpus: Corpus,
    weights: Weights = None,
    filtered: Filtered = None,
    out: OutFile = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    batch_size: BatchSize = None,
) -> None:
    """Print a checkpoint's published PSDS1 on AudioSet Strong, the measured one, the difference."""
    published_psds1(name)
    if filtered is not None and filtered not in FILTERED:
        raise ValueError(unknown("filtered", filtered, FILTERED))
    clips = read_strong_set(corpus)
    _tell_of(clips)
    model = load(name, weights, device, None, precision=precision, batch_size=batch_size)
    found = _with_bar(model, clips, filtered)
    for reason in found.failed.values():
        say(reason)
    row = reproduction(name, clips, found)
    if out is not None:
        _write(out, row, model, clips, found)
    Console().print(table(row, found))


def table(row: Reproduction, found: StrongScores) -> Table:
    """The comparison, and the numbers beside it, in per cent."""
    shown = Table(title=f"{row.checkpoint} on AudioSet Strong, {row.clips} clips")
    for column in ("metric", "published", "measured", "difference"):
        shown.add_column(column, justify="left" if column == "metric" else "right")
    shown.add_row(
        "PSDS1, mean over classes",
        f"{row.published:.2f}",
        f"{row.measured:.2f}",
        f"{row.difference:+.2f}",
    )
    shown.add_row("PSDS1, alpha_st 1", "", f"{100 * found.psds1.micro:.2f}", "")
    auroc = f"{100 * found.segment_auroc.macro:.2f}"
    shown.add_row("segment AUROC, 1 s, FPR up to 0.1", "", auroc, "")
    return shown


def _tell_of(clips: StrongSet) -> None:
    for what, names in (("have no recording", clips.missing), ("are not listed", clips.unlisted)):
        if names:
            say(f"{len(names)} {what} and are left out: {checks.first_few(names)}")


def _with_bar(model: SEDModel, clips: StrongSet, filtered: str | None) -> StrongScores:
    bar = Progress(
        TextColumn("{task.completed} of {task.total} clips"),
        BarColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    with bar:
        number = bar.add_task("", total=len(clips.clips))
        return evaluate_audioset_strong(
            model,
            clips,
            filtered=filtered,
            progress=lambda done, _: bar.update(number, completed=done),
        )


def _write(
    path: Path, row: Reproduction, model: SEDModel, clips: StrongSet, found: StrongScores
) -> None:
    facts = {
        **asdict(row),
        "task": AUDIOSET_STRONG.name,
        "task_version": AUDIOSET_STRONG.version,
        "protocol": "paper" if found.filtered == "logits" else "paper, on scores",
        "sha256": model.provenance.get("sha256"),
        "version": __version__,
        "precision": model.options.precision,
        "n_clips": found.n_clips,
        "missing": clips.missing,
        "failed": found.failed,
        "psds1": _facts_of(found.psds1),
        "segment_auroc": _facts_of(found.segment_auroc),
    }
    with whole_file(path) as file:
        file.write(f"{json.dumps(facts, indent=1)}\n".encode())


def _facts_of(score: Score) -> dict[str, object]:
    """A score for JSON, which has no NaN."""
    values = {"micro": score.micro, "macro": score.macro, **score.per_class}
    known = {name: None if math.isnan(value) else value for name, value in values.items()}
    return {"micro": known.pop("micro"), "macro": known.pop("macro"), "per_class": known}
