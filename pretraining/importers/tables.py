"""Label tables of AudioSet: events (TSV) and clip labels (CSV)."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pretraining.clip_index import IndexEvent
from pretraining.corpus import CorpusError
from pretraining.importers.listing import unreadable
from pretraining.vocabulary import Vocabulary, first_few

STRONG_COLUMNS = ("segment_id", "start_time_seconds", "end_time_seconds", "label")


def read_strong(paths: Iterable[Path], vocabulary: Vocabulary) -> dict[str, tuple[IndexEvent, ...]]:
    """Events by segment, of tables as AudioSet Strong's.

    Tab-separated with a heading: segment_id, start_time_seconds, end_time_seconds, label (a mid or
    a name of the class list; empty: the segment has no events). Times are seconds in the clip.

    Raises `CorpusError` naming file and line for wrong columns and times, the labels that are not
    in the class list, and the segments that two of the tables have.
    """
    events: dict[str, list[IndexEvent]] = {}
    for path in paths:
        before = frozenset(events)
        strange: set[str] = set()
        again: dict[str, None] = {}
        for row, place in _rows(path):
            segment, label = row[0], row[3]
            if segment in before:
                again[segment] = None
            of_segment = events.setdefault(segment, [])
            if label in vocabulary.places:
                of_segment.append((*_times(row, place), vocabulary.places[label]))
            elif label:
                strange.add(label)
        if strange:
            raise CorpusError(vocabulary.refusal(strange, str(path)))
        if again:
            raise CorpusError(f"{path}: {first_few(again, 'segment')} in another table too")
    if not events:
        raise CorpusError(f"{', '.join(map(str, paths))}: no events in it")
    return {segment: tuple(rows) for segment, rows in events.items()}


def read_weak(paths: Iterable[Path], vocabulary: Vocabulary) -> dict[str, tuple[int, ...]]:
    """Clip labels by segment, of tables as AudioSet's `*_segments.csv`.

    A line is: id of the recording, where the clip begins and ends in it in seconds, its labels in
    quotes with commas between (mids or names without a comma). Lines from # on are comments. The
    segment is the id, an underscore and the beginning in ms, as in AudioSet Strong.

    Raises `CorpusError` naming file and line for what is no such line, the labels that are not in
    the class list, and the clips that are there twice.
    """
    weak: dict[str, tuple[int, ...]] = {}
    for path in paths:
        strange: set[str] = set()
        twice: dict[str, None] = {}
        with opened(path) as file:
            for number, row in enumerate(csv.reader(file, skipinitialspace=True), start=1):
                if not row or row[0].startswith("#"):
                    continue
                segment, labels = _weak_line(row, f"{path}, line {number}")
                if segment in weak:
                    twice[segment] = None
                known = [label for label in labels if label in vocabulary.places]
                strange |= set(labels) - set(known)
                weak[segment] = tuple(vocabulary.places[label] for label in known)
        if strange:
            raise CorpusError(vocabulary.refusal(strange, str(path)))
        if twice:
            raise CorpusError(f"{path}: {first_few(twice, 'clip')} given twice")
    return weak


@contextmanager
def opened(path: Path) -> Iterator[IO[str]]:
    """A table's text. Raises `CorpusError` for a file that cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(path, error) from None


def _rows(path: Path) -> Iterator[tuple[Sequence[str], str]]:
    """Rows in the order of `STRONG_COLUMNS`, and where they are."""
    with opened(path) as file:
        table = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        heading = next(table, [])
        for column in STRONG_COLUMNS:
            if column not in heading:
                raise CorpusError(f"{path}: no column {column!r} in {heading}")
        places = [heading.index(column) for column in STRONG_COLUMNS]
        for number, row in enumerate(table, start=2):
            if len(row) <= max(places):
                if row:
                    raise CorpusError(f"{path}, line {number}: too few columns: {row}")
                continue
            yield [row[i] for i in places], f"{path}, line {number}"


def _times(row: Sequence[str], place: str) -> tuple[float, float]:
    try:
        onset_s, offset_s = float(row[1]), float(row[2])
        fits = 0 <= onset_s <= offset_s < math.inf
    except ValueError:
        fits = False
    if not fits:
        raise CorpusError(f"{place}: times are finite with 0 <= start <= end, got {list(row)}")
    return onset_s, offset_s


def _weak_line(row: Sequence[str], place: str) -> tuple[str, list[str]]:
    try:
        recording, start_s, _, *labels = row
        start_ms = round(1000 * float(start_s))
        fits = bool(recording and labels)
    except (ValueError, OverflowError):
        fits = False
    if not fits:
        raise CorpusError(f'{place}: a line is id, start, end, "labels"; got {list(row)}')
    names = [label.strip() for label in ",".join(labels).split(",")]
    return f"{recording}_{start_ms}", [name for name in names if name]
