"""MAESTRO 5 h, piano transcription, as HEAR has it: the first 120 s of 185 performances, 5 folds.

The data are MAESTRO v3.0.0's (Hawthorne et al. 2019). Departures from MAESTRO's own evaluation: its
splits are not used, but HEAR's folds of 37 performances drawn from all 1276, so that one
composition, played by others, may be in two folds; scores are onset F (50 ms), and that with
offsets (50 ms or 20 % of the note). Note ends are lengthened by the pedal. An interval's unit is a
performance, which HEAR calls a piece.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from downstream.tasks import checks, hear_folder, hear_splits
from downstream.tasks.hear_writer import Event, Wanted, task_metadata, write_hear_folder
from downstream.tasks.midi import read_notes
from downstream.tasks.sources import Member, Sources
from downstream.tasks.task import Facts, Progress, Task

NAME = "maestro_5hr"
CLIP_S = 120.0
PITCHES = range(21, 109)

_HEAR_NAME = "maestro"  # in HEAR's metadata
_N_FOLDS = 5
_N_KEPT = int(3600 * 5 / 4 / 120)  # clips a fold: four of the five are five hours


def draw(stems: Iterable[str]) -> dict[str, list[str]]:
    """The performances of each fold, of all of MAESTRO's."""
    folds = hear_splits.kfold(stems, _N_FOLDS)
    return {fold: hear_splits.subsample(names, fold, _N_KEPT) for fold, names in folds.items()}


def _open(folder: Path, facts: Facts, *, strict: bool = False) -> Task:
    with checks.strictly(strict):
        task = hear_folder.read_named_folder(folder, facts, (_HEAR_NAME, NAME))
        task = replace(task, name=NAME)
        checks.check_task(task)
    return task


def _build(sources: Sources, folder: Path, progress: Progress) -> None:
    audio = _performances(sources)
    files = {kind: sources.matching(rf"[^/]+\.{kind}") for kind in ("midi", "wav")}
    folds = draw(audio)
    wanted = [f"{s}.{kind}" for drawn in folds.values() for s in drawn for kind in ("midi", "wav")]
    if missing := [file for file in wanted if file not in files[file.rsplit(".", 1)[1]]]:
        raise ValueError(
            f"{len(missing)} of the {len(wanted)} files that are wanted are not there: "
            f"{checks.first_few(missing)}"
        )
    midi, wav = files["midi"], files["wav"]
    clips = {
        fold: [Wanted(s, wav[f"{s}.wav"], _events(sources, midi[f"{s}.midi"])) for s in drawn]
        for fold, drawn in folds.items()
    }
    metadata = task_metadata(
        _HEAR_NAME,
        MAESTRO_5HR.version,
        "5h",
        folds,
        CLIP_S,
        MAESTRO_5HR.metrics,
        split_mode="new_split_kfold",
        nfolds=_N_FOLDS,
        use_scoring_for_early_stopping=False,
        evaluation_params={
            "event_postprocessing_grid": {"median_filter_ms": [150], "min_duration": [50]},
            "task_specific_param_grid": {"max_epochs": [50], "check_val_every_n_epoch": [1]},
        },
    )
    write_hear_folder(folder, metadata, PITCHES, clips, sources, progress)


def _performances(sources: Sources) -> list[str]:
    """Stems of all performances in MAESTRO's table."""
    tables = sources.matching(r"maestro-v3\.0\.0\.csv")
    if not tables:
        raise ValueError("maestro-v3.0.0.csv is not there: give it beside the archive")
    (table,) = tables.values()
    rows = csv.DictReader(io.StringIO(sources.read_text(table)))
    try:
        return [PurePosixPath(row["audio_filename"]).stem for row in rows]
    except KeyError:
        raise ValueError(f"{table.path}: no column audio_filename") from None


def _events(sources: Sources, member: Member) -> list[Event]:
    try:
        notes = read_notes(sources.read_bytes(member))
    except ValueError as error:
        raise ValueError(f"{member.path}: {error}") from None
    return [
        {"label": note.pitch, "start": 1000 * note.onset_s, "end": 1000 * note.offset_s}
        for note in notes
    ]


MAESTRO_5HR = Facts(
    name=NAME,
    version="v3.0.0",
    licence="CC BY-NC-SA 4.0",
    citation=(
        "Hawthorne et al., Enabling Factorized Piano Music Modeling and Generation with the "
        "MAESTRO Dataset, ICLR 2019"
    ),
    metrics=("event_onset_50ms_fms", "event_onset_offset_50ms_20perc_fms"),
    unit="piece",
    open=_open,
    median_s=0.15,
    min_duration_s=0.05,
    recognises=lambda folder: hear_folder.task_name(folder) in (_HEAR_NAME, NAME),
    build=_build,
)
