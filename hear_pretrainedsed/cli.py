"""The command `hear-pretrainedsed`: list, info, fetch, embed, detect, export; plugins has more.

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
import typer
from torch import Tensor

from hear_pretrainedsed import __version__, live, onnx_files, plugins, registry
from hear_pretrainedsed import events as ev
from hear_pretrainedsed.cli_options import (
    Argument,
    BatchSize,
    CheckpointName,
    Device,
    Files,
    Labels,
    Layer,
    MedianS,
    MinDurationS,
    Name,
    Option,
    Out,
    OutOrStdout,
    Picture,
    Precision,
    SaveScores,
    Scene,
    Threshold,
    Top,
    Vocabulary,
    Weights,
    Windowing,
    check_decoding,
    check_fetched,
    check_head,
    layers_of,
    load,
    median_frames_of,
    say,
)
from hear_pretrainedsed.complexity import complexity
from hear_pretrainedsed.decoding import decoding_for
from hear_pretrainedsed.fetch import FetchError, fetch, find
from hear_pretrainedsed.import_command import import_
from hear_pretrainedsed.memory import out_of_memory
from hear_pretrainedsed.recordings import Recording, Run, find_recordings
from hear_pretrainedsed.registry import Checkpoint, get_checkpoint

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
UsageError = typer.BadParameter.__bases__[0]  # of the click that this typer brings or uses

_INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Format(StrEnum):
    """How `detect` writes events."""

    tsv = "tsv"
    json = "json"
    audacity = "audacity"


Formats = Annotated[list[Format] | None, Option("--format", help="May be repeated; none: tsv.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hear-pretrainedsed {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Show it and leave.")
    ] = False,
) -> None:
    """Sound-event-detection models: embeddings and events from any recording."""


@app.command("list")
def list_(
    wide: Annotated[bool, Option("--wide", help="With multiply-accumulates and file.")] = False,
) -> None:
    """Show all checkpoints; piped: tab-separated, without heading."""
    rows = []
    for checkpoint in registry.CHECKPOINTS.values():
        psds1 = "" if checkpoint.psds1 is None else f"{checkpoint.psds1}"
        cached = "yes" if find(checkpoint.file) else "no"
        cost = complexity(checkpoint)
        row = (checkpoint.name, checkpoint.stage, f"{cost.parameters}", psds1)
        more = (f"{cost.macs_with_attention}", checkpoint.file) if wide else ()
        rows.append((*row, checkpoint.licence, cached, *more))
    if not sys.stdout.isatty():
        for row in rows:
            print(*row, sep="\t")
        return
    from rich.console import Console
    from rich.table import Table

    heads = ("name", "stage", "parameters", "PSDS1", "licence", "in cache")
    table = Table(*heads, *(("MACs per 10 s", "file") if wide else ()), box=None)
    for name, stage, size, psds1, licence, cached, *more in rows:
        more = [f"{int(more[0]) / 1e9:.2f} G", more[1]] if more else []
        table.add_row(name, stage, f"{int(size) / 1e6:.1f} M", psds1, licence, cached, *more)
    Console().print(table)


@app.command()
def info(
    name: Name,
    bibtex: Annotated[bool, Option("--bibtex", help="Only what to cite, as BibTeX.")] = False,
) -> None:
    """Show what is known about a checkpoint or an exported ONNX file, or how to cite it."""
    if name.endswith(".onnx"):
        print(*onnx_files.describe(name), sep="\n")
        return
    checkpoint = get_checkpoint(name)
    if bibtex:
        print(registry.bibtex(name))
        return
    cost = complexity(checkpoint)
    facts = {
        "name": checkpoint.name,
        "stage": checkpoint.stage,
        "paper": "; ".join(registry.paper(key) for key in checkpoint.references),
        "parameters": f"{cost.parameters:,}",
        "MACs": f"{cost.macs_with_attention:,} per 10 s",
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


@app.command()
def export(
    name: Name,
    out: Annotated[Path, Option("--out", "-o", help="The ONNX file.")],
    from_audio: Annotated[bool, Option("--from-audio", help="Put the front end inside.")] = False,
    weights: Weights = None,
    vocabulary: Vocabulary = None,
) -> None:
    """Write a checkpoint as ONNX: 10 s windows in, frames and scores out (info FILE reads it)."""
    from hear_pretrainedsed.export import check_ready, export_onnx

    get_checkpoint(name)
    check_ready(out)
    model = load(name, weights, "cpu", None, vocabulary=vocabulary)
    export_onnx(model, out, from_audio=from_audio)
    print(out)


@app.command("fetch")
def fetch_(names: Annotated[list[str], Argument(help="Names, as in `list`.")]) -> None:
    """Download checkpoints into the cache folder; print where they are."""
    n_failed = 0
    for checkpoint in [get_checkpoint(name) for name in names]:
        try:
            print(fetch(checkpoint.file, checkpoint.url, checkpoint.sha256), flush=True)
        except FetchError as error:
            n_failed += 1
            say(f"{error}")
    raise typer.Exit(1 if n_failed else 0)


@app.command()
def embed(
    files: Files,
    checkpoint: CheckpointName,
    out: Out,
    weights: Weights = None,
    layer: Layer = None,
    scene: Scene = False,
    windowing: Windowing = None,
    precision: Precision = "fp32",
    device: Device = "auto",
    batch_size: BatchSize = None,
) -> None:
    """Write FILE.embeddings.npy, (frames, dim) with a frame each 40 ms, and facts as .json."""
    recordings = find_recordings(files)
    get_checkpoint(checkpoint)
    chosen = dict(windowing=windowing, precision=precision, batch_size=batch_size)
    model = load(checkpoint, weights, device, out, layer=layers_of(layer), **chosen)
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
    threshold: Threshold = None,
    median_s: MedianS = None,
    min_duration_s: MinDurationS = None,
    top: Top = None,
    labels: Labels = None,
    vocabulary: Vocabulary = None,
    formats: Formats = None,
    save_scores: SaveScores = False,
    picture: Picture = False,
    windowing: Windowing = None,
    precision: Precision = "fp32",
    device: Device = "auto",
    batch_size: BatchSize = None,
) -> None:
    """Write events: FILE.events.tsv, .json, .labels.txt (Audacity). Live: see `detect - -h`."""
    recordings = find_recordings(files)
    known = get_checkpoint(checkpoint)
    if weights is None:
        check_fetched(known, labels)
    frames = median_frames_of(median_s)
    decoding = dict(threshold=threshold, median_frames=frames, min_duration_s=min_duration_s)
    check_decoding(**decoding)
    kinds = set(formats or [Format.tsv])
    if out is None and (kinds != {Format.tsv} or save_scores or picture):
        raise ValueError("give a folder, -o DIR: without one, events are printed, as tsv")
    chosen = dict(windowing=windowing, precision=precision, batch_size=batch_size)
    model = load(checkpoint, weights, device, out, vocabulary=vocabulary, **chosen)
    check_head(model, checkpoint, labels)
    run = Run(model, recordings, shows_bar=out is not None or not sys.stdout.isatty())
    work = _Detector(run, labels, top, decoding, out, kinds, save_scores, picture, {})
    n_failed = run.for_each(work)
    if out is not None and Format.tsv in kinds and len(recordings) > 1:
        ev.write_tsv(out / "events.tsv", work.found)
    raise typer.Exit(1 if n_failed else 0)


app.command(live.NAME)(live.detect_live)
app.command("import")(import_)


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
        given = (self.decoding["threshold"], self.decoding["median_frames"])
        decoding = self.decoding | decoding_for(model, names, *given)
        found = ev.scores_to_events(scores, names, duration_s=duration_s, **decoding)
        self.found[name] = found
        if self.out is None:
            sys.stdout.write(ev.tsv({name: found}, heading=len(self.found) == 1))
            sys.stdout.flush()
            return
        stem = recording.outputs(self.out)
        if Format.tsv in self.kinds:
            ev.write_tsv(f"{stem}.events.tsv", {name: found})
        if Format.json in self.kinds:
            facts = self.run.facts(recording, audio) | decoding
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
    if classes := checkpoint.classes:
        return f"{len(classes)} ({checkpoint.labels or ', '.join(classes)})"
    n = checkpoint.n_classes
    return f"{n}, their names not known here" if n else "none: it has no trained head"


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    say(f"warning: {message}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with `arguments` (None: the process's) and exit."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as some starters of services leave them
            setattr(sys, name, open(os.devnull, "w"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names need not be valid UTF-8
            stream.reconfigure(errors="surrogateescape")
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        sys.exit(_exit_code(arguments))


def _exit_code(arguments: Sequence[str] | None) -> int:
    try:
        arguments = live.command_line(arguments)
        plugins.add_commands(app, arguments)
        if arguments[:1] and arguments[0] in plugins.COMMANDS:
            arguments = plugins.spread(arguments)
        code = app(arguments, prog_name="hear-pretrainedsed", standalone_mode=False)
        sys.stdout.flush()
        if code == _INTERRUPTED:  # typer takes Ctrl-C and says nothing
            say("interrupted")
        return code or 0
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        return _INTERRUPTED
    except UsageError as error:
        if error.format_message():  # there is none when the help was shown instead
            say(error.format_message())
        return 2
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except FetchError as error:
        say(f"{error}")
        return 1
    except OSError as error:
        say(f"{error.filename}: {error.strerror}" if error.filename else f"{error}")
        return 1
    except ValueError as error:
        say(f"{error}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        say(f"not enough memory: {error}")
        return 1
