"""Labels of the user's own: one table, one JSON file, or an Audacity label file a recording."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from downstream.tasks.checks import first_few
from downstream.tasks.own_split import SPLITS
from downstream.tasks.task import Triple
from hear_pretrainedsed.registry import unknown

AUDACITY = "audacity"
SPLIT_COLUMN = "split"

_COLUMNS = ("filename", "onset", "offset", "event_label")
_KEYS = ("label", "onset_s", "offset_s")
_FORMS = (
    f"a table NAME.tsv ({' '.join(_COLUMNS)}), NAME.json ({{file: [{{{', '.join(_KEYS)}}}]}}), or "
    "Audacity's label files (a.txt or a.labels.txt beside a.wav)"
)


@dataclass
class Labels:
    """Events by file, as the labels name it, and the split of each where they say so."""

    source: Path
    events: dict[str, list[Triple]] = field(default_factory=dict)
    split: dict[str, str] | None = None


def read(folder: Path, audio: Sequence[Path], given: str | None, column: str | None) -> Labels:
    """The labels of a folder's recordings.

    `given` names the file in the folder, or is "audacity"; None: the only ones that are there.
    `column` is the table's column of splits; None: `split`, if there is one. Raises `ValueError`
    for labels that are not there, several, or wrong.
    """
    form = given or _only_form(folder, audio)
    if form == AUDACITY:
        found = _read_audacity(folder, audio)
    else:
        path = folder / form
        if path.suffix.lower() not in (".tsv", ".json") or not path.is_file():
            raise ValueError(f"{path}: no labels there; allowed: {_FORMS}")
        found = _read_json(path) if path.suffix.lower() == ".json" else _read_table(path, column)
    if column and found.split is None:
        raise ValueError(f"{found.source} has no column {column!r}; only tables (.tsv) have any")
    if not any(found.events.values()):
        raise ValueError(f"{found.source}: no event in it")
    return found


def _only_form(folder: Path, audio: Sequence[Path]) -> str:
    files = [*folder.glob("*.tsv"), *folder.glob("*.json")]
    forms = sorted(path.name for path in files if not path.name.startswith("."))
    if any(_label_files(path) for path in audio):
        forms.append(AUDACITY)
    if not forms:
        raise ValueError(f"{folder}: recordings without labels; allowed: {_FORMS}")
    if len(forms) > 1:
        raise ValueError(f"{folder}: labels more than once: {first_few(forms)}; name one of them")
    return forms[0]


def _read_table(path: Path, column: str | None) -> Labels:
    """Rows of filename, onset, offset, event_label; one without the latter: nothing sounds."""
    found, splits = Labels(path), {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file, delimiter="\t", restval="")
        names = table.fieldnames or ()
        for name in (*_COLUMNS, *([column] if column else ())):
            if name not in names:
                raise ValueError(f"{path}: {unknown('column', name, names)}")
        column = column or (SPLIT_COLUMN if SPLIT_COLUMN in names else None)
        for row in table:
            events = found.events.setdefault(row["filename"], [])
            if row["event_label"]:
                place = f"{path}, line {table.line_num}"
                events.append(_triple(row["onset"], row["offset"], row["event_label"], place))
            if column:
                splits.setdefault(row["filename"], {})[row[column]] = None
    if column:
        found.split = {file: _one_split(path, file, given) for file, given in splits.items()}
    return found


def _one_split(path: Path, file: str, given: dict[str, None]) -> str:
    if len(given) > 1:
        raise ValueError(f"{path}: {file} is in more than one split: {first_few(given)}")
    (name,) = given
    if name not in SPLITS:
        raise ValueError(f"{path}: {file}: {unknown('split', name, SPLITS)}")
    return name


def _read_json(path: Path) -> Labels:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: no JSON: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
        raise ValueError(f"{path}: wanted {{file: [{{{', '.join(_KEYS)}}}]}}")
    events = {
        file: [_json_event(row, path, file) for row in rows] for file, rows in content.items()
    }
    return Labels(path, events)


def _json_event(row: Any, path: Path, file: str) -> Triple:
    if not isinstance(row, dict) or any(key not in row for key in _KEYS):
        raise ValueError(f"{path}: {file}: an event has {', '.join(_KEYS)}; got {row}")
    return _triple(row["onset_s"], row["offset_s"], str(row["label"]), f"{path}: {file}")


def _read_audacity(folder: Path, audio: Sequence[Path]) -> Labels:
    found, owner = Labels(folder), {}
    for path in audio:
        files = _label_files(path)
        if len(files) > 1:
            raise ValueError(f"{path}: two label files: {files[0].name}, {files[1].name}")
        for file in files:
            if file in owner:
                raise ValueError(
                    f"{file} is beside two recordings: {owner[file].name}, {path.name}"
                )
            owner[file] = path
            found.events[path.relative_to(folder).as_posix()] = _read_label_track(file)
    return found


def _label_files(audio: Path) -> list[Path]:
    both = (audio.with_suffix(".txt"), audio.with_name(f"{audio.stem}.labels.txt"))
    return [path for path in both if path.is_file()]


def _read_label_track(path: Path) -> list[Triple]:
    """Lines of onset, offset (s), label; those with a backslash are frequency ranges."""
    events = []
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("\\"):
            continue
        parts = line.split("\t")
        if len(parts) != 3 or not parts[2].strip():
            raise ValueError(f"{path}, line {number}: wanted onset, offset, label; got {line!r}")
        onset, offset = (part.replace(",", ".") for part in parts[:2])  # some locales write commas
        events.append(_triple(onset, offset, parts[2].strip(), f"{path}, line {number}"))
    return events


def _triple(onset: Any, offset: Any, label: str, place: str) -> Triple:
    try:
        return float(onset), float(offset), label
    except (TypeError, ValueError):
        raise ValueError(f"{place}: {onset!r} to {offset!r} are no times in seconds") from None
