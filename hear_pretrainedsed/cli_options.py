"""Options that several commands have, and what is made of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from hear_pretrainedsed import events as ev
from hear_pretrainedsed.api import load_model
from hear_pretrainedsed.heads import NoHeadError
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.options import Options
from hear_pretrainedsed.registry import Checkpoint, unknown

Option, Argument = typer.Option, typer.Argument
Name = Annotated[str, Argument(help="Name, as in `list`.")]
Files = Annotated[list[Path], Argument(help="Audio files, and folders to search for them.")]
CheckpointName = Annotated[str, Option("--checkpoint", "-c", help="Name, as in `list`.")]
Out = Annotated[Path, Option("--out", "-o", help="Folder for the results.")]
OutOrStdout = Annotated[Path | None, Option("--out", "-o", help="Folder; else tsv to stdout.")]
Weights = Annotated[Path | None, Option(help="A file to use instead of the published one.")]
Layer = Annotated[str | None, Option(help="A block (-1: the last), several (2,5,8), or all.")]
Scene = Annotated[bool, Option("--scene", help="One embedding a file: the mean over time.")]
Windowing = Annotated[
    str | None,
    Option(help="reference (every 10 s) or overlap (every 5 s); none: the model's own, if any."),
]
Precision = Annotated[str, Option(help="fp32 or bf16.")]
Device = Annotated[str, Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1, ...")]
BatchSize = Annotated[
    int | None, Option(help="10 s windows at a time; none: auto. Halved if memory runs out.")
]
Threshold = Annotated[
    float | None, Option(help="Scores above it are events; none: the model's own, else 0.5.")
]
MedianS = Annotated[
    float | None,
    Option(help="Median filter, an odd number of 40 ms frames; none: the model's own, if any."),
]
MinDurationS = Annotated[float | None, Option(help="Drop shorter events.")]
Top = Annotated[int | None, Option(min=1, help="Only the classes that score highest in a file.")]
Vocabulary = Annotated[Path | None, Option(help="Class names, where they are not known here.")]
Labels = Annotated[list[str] | None, Option(help="Only this class; may be repeated.")]
SaveScores = Annotated[bool, Option("--save-scores", help="Also FILE.scores.npz.")]
Picture = Annotated[bool, Option("--picture", help="Also FILE.events.png.")]

_NO_HEAD = (
    "{} has no trained head, so it detects nothing: train one with `probe` (backbone frozen) or "
    "`finetune`, or take a strong checkpoint"
)


def check_fetched(checkpoint: Checkpoint, labels: list[str] | None) -> None:
    """`check_head` for a published file, before it is fetched."""
    if checkpoint.labels is None and checkpoint.n_classes is None:
        raise NoHeadError(_NO_HEAD.format(checkpoint.name))
    if checkpoint.classes:
        ev.label_indices(checkpoint.classes, labels or [])


def check_head(model: SEDModel, name: str, labels: list[str] | None) -> None:
    """Refuse a model that cannot detect, and classes that it has not."""
    if model.head is None:
        raise NoHeadError(_NO_HEAD.format(name))
    if model.labels is None:
        raise ValueError(f"the class names of {name} are not known here: give --vocabulary FILE")
    ev.label_indices(model.labels, labels or [])


def median_frames_of(median_s: float | None) -> int | None:
    """Seconds as the nearest odd number of frames: an even window would shift events."""
    if median_s is None:
        return None
    if not 0 < median_s <= 3600:
        raise ValueError(f"--median-s is a time in seconds above 0 and up to 3600, got {median_s}")
    return 2 * round((median_s / ev.GRID.hop_s - 1) / 2) + 1


def check_decoding(
    threshold: float | None, median_frames: int | None, min_duration_s: float | None
) -> None:
    """Refuse wrong values before anything is loaded."""
    if threshold is not None and (threshold < 0 or threshold > 1):
        raise ValueError(f"--threshold is a score from 0 to 1, got {threshold}")
    ev.scores_to_events(
        np.zeros((0, 0), np.float32),
        [],
        threshold=0 if threshold is None else threshold,
        median_frames=median_frames,
        min_duration_s=min_duration_s,
    )


def layers_of(text: str | None) -> int | list[int] | str | None:
    """A layer as on the command line: "all", "-1", "2,5,8"."""
    if text is None or text == "all":
        return text
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        allowed = "a whole number, several separated by commas, or all"
        raise ValueError(f"--layer is {text!r}; allowed: {allowed}") from None
    return numbers if len(numbers) > 1 else numbers[0]


def load(
    checkpoint: str, weights: Path | None, device: str, out: Path | None, **options: object
) -> SEDModel:
    """The model on its device; before that, the folder for the results. None: not given."""
    options = {name: value for name, value in options.items() if value is not None}
    Options(**options)  # refuse wrong values before anything is made or fetched
    place = device_of(device)
    if out is not None:
        check_folder(out)
        out.mkdir(parents=True, exist_ok=True)
    return load_model(weights or "", checkpoint=checkpoint, device=place, **options)


def check_folder(out: Path) -> None:
    """Refuse a file as the folder for results, or as one around it."""
    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"-o takes a folder, and {there} is a file")


def check_batch_size(batch_size: int | None) -> None:
    """Refuse a batch of none."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"--batch-size is {batch_size}; it is at least 1")


def device_of(name: str) -> torch.device:
    """A device by name, if this machine has it; "auto": a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(unknown("device", name, ("auto", "cpu", "cuda", "cuda:1", "...")))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"no device {name!r} here: {torch.cuda.device_count()} GPUs are visible")
    return device


def say(line: str) -> None:
    """One line on stderr."""
    print(f"hear-pretrainedsed: {' '.join(line.split())}", file=sys.stderr, flush=True)
