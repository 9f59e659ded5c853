"""DESED, sound events in homes, and what is laid out as DESED in HEAR's format.

Ten classes, clips of 10 s. The parts are those of DCASE 2022 and 2023, task 4, found by DESED's own
names (`metadata/train/audioset_strong.tsv` beside `audio/train/strong_label_real`, and so on):

- train: real strongly labelled clips and synthetic ones, whichever are there;
- valid: the synthetic validation soundscapes; without these a tenth of the real strong clips (of
  the synthetic ones if there are none) that are not in `weak` or `unlabeled` too, drawn by file
  name: DESED has no other set for that;
- test: `validation` for the task `desed`, `public` (YouTube's) for `desed_public`;
- extra, for training: `weak` (labels of a clip) and `unlabeled`.

Clips of a training part whose recording is gone are left out with a warning, because recordings
disappear from YouTube; of a test set all have to be there. Departures from DCASE task 4: no teacher
and no unlabelled data is asked for, validation is synthetic alone (there: and a tenth of the weak
clips), and in HEAR's layout clips are cut or padded to 10 s.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from downstream.tasks import checks, hear_folder
from downstream.tasks.hear_writer import Wanted, task_metadata, write_hear_folder
from downstream.tasks.sources import Member, Sources, duration_s
from downstream.tasks.task import Clip, ExtraClip, Facts, Progress, Rotation, Task, Triple
from hear_pretrainedsed.audio import EXTENSIONS
from hear_pretrainedsed.registry import read_labels, unknown

CLIP_S = 10.0

_METRICS = ("psds1", "psds2", "intersection_f1", "collar_f1")
_STOCK_METRICS = ("event_onset_200ms_fms", "segment_1s_er")  # what stock heareval computes
_TABLES = "metadata_tsv"  # in a HEAR task's metadata: where the tables of its extra clips are
_VALID_SHARE = 0.1
_EXTRA = ("weak", "unlabeled")  # not labelled strongly
_EVENT = ("onset", "offset", "event_label")


@dataclass(frozen=True)
class _Part:
    """Where DESED has a part; names of synthetic clips are numbers, and get a prefix.

    columns: what its table has beside `filename`.
    """

    table: str
    audio: str
    prefix: str = ""
    columns: tuple[str, ...] = _EVENT


_PARTS = {
    "strong": _Part(r"metadata/train/audioset_strong\.tsv", "audio/train/strong_label_real"),
    "synthetic": _Part(
        r"metadata/train/synthetic\d+_train/soundscapes\.tsv",
        r"audio/train/synthetic\d+_train/soundscapes",
        "synthetic_train_",
    ),
    "synthetic_valid": _Part(
        r"metadata/validation/synthetic\d+_validation/soundscapes\.tsv",
        r"audio/validation/synthetic\d+_validation/soundscapes",
        "synthetic_valid_",
    ),
    "weak": _Part(r"metadata/train/weak\.tsv", "audio/train/weak", columns=("event_labels",)),
    "unlabeled": _Part(
        r"metadata/train/unlabel_in_domain\.tsv", "audio/train/unlabel_in_domain", columns=()
    ),
    "validation": _Part(r"metadata/validation/validation\.tsv", "audio/validation/validation"),
    "public": _Part(r"metadata/eval/public\.tsv", "audio/eval/public"),
}
_TEST_PART = {"desed": "validation", "desed_public": "public"}


@dataclass(frozen=True)
class _Found:
    """A clip of a part: its recording, and its events or labels."""

    member: Member
    events: tuple[Triple, ...] = ()
    labels: tuple[str, ...] | None = None


_Clips = dict[str, _Found]  # by name


def _read_part(sources: Sources, name: str, *, whole: bool = False) -> _Clips:
    """Clips of a part, none if its table is not there; `whole`: none may lack its recording."""
    part = _PARTS[name]
    tables = sources.matching(part.table)
    if not tables:
        return {}
    (table,) = tables.values()
    rows = _rows(sources.read_text(table), table.path, part.columns)
    audio: dict[str, Member] = {}
    for rate in ("_16k", ""):  # resampled by DCASE's baseline; no need to do it again
        audio = audio or sources.matching(rf"{part.audio}{rate}/[^/]+")
    missing = [file for file in rows if file not in audio]
    if missing:
        told = f"{table.path}: {len(missing)} of {len(rows)} clips have no audio"
        told = f"{told} in {part.audio}: {checks.first_few(missing)}"
        if whole:
            raise ValueError(told)
        checks.warn(f"{told}; left out")
    sounds = [file for file in audio if Path(file).suffix.lower() in EXTENSIONS]  # beside jams, txt
    if more := [file for file in sounds if file not in rows]:
        told = f"{table.path}: {len(more)} audio files in {part.audio} are not listed"
        checks.warn(f"{told}: {checks.first_few(more)}")
    return {
        part.prefix + file: _found(audio[file], file_rows, part.columns, table.path)
        for file, file_rows in rows.items()
        if file in audio
    }


def _rows(text: str, path: Path, columns: Iterable[str]) -> dict[str, list[dict[str, str]]]:
    """Rows of a tab-separated table by their file name; `columns`: what it has beside that."""
    found: dict[str, list[dict[str, str]]] = {}
    table = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE, restval="")
    names = table.fieldnames or ()
    for column in ("filename", *columns):
        if column not in names:
            raise ValueError(f"{path}: {unknown('column', column, names)}")
    for row in table:
        found.setdefault(row["filename"], []).append(row)
    return found


def _found(
    member: Member, rows: list[dict[str, str]], columns: tuple[str, ...], table: Path
) -> _Found:
    if columns == _EVENT:
        events = (_event(row, table) for row in rows)
        return _Found(member, tuple(event for event in events if event))
    if columns:
        named = dict.fromkeys(label for row in rows for label in row["event_labels"].split(","))
        return _Found(member, labels=tuple(label for label in named if label))
    return _Found(member)


def _event(row: Mapping[str, str], table: Path) -> Triple | None:
    """The event of a row; None where it has neither times nor label: nothing sounds."""
    onset, offset, label = (row[column].strip() for column in _EVENT)
    if not (onset or offset or label):
        return None
    try:
        if label:
            return float(onset), float(offset), label
    except ValueError:
        pass
    raise ValueError(f"{table}: wanted onset, offset, event_label, or none of them; got {row}")


def _read_desed(sources: Sources, task: str) -> tuple[dict[str, _Clips], dict[str, _Clips]]:
    """Clips of DESED by split, and those not labelled strongly by kind."""
    part = _TEST_PART[task]
    test = _read_part(sources, part, whole=True)
    if not test:
        raise ValueError(f"{task}: no table {_PARTS[part].table} with clips")
    real, synthetic = _read_part(sources, "strong"), _read_part(sources, "synthetic")
    extra = {kind: _read_part(sources, kind) for kind in _EXTRA}
    valid = _read_part(sources, "synthetic_valid")
    if not valid:
        trained = {file for clips in extra.values() for file in clips}
        drawn = _held_out(file for file in real or synthetic if file not in trained)
        valid = {file: (real or synthetic)[file] for file in drawn}
    train = {file: clip for file, clip in (real | synthetic).items() if file not in valid}
    if not train:
        raise ValueError(
            f"{task}: nothing to train on: neither {_PARTS['strong'].table} nor "
            f"{_PARTS['synthetic'].table} with clips"
        )
    extra = {kind: clips for kind, clips in extra.items() if clips}
    return {"train": train, "valid": valid, "test": test}, extra


def _held_out(files: Iterable[str]) -> set[str]:
    order = sorted(files)
    random.Random("desed_valid").shuffle(order)
    return set(order[: round(_VALID_SHARE * len(order))])


def _open(folder: Path, facts: Facts, *, strict: bool = False) -> Task:
    with checks.strictly(strict):
        is_hear = hear_folder.is_hear_folder(folder)
        task = _open_hear(folder, facts) if is_hear else _open_raw(folder, facts)
        extra = (clip for clips in task.extra.values() for clip in clips)
        _check_labels(((clip.file, clip.labels) for clip in extra), task.labels)
        checks.check_task(task)
    return task


def _open_raw(folder: Path, facts: Facts) -> Task:
    with Sources([folder]) as sources:
        found, extra = _read_desed(sources, facts.name)
    splits = {
        split: tuple(
            Clip(file, clip.member.path, clip.events, duration_s(clip.member.path), file)
            for file, clip in clips.items()
        )
        for split, clips in found.items()
    }
    return Task(
        facts=facts,
        name=facts.name,
        version=facts.version,
        folder=folder,
        labels=read_labels("desed"),
        splits=splits,
        rotations=(Rotation(("train",), ("valid",), ("test",)),),
        hear=_metadata(facts.name, splits, ()),
        extra={
            kind: tuple(
                ExtraClip(file, clip.member.path, duration_s(clip.member.path), clip.labels)
                for file, clip in clips.items()
            )
            for kind, clips in extra.items()
        },
    )


def _open_hear(folder: Path, facts: Facts) -> Task:
    """A folder in HEAR's layout with tables of extra clips; metrics are its own, after DESED's."""
    metadata = hear_folder.read_metadata(folder)
    more = tuple(name for name in metadata["evaluation"] if name not in _METRICS)
    name, version = metadata["task_name"], str(metadata["version"])
    if name in _TEST_PART and name != facts.name:
        raise ValueError(f"{folder} holds the task {name!r}, not {facts.name}")
    facts = replace(facts, name=name, version=version, metrics=(*_METRICS, *more))
    task = hear_folder.read_hear_folder(folder, facts)
    tables = metadata.get(_TABLES, {})
    if not isinstance(tables, dict) or not all(isinstance(tables.get(k, ""), str) for k in _EXTRA):
        raise ValueError(
            f"{folder}: {_TABLES} is {tables!r}; wanted {{'weak': a table's path, ...}}"
        )
    extra = {kind: _extra(folder, kind, folder / tables[kind]) for kind in _EXTRA if kind in tables}
    return replace(task, extra=extra)


def _extra(folder: Path, kind: str, table: Path) -> tuple[ExtraClip, ...]:
    audio, columns = folder / str(hear_folder.SAMPLE_RATE) / kind, _PARTS[kind].columns
    if not table.is_file() or not audio.is_dir():
        raise ValueError(f"{table} and {audio} are not both there")
    rows = _rows(checks.read_utf8(table), table, columns)
    checks.check_files(table.stem, rows, audio)
    found = {file: _found(Member(file, audio), same, columns, table) for file, same in rows.items()}
    return tuple(
        ExtraClip(
            file,
            clip.member.path,
            duration_s(clip.member.path, hear_folder.SAMPLE_RATE),
            clip.labels,
        )
        for file, clip in found.items()
    )


def _check_labels(
    clips: Iterable[tuple[str, tuple[str, ...] | None]], known: Sequence[str]
) -> None:
    """Refuse a label, given by file, that is no class of the task."""
    for file, labels in clips:
        for label in labels or ():
            if label not in known:
                raise ValueError(f"{file}: {unknown('label', label, known)}")


def _metadata(name: str, splits: Iterable[str], extra: Iterable[str]) -> dict[str, Any]:
    tables: dict[str, Any] = {"strong": [f"metadata/{split}_strong.tsv" for split in splits]}
    tables |= {kind: f"metadata/{kind}.tsv" for kind in extra}
    more = {_TABLES: tables}
    return task_metadata(name, DESED.version, "full", splits, CLIP_S, _STOCK_METRICS, **more)


def _build(task: str, sources: Sources, folder: Path, progress: Progress) -> None:
    found, extra = _read_desed(sources, task)
    weak = (pair for named in extra.values() for pair in named.items())
    _check_labels(((file, clip.labels) for file, clip in weak), read_labels("desed"))
    clips = {
        name: [Wanted(Path(f).stem, c.member, _in_ms(c)) for f, c in named.items()]
        for name, named in (found | extra).items()
    }
    metadata = _metadata(task, found, extra)
    (folder / "metadata").mkdir()
    for split, named in found.items():
        _write_table(folder / f"metadata/{split}_strong.tsv", _strong_rows(named))
    for kind, named in extra.items():
        _write_table(folder / f"metadata/{kind}.tsv", _weak_rows(named))
    write_hear_folder(folder, metadata, read_labels("desed"), clips, sources, progress)


def _in_ms(clip: _Found) -> list[Mapping[str, Any]]:
    return [{"label": e[2], "start": 1000 * e[0], "end": 1000 * e[1]} for e in clip.events]


def _strong_rows(clips: _Clips) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = [("filename", "onset", "offset", "event_label")]
    for file, clip in clips.items():
        none = ((f"{Path(file).stem}.wav", "", "", ""),)
        rows += [(none[0][0], *event) for event in clip.events] or none
    return rows


def _weak_rows(clips: _Clips) -> list[tuple[object, ...]]:
    names = [f"{Path(file).stem}.wav" for file in clips]
    labels = [clip.labels for clip in clips.values()]
    if None in labels:
        return [("filename",), *((name,) for name in names)]
    rows = [(name, ",".join(found or ())) for name, found in zip(names, labels, strict=True)]
    return [("filename", "event_labels"), *rows]


def _write_table(path: Path, rows: Iterable[Iterable[object]]) -> None:
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), "utf-8")


def _recognises(folder: Path) -> bool:
    if hear_folder.is_hear_folder(folder):
        return _TABLES in hear_folder.read_metadata(folder)
    tables = ("validation/validation.tsv", "train/audioset_strong.tsv")
    places = (folder / "metadata", folder / "dataset" / "metadata")
    return any((place / table).is_file() for place in places for table in tables)


DESED = Facts(
    name="desed",
    version="2023",
    licence="annotations: MIT; recordings: each its own (AudioSet's from YouTube, Freesound's)",
    citation=(
        "Turpault, Serizel, Salamon, Shah, Sound Event Detection in Domestic Environments with "
        "Weakly Labeled Data and Soundscape Synthesis, DCASE 2019"
    ),
    metrics=(*_METRICS, *_STOCK_METRICS),
    unit="clip",
    open=_open,
    recognises=_recognises,
    build=partial(_build, "desed"),
)
DESED_PUBLIC = replace(
    DESED,
    name="desed_public",
    recognises=lambda folder: hear_folder.task_name(folder) == "desed_public",
    build=partial(_build, "desed_public"),
)
