"""Labels of the user's own: one table, one JSON file, or an Audacity label file a recording."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from downstream.tasks.checks import first_few, read_utf8, warn
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

    `given` names the file, in the folder or elsewhere, or is "audacity"; None: the only ones that
    are there.
    `column` is the table's column of splits; None: `split`, if there is one. Raises `ValueError`
    for labels that are not there, several, or wrong.
    """
    form = given or _only_form(folder, audio)
    if form == AUDACITY:
        found = _read_audacity(folder, audio)
    else:
        path = folder / form
        path = path if path.is_file() or not Path(form).is_file() else Path(form)
        if path.suffix.lower() not in (".tsv", ".json") or not path.is_file():
            raise ValueError(f"{path}: no labels there; allowed: {_FORMS}")
        found = _read_json(path) if path.suffix.lower() == ".json" else _read_table(path, column)
    if column and found.split is None:
        raise ValueError(f"{found.source} has no column {column!r}; only tables (.tsv) have any")
    if not any(found.events.values()):
        raise ValueError(f"{found.source}: no event in it")
    _check_spelling(found)
    return found


def _check_spelling(found: Labels) -> None:
    """Warn of classes whose names a reader would take for one."""
    alike: dict[str, set[str]] = {}
    for label in {label for rows in found.events.values() for *_, label in rows}:
        words = unicodedata.normalize("NFKC", label).casefold().split()
        alike.setdefault(" ".join(words), set()).add(label)
    groups = [" and ".join(map(repr, sorted(names))) for names in alike.values() if len(names) > 1]
    if groups:
        warn(f"{found.source}: classes that read alike: {first_few(sorted(groups))}")


def _only_form(folder: Path, audio: Sequence[Path]) -> str:
    files = [*folder.glob("*.tsv"), *folder.glob("*.json")]
    forms = sorted(path.name for path in files if not path.name.startswith("."))
    if any(_label_files(path) for path in audio):
        forms.append(AUDACITY)
    if not forms:
        raise ValueError(f"{folder}: recordings without labels; allowed: {_FORMS}")
    if len(forms) > 1:
        raise ValueError(
            f"{folder}: labels more than once: {first_few(forms)}; name one of them: "
            f"--labels {forms[0]}"
        )
    return forms[0]


def _read_table(path: Path, column: str | None) -> Labels:
    """Rows of filename, onset, offset, event_label; with the first alone: nothing sounds."""
    found, splits = Labels(path), {}
    text = io.StringIO(read_utf8(path), newline="")
    table = csv.DictReader(text, delimiter="\t", restkey="", restval="", strict=True)
    names = table.fieldnames or ()
    _check_columns(path, names)
    if column and column not in names:
        raise ValueError(f"{path}: {unknown('column', column, names)}")
    column = column or (SPLIT_COLUMN if SPLIT_COLUMN in names else None)
    for row in _rows(path, table):
        file, onset, offset, label = (row[name].strip() for name in _COLUMNS)
        place = f"{path}, line {table.line_num}"
        if not file:
            raise ValueError(f"{place}: no filename")
        events = found.events.setdefault(row["filename"], [])
        if onset or offset or label:
            events.append(_triple(onset, offset, label, place))
        if column:
            splits.setdefault(row["filename"], {})[row[column].strip()] = None
    if column:
        found.split = {file: _one_split(path, file, given) for file, given in splits.items()}
    return found


def _rows(path: Path, table: csv.DictReader) -> Iterator[dict[str, str]]:
    try:
        yield from table
    except csv.Error as error:  # a quotation mark that is not closed hides all that follows
        raise ValueError(f"{path}, line {table.line_num}: {error}") from None


def _check_columns(path: Path, names: Iterable[str]) -> None:
    missing = [name for name in _COLUMNS if name not in names]
    if not missing:
        return
    told = f"{path}: no column {missing[0]!r}; needed: {', '.join(_COLUMNS)}, separated by tabs"
    raise ValueError(f"{told}; found: {first_few(map(repr, names)) or 'an empty file'}")


def _one_split(path: Path, file: str, given: dict[str, None]) -> str:
    if len(given) > 1:
        raise ValueError(f"{path}: {file} is in more than one split: {first_few(given)}")
    (name,) = given
    if name not in SPLITS:
        raise ValueError(f"{path}: {file}: {unknown('split', name, SPLITS)}")
    return name


def _read_json(path: Path) -> Labels:
    try:
        content = json.loads(read_utf8(path))
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
    if not isinstance(row["label"], str):
        raise ValueError(f"{path}: {file}: a label is text in quotes; got {row}")
    return _triple(row["onset_s"], row["offset_s"], row["label"], f"{path}: {file}")


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
    lines = read_utf8(path).splitlines()
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
    label = label.strip()  # a blank that nobody sees would make another class
    if not label:
        raise ValueError(f"{place}: {onset!r} to {offset!r} has no label")
    try:
        return float(onset), float(offset), label
    except (TypeError, ValueError):
        raise ValueError(f"{place}: {onset!r} to {offset!r} are no times in seconds") from None
