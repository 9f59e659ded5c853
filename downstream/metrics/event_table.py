"""Events of many files as arrays, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from hear_pretrainedsed.events import label_indices

Events = Mapping[str, Sequence[tuple[Any, ...]]]
"""`{file: [(onset_s, offset_s, label), ...]}`."""

_AUDIO = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".m4a")
_SHOWN = 3  # offenders named in an error


@dataclass(frozen=True)
class EventTable:
    """One row an event, files in one order and each file's events in the order they were given.

    `file` and `label` are numbers from 0, `onset_s` and `offset_s` seconds in float64.
    """

    file: np.ndarray
    label: np.ndarray
    onset_s: np.ndarray
    offset_s: np.ndarray

    def __len__(self) -> int:
        return len(self.file)

    def rows(self, wanted: np.ndarray) -> EventTable:
        """The rows that a mask or an array of row numbers picks."""
        columns = (self.file, self.label, self.onset_s, self.offset_s)
        return EventTable(*(column[wanted] for column in columns))

    def count(self, n_labels: int) -> np.ndarray:
        """Events of each class (classes,)."""
        return np.bincount(self.label, minlength=n_labels)

    def count_by_file(self, n_files: int, n_labels: int) -> np.ndarray:
        """Events of each file and class (files, classes)."""
        cells = self.file * n_labels + self.label
        return np.bincount(cells, minlength=n_files * n_labels).reshape(n_files, n_labels)


@dataclass(frozen=True)
class EventPair:
    """Reference and estimated events with the same numbers for files and labels."""

    reference: EventTable
    estimated: EventTable
    files: tuple[str, ...]
    labels: tuple[str, ...]


def event_pair(reference: Events, estimated: Events, labels: Sequence[str] | None) -> EventPair:
    """Check both sides and number their files and labels.

    `labels` is the vocabulary; `None` stands for every label in the events, sorted. Raises
    `ValueError`, in one line with the first offenders, for labels outside the vocabulary, times
    that are negative, not finite or in the wrong order, one file under two names, and sides that
    have no file in common.
    """
    sides = {"reference": reference, "estimated": estimated}
    rows = {side: _flat(events, side) for side, events in sides.items()}
    files = _file_names(reference, estimated)
    if labels is None:
        labels = sorted({label for *_, names in rows.values() for label in names})
    labels = _vocabulary(labels)
    tables = (_table(side, *row, files, labels) for side, row in rows.items())
    return EventPair(*tables, files, labels)


def labels_of(sides: Iterable[Events]) -> list[str]:
    """Every label that occurs, sorted."""
    return sorted({label for events in sides for label in _flat(events, "events")[3]})


def _vocabulary(labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str):
        raise ValueError(f"labels is a sequence of names, got the text {labels!r}")
    if len(set(labels)) != len(labels):
        twice = (label for i, label in enumerate(labels) if label in labels[:i])
        raise ValueError(f"labels given twice: {first_few(twice)}")
    return tuple(labels)


def first_few(offenders: Iterable[Any]) -> str:
    """The first offenders as text, and how many more there are."""
    found = list(offenders)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(repr(one) for one in found[:_SHOWN]) + more


def _file_names(reference: Events, estimated: Events) -> tuple[str, ...]:
    files = tuple(dict.fromkeys((*reference, *estimated)))
    seen: dict[str, str] = {}
    for name in files:
        other = seen.setdefault(_without_suffix(name), name)
        if other != name:
            raise ValueError(f"one file under two names: {other!r} and {name!r}")
    if reference and estimated and not reference.keys() & estimated.keys():
        ours, theirs = first_few(reference), first_few(estimated)
        raise ValueError(f"no file in common: reference has {ours}, estimated has {theirs}")
    return files


def _without_suffix(name: str) -> str:
    if not isinstance(name, str):
        raise ValueError(f"files are named by text, got {name!r}")
    path = PurePath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in _AUDIO else str(path)


Flat = tuple[list[str], list[Any], list[Any], list[str]]


def _flat(events: Events, side: str) -> Flat:
    """Events as columns: file, onset, offset, label."""
    if not isinstance(events, Mapping):
        raise ValueError(f"{side} is a dict of events by file, got {type(events).__name__}")
    file: list[str] = []
    for name, rows in events.items():
        file.extend([name] * len(rows))
    flat = [event for rows in events.values() for event in rows]
    try:
        onset, offset, label = ([event[i] for event in flat] for i in range(3))
    except (TypeError, IndexError, KeyError):
        bad = next(event for event in flat if not _is_triple(event))
        raise ValueError(f"{side}: an event is (onset_s, offset_s, label), got {bad!r}") from None
    if not all(isinstance(one, str) for one in label):
        i, bad = next((i, one) for i, one in enumerate(label) if not isinstance(one, str))
        raise ValueError(f"{side}: labels are text, got {bad!r} in {file[i]!r}")
    return file, onset, offset, label


def _is_triple(event: Any) -> bool:
    return isinstance(event, Sequence) and not isinstance(event, str) and len(event) >= 3


def _table(
    side: str,
    file: list[str],
    onset: list[Any],
    offset: list[Any],
    label: list[str],
    files: Sequence[str],
    labels: Sequence[str],
) -> EventTable:
    place = {name: i for i, name in enumerate(labels)}
    unknown = next((i for i, one in enumerate(label) if one not in place), None)
    if unknown is not None:
        try:
            label_indices(labels, [label[unknown]])
        except ValueError as error:
            raise ValueError(f"{side}, {file[unknown]!r}: {error}") from None
    start, end = _times(side, file, onset), _times(side, file, offset)
    valid = np.isfinite(start) & np.isfinite(end) & (start >= 0) & (end >= start)
    if not valid.all():
        bad = np.flatnonzero(~valid)
        what = first_few((file[i], onset[i], offset[i], label[i]) for i in bad)
        raise ValueError(f"{side}: times are finite with 0 <= onset <= offset, got {what}")
    number = {name: i for i, name in enumerate(files)}
    return EventTable(
        np.array([number[name] for name in file], dtype=np.int64),
        np.array([place[one] for one in label], dtype=np.int64),
        start,
        end,
    )


def _times(side: str, file: list[str], values: list[Any]) -> np.ndarray:
    try:
        return np.array(values, dtype=np.float64).reshape(len(file))
    except (TypeError, ValueError):
        bad = next(i for i, value in enumerate(values) if not isinstance(value, int | float))
        raise ValueError(f"{side}, {file[bad]!r}: {values[bad]!r} is no time in seconds") from None


def with_length(table: EventTable) -> EventTable:
    """The events that last at all."""
    return table.rows(table.offset_s > table.onset_s)
