"""The command `corpus`: make a corpus from labelled audio, check one, describe one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hear_pretrainedsed.progress import count_bar
from hear_pretrainedsed.registry import unknown
from pretraining.corpus import Corpus, check_corpus, open_corpus
from pretraining.corpus_writer import write_corpus
from pretraining.importers import IMPORTERS, Request, list_clips

ACTIONS = ("build", "check", "describe")

Paths = list[Path] | None
Importer = Annotated[str, typer.Option(help=f"What the audio comes as: {', '.join(IMPORTERS)}.")]
Audio = Annotated[Paths, typer.Option(help="Folder of audio, or HDF5 file; repeatable.")]
Strong = Annotated[Paths, typer.Option(help="Events, TSV as AudioSet Strong's; repeatable.")]
Weak = Annotated[Paths, typer.Option(help="Clip labels: CSV, PSLA's JSON; repeatable.")]
Classes = Annotated[
    str | None,
    typer.Option(
        help="audioset_strong_train, audioset_strong_eval, audioset_527 or a file; none: the "
        "importer's own."
    ),
]
Split = Annotated[
    str | None, typer.Option(help="Of fsd50k's table: train or val; none: all of its clips.")
]
Licence = Annotated[
    str | None, typer.Option(help="Of the audio; the cards of what is trained on it state it.")
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that write; 0: this one.")]


def corpus(
    action: Annotated[str, typer.Argument(help=f"One of {', '.join(ACTIONS)}.")],
    folder: Annotated[Path, typer.Argument(help="The corpus; `build` makes it.")],
    importer: Importer = "folder",
    audio: Audio = None,
    strong: Strong = None,
    weak: Weak = None,
    classes: Classes = None,
    split: Split = None,
    licence: Licence = None,
    workers: Workers = 0,
) -> None:
    """Make, check or describe a corpus to pre-train on (docs/corpora.md)."""
    if action not in ACTIONS:
        raise ValueError(unknown("action", action, ACTIONS))
    tables = tuple(strong or ()), tuple(weak or ())
    request = Request(tuple(audio or ()), *tables, classes, split)
    if action != "build" and (request != Request() or licence is not None):
        raise ValueError(f"corpus {action} takes a folder only: the other options are of `build`")
    if action == "build":
        with count_bar("shards") as progress:
            listing = list_clips(importer, request)
            options = {"n_workers": workers, "licence": licence, "progress": progress}
            write_corpus(listing, folder, **options)
    if action == "check":
        with count_bar("files") as progress:
            problems = check_corpus(folder, progress)
        for problem in problems:
            typer.echo(f"hear-pretrainedsed: {problem}", err=True)
        if problems:
            raise typer.Exit(1)
    typer.echo(description(open_corpus(folder)))


def description(corpus: Corpus) -> str:
    """A corpus in words: what it has, what it lacks."""
    manifest = corpus.manifest
    n_used = len(manifest["classes"])
    lines = [
        f"{corpus.folder}: {manifest['n_clips']} clips, {manifest['hours']:.2f} hours",
        f"events: {manifest['n_events']} in {manifest['n_clips_with_events']} clips whose events "
        "are known",
        f"classes: {n_used} of {len(corpus.labels)} occur",
        *_extremes(corpus),
        _some("missing", manifest["missing"]),
        _some("broken", [f"{name} ({why})" for name, why in manifest["broken"].items()]),
        f"from: {', '.join(source['file'] for source in manifest['sources'])} "
        f"({manifest['importer']})",
        f"licence: {manifest.get('licence', 'not stated')}",
        f"sha256: {corpus.sha256}",
    ]
    return "\n".join(lines)


def _extremes(corpus: Corpus) -> list[str]:
    """The most and the least frequent classes."""
    found = corpus.manifest["classes"]
    ranked = sorted(found, key=lambda label: -found[label]["n_clips"])
    parts = [f"{label} ({found[label]['n_clips']})" for label in ranked]
    return [f"clips by class: {', '.join(parts[:3])}, ..., {parts[-1]}"] if len(parts) > 3 else []


def _some(what: str, names: list[str]) -> str:
    shown = f": {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""
    return f"{what}: {len(names)}{shown}"
