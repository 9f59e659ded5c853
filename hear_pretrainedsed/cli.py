"""The command `hear-pretrainedsed`: list, info, fetch, embed, detect.

Exit codes: 0; 1 when a file could not be processed or fetched (the others are done); 2 for a
mistake in the call; 130 after Ctrl-C. Errors are one line each on stderr. Output files appear whole
or not at all.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from hear_pretrainedsed import events as ev
from hear_pretrainedsed import registry
from hear_pretrainedsed.api import load_model
from hear_pretrainedsed.complexity import complexity
from hear_pretrainedsed.fetch import FetchError, fetch, find
from hear_pretrainedsed.heads import NoHeadError
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.options import Options
from hear_pretrainedsed.recordings import Recording, Run, find_recordings
from hear_pretrainedsed.registry import Checkpoint, get_checkpoint, unknown

app = typer.Typer(
    help="Sound-event-detection models: embeddings and events from any recording.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
UsageError = typer.BadParameter.__bases__[0]  # of the click that this typer brings or uses

Option, Argument = typer.Option, typer.Argument
Name = Annotated[str, Argument(help="Name, as in `list`.")]
Files = Annotated[list[Path], Argument(help="Audio files, and folders to search for them.")]
CheckpointName = Annotated[str, Option("--checkpoint", "-c", help="Name, as in `list`.")]
Out = Annotated[Path, Option("--out", "-o", help="Folder for the results.")]
OutOrStdout = Annotated[Path | None, Option("--out", "-o", help="Folder; else tsv to stdout.")]
Weights = Annotated[Path | None, Option(help="A file to use instead of the published one.")]
Layer = Annotated[str | None, Option(help="A block (-1: the last), several (2,5,8), or all.")]
Scene = Annotated[bool, Option("--scene", help="One embedding a file: the mean over time.")]
Windowing = Annotated[str, Option(help="reference (every 10 s) or overlap (every 5 s).")]
Precision = Annotated[str, Option(help="fp32 or bf16.")]
Device = Annotated[str, Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1, ...")]
BatchSize = Annotated[
    int | None, Option(help="10 s windows at a time; none: auto. Halved if memory runs out.")
]
Threshold = Annotated[float, Option(help="Scores above it are events.")]
MedianS = Annotated[float | None, Option(help="Median filter; an odd number of 40 ms frames.")]
MinDurationS = Annotated[float | None, Option(help="Drop shorter events.")]
Top = Annotated[int | None, Option(min=1, help="Only the classes that score highest in a file.")]
Vocabulary = Annotated[Path | None, Option(help="Class names, where they are not known here.")]
Labels = Annotated[list[str] | None, Option(help="Only this class; may be repeated.")]
SaveScores = Annotated[bool, Option("--save-scores", help="Also FILE.scores.npz.")]
Picture = Annotated[bool, Option("--picture", help="Also FILE.events.png.")]


_INTERRUPTED = 130  # 128 + SIGINT, as shells count
_NO_HEAD = (
    "{} has no trained head, so it detects nothing: train one with `probe` (backbone frozen) or "
    "`finetune`, or take a strong checkpoint"
)


class Format(StrEnum):
    """How `detect` writes events."""

    tsv = "tsv"
    json = "json"
    audacity = "audacity"


Formats = Annotated[list[Format] | None, Option("--format", help="May be repeated; none: tsv.")]


@app.command("list")
def list_() -> None:
    """Show all checkpoints; piped: tab-separated, without heading."""
    rows = []
    for checkpoint in registry.CHECKPOINTS.values():
        psds1 = "" if checkpoint.psds1 is None else f"{checkpoint.psds1}"
        cached = "yes" if find(checkpoint.file) else "no"
        size = f"{complexity(checkpoint).parameters}"
        rows.append((checkpoint.name, checkpoint.stage, size, psds1, checkpoint.licence, cached))
    if not sys.stdout.isatty():
        for row in rows:
            print(*row, sep="\t")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "stage", "parameters", "PSDS1", "licence", "in cache", box=None)
    for name, stage, size, *rest in rows:
        table.add_row(name, stage, f"{int(size) / 1e6:.1f} M", *rest)
    Console().print(table)


@app.command()
def info(
    name: Name,
    bibtex: Annotated[bool, Option("--bibtex", help="Only what to cite, as BibTeX.")] = False,
) -> None:
    """Show what is known about a checkpoint, or how to cite it."""
    checkpoint = get_checkpoint(name)
    if bibtex:
        print(registry.bibtex(name))
        return
    facts = {
        "name": checkpoint.name,
        "stage": checkpoint.stage,
        "parameters": f"{complexity(checkpoint).parameters:,}",
        "classes": _classes(checkpoint),
        "PSDS1": checkpoint.psds1,
        "licence": checkpoint.licence,
        "HEAR module": f"hear_pretrainedsed.{checkpoint.module}",
        "file": checkpoint.file,
        "address": checkpoint.url,
        "sha256": checkpoint.sha256 or "not known; recorded at the first load",
        "in cache": find(checkpoint.file) or "no",
        "note": checkpoint.note,
    }
    lines = (f"{key + ':':<13}{value}" for key, value in facts.items() if value not in (None, ""))
    print(*lines, sep="\n")


@app.command("fetch")
def fetch_(names: Annotated[list[str], Argument(help="Names, as in `list`.")]) -> None:
    """Download checkpoints into the cache folder; print where they are."""
    n_failed = 0
    for checkpoint in [get_checkpoint(name) for name in names]:
        try:
            print(fetch(checkpoint.file, checkpoint.url, checkpoint.sha256), flush=True)
        except FetchError as error:
            n_failed += 1
            _say(f"{error}")
    raise typer.Exit(1 if n_failed else 0)


@app.command()
def embed(
    files: Files,
    checkpoint: CheckpointName,
    out: Out,
    weights: Weights = None,
    layer: Layer = None,
    scene: Scene = False,
    windowing: Windowing = "reference",
    precision: Precision = "fp32",
    device: Device = "auto",
    batch_size: BatchSize = None,
) -> None:
    """Write FILE.embeddings.npy, (frames, dim) with a frame each 40 ms, and facts as .json."""
    recordings = find_recordings(files)
    get_checkpoint(checkpoint)
    chosen = dict(windowing=windowing, precision=precision, batch_size=batch_size)
    model = _load(checkpoint, weights, device, out, layer=_layers(layer), **chosen)
    run = Run(model, recordings, shows_bar=True)

    def work(recording: Recording, audio: Tensor) -> None:
        found = run.compute(model.embeddings, recording, audio)
        found = found.mean(axis=0) if scene else found
        facts = {"shape": found.shape, "axes": ["dim"] if scene else ["frames", "dim"]}
        facts |= {} if scene else {"first_ms": 500 * ev.GRID.hop_s, "hop_ms": 1000 * ev.GRID.hop_s}
        stem = recording.outputs(out)
        with ev.whole_file(f"{stem}.embeddings.npy") as file:
            np.save(file, found)
        with ev.whole_file(f"{stem}.embeddings.json") as file:
            content = run.facts(recording, audio) | {"layer": layer} | facts
            file.write(json.dumps(content, indent=1).encode() + b"\n")

    raise typer.Exit(1 if run.for_each(work) else 0)


@app.command()
def detect(
    files: Files,
    checkpoint: CheckpointName,
    out: OutOrStdout = None,
    weights: Weights = None,
    threshold: Threshold = 0.5,
    median_s: MedianS = None,
    min_duration_s: MinDurationS = None,
    top: Top = None,
    labels: Labels = None,
    vocabulary: Vocabulary = None,
    formats: Formats = None,
    save_scores: SaveScores = False,
    picture: Picture = False,
    windowing: Windowing = "reference",
    precision: Precision = "fp32",
    device: Device = "auto",
    batch_size: BatchSize = None,
) -> None:
    """Write events: FILE.events.tsv, FILE.events.json, FILE.labels.txt (for Audacity)."""
    recordings = find_recordings(files)
    known = get_checkpoint(checkpoint)
    if weights is None:
        _check_fetched(known, labels)
    frames = _median_frames(median_s)
    decoding = dict(threshold=threshold, median_frames=frames, min_duration_s=min_duration_s)
    ev.scores_to_events(np.zeros((0, 0), np.float32), [], **decoding)  # refuse wrong values now
    kinds = set(formats or [Format.tsv])
    if out is None and (kinds != {Format.tsv} or save_scores or picture):
        raise ValueError("give a folder, -o DIR: without one, events are printed, as tsv")
    chosen = dict(windowing=windowing, precision=precision, batch_size=batch_size)
    model = _load(checkpoint, weights, device, out, vocabulary=vocabulary, **chosen)
    _check_head(model, checkpoint, labels)
    run = Run(model, recordings, shows_bar=out is not None or not sys.stdout.isatty())
    work = _Detector(run, labels, top, decoding, out, kinds, save_scores, picture, {})
    n_failed = run.for_each(work)
    if out is not None and Format.tsv in kinds and len(recordings) > 1:
        ev.write_tsv(out / "events.tsv", work.found)
    raise typer.Exit(1 if n_failed else 0)


@dataclass(frozen=True)
class _Detector:
    """What `detect` does with each recording; `found` collects the events of all."""

    run: Run
    labels: list[str] | None
    top: int | None
    decoding: dict[str, float | int | None]
    out: Path | None
    kinds: set[Format]
    save_scores: bool
    picture: bool
    found: dict[str, list[ev.Event]]

    def __call__(self, recording: Recording, audio: Tensor) -> None:
        """Find and write one recording's events."""
        model, name = self.run.model, recording.name
        scores, names = self._choose(self.run.compute(model.scores, recording, audio))
        duration_s = len(audio) / ev.GRID.sample_rate
        found = ev.scores_to_events(scores, names, duration_s=duration_s, **self.decoding)
        self.found[name] = found
        if self.out is None:
            sys.stdout.write(ev.tsv({name: found}, heading=len(self.found) == 1))
            sys.stdout.flush()
            return
        stem = recording.outputs(self.out)
        if Format.tsv in self.kinds:
            ev.write_tsv(f"{stem}.events.tsv", {name: found})
        if Format.json in self.kinds:
            facts = self.run.facts(recording, audio) | self.decoding
            ev.write_json(f"{stem}.events.json", found, **facts)
        if Format.audacity in self.kinds:
            ev.write_audacity(f"{stem}.labels.txt", found)
        if self.save_scores:
            ev.write_scores(f"{stem}.scores.npz", scores, names)
        if self.picture:
            from hear_pretrainedsed.picture import draw

            rate, path = ev.GRID.sample_rate, f"{stem}.events.png"
            draw(audio, rate, found, path, scores, names, title=name)

    def _choose(self, scores: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """The wanted classes' scores, and their names."""
        all_names = self.run.model.labels
        names = list(dict.fromkeys(self.labels or all_names))
        scores = scores[:, ev.label_indices(all_names, names)]
        if self.top is None:
            return scores, names
        best = np.sort(np.argsort(-scores.max(axis=0), kind="stable")[: self.top])
        return scores[:, best], [names[i] for i in best]


def _classes(checkpoint: Checkpoint) -> str:
    if checkpoint.labels:
        return f"{len(registry.read_labels(checkpoint.labels))} ({checkpoint.labels})"
    n = checkpoint.n_classes
    return f"{n}, their names not known here" if n else "none: it has no trained head"


def _check_fetched(checkpoint: Checkpoint, labels: list[str] | None) -> None:
    """`_check_head` for a published file, before it is fetched."""
    if checkpoint.labels is None and checkpoint.n_classes is None:
        raise NoHeadError(_NO_HEAD.format(checkpoint.name))
    if checkpoint.labels:
        ev.label_indices(registry.read_labels(checkpoint.labels), labels or [])


def _check_head(model: SEDModel, name: str, labels: list[str] | None) -> None:
    """Refuse a model that cannot detect, and classes that it has not."""
    if model.head is None:
        raise NoHeadError(_NO_HEAD.format(name))
    if model.labels is None:
        raise ValueError(f"the class names of {name} are not known here: give --vocabulary FILE")
    ev.label_indices(model.labels, labels or [])


def _median_frames(median_s: float | None) -> int | None:
    """Seconds as the nearest odd number of frames: an even window would shift events."""
    if median_s is None:
        return None
    if not 0 < median_s < float("inf"):
        raise ValueError(f"--median-s is a time in seconds above 0, got {median_s}")
    return 2 * round((median_s / ev.GRID.hop_s - 1) / 2) + 1


def _layers(text: str | None) -> int | list[int] | str | None:
    """A layer as on the command line: "all", "-1", "2,5,8"."""
    if text is None or text == "all":
        return text
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        allowed = "a whole number, several separated by commas, or all"
        raise ValueError(f"--layer is {text!r}; allowed: {allowed}") from None
    return numbers if len(numbers) > 1 else numbers[0]


def _load(
    checkpoint: str, weights: Path | None, device: str, out: Path | None, **options: object
) -> SEDModel:
    """The model on its device; before that, the folder for the results."""
    Options(**options)  # refuse wrong values before anything is made or fetched
    place = _device(device)
    if out is not None:
        if out.exists() and not out.is_dir():
            raise ValueError(f"-o takes a folder, and {out} is a file")
        out.mkdir(parents=True, exist_ok=True)
    return load_model(weights or "", checkpoint=checkpoint, device=place, **options)


def _device(name: str) -> torch.device:
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


def _say(line: str) -> None:
    """One line on stderr."""
    print(f"hear-pretrainedsed: {' '.join(line.split())}", file=sys.stderr, flush=True)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    _say(f"warning: {message}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with `arguments` (None: the process's) and exit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names need not be valid UTF-8
            stream.reconfigure(errors="surrogateescape")
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        sys.exit(_exit_code(arguments))


def _exit_code(arguments: Sequence[str] | None) -> int:
    try:
        code = app(arguments, prog_name="hear-pretrainedsed", standalone_mode=False)
        sys.stdout.flush()
        if code == _INTERRUPTED:  # typer takes Ctrl-C and says nothing
            _say("interrupted")
        return code or 0
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        return _INTERRUPTED
    except UsageError as error:
        if error.format_message():  # there is none when the help was shown instead
            _say(error.format_message())
        return 2
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except FetchError as error:
        _say(f"{error}")
        return 1
    except OSError as error:
        _say(f"{error.filename}: {error.strerror}" if error.filename else f"{error}")
        return 1
    except ValueError as error:
        _say(f"{error}")
        return 2


if __name__ == "__main__":
    main()
