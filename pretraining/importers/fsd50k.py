"""FSD50K: clip labels of its CSVs; its 44.1 kHz recordings are kept at 16 kHz, as FLAC.

`dev.csv` or `eval.csv` have a heading: fname (a number), labels (names with commas between), mids,
and in dev.csv split (train or val), by which clips can be picked. Classes are those of its
`vocabulary.csv`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import soundfile

from hear_pretrainedsed.events import GRID
from hear_pretrainedsed.registry import unknown
from pretraining.clips import decode
from pretraining.corpus import CorpusError
from pretraining.importers.listing import (
    Found,
    Listing,
    Request,
    audio_below,
    listing,
    read_file,
    require,
)
from pretraining.importers.tables import opened
from pretraining.vocabulary import Vocabulary, first_few, open_vocabulary


def list_fsd50k(request: Request) -> Listing:
    """Clips of FSD50K: `audio` folders, `weak` CSVs, `classes`, its vocabulary.csv, `split`."""
    require(request, "fsd50k", ("audio", "weak", "classes"), ("split",))
    vocabulary = open_vocabulary(str(request.classes))
    weak: dict[str, tuple[int, ...]] = {}
    for path in request.weak:
        _read(path, vocabulary, weak, request.split)
    paths = audio_below(request.audio)

    def found() -> Iterator[Found]:
        for name, labels in weak.items():
            if name in paths:
                yield Found(name, paths[name], None, labels)

    missing = (name for name in weak if name not in paths)
    return listing("fsd50k", vocabulary, found(), read_at_16k, missing, request.weak)


def _read(
    path: Path, vocabulary: Vocabulary, weak: dict[str, tuple[int, ...]], split: str | None
) -> None:
    strange: set[str] = set()
    twice: dict[str, None] = {}
    with opened(path) as file:
        rows = _picked(read_rows(file, path)[1], path, split)
    for row in rows:
        labels = [label.strip() for label in row["labels"].split(",")]
        strange |= {label for label in labels if label and label not in vocabulary.places}
        if row["fname"] in weak:
            twice[row["fname"]] = None
        known = (label for label in labels if label in vocabulary.places)
        weak[row["fname"]] = tuple(vocabulary.places[label] for label in known)
    if strange:
        raise CorpusError(vocabulary.refusal(strange, str(path)))
    if twice:
        raise CorpusError(f"{path}: {first_few(twice, 'clip')} given twice")


def read_rows(lines: Iterable[str], path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of a table of clip labels, and its rows, each with a text for every column.

    Raises `CorpusError` naming the column that is missing, or the line of a row with too few or too
    many fields, without a name, or with a quote that is left open.
    """
    table = csv.reader(lines, strict=True)
    rows = []
    line = 1  # where a row begins, which may go on over several
    try:
        columns = next(table, [])
        for column in ("fname", "labels"):
            if column not in columns:
                raise CorpusError(f"{path}: no column {column!r} in {columns}")
        line = table.line_num + 1
        for fields in table:
            if fields:
                rows.append(_row(fields, columns, f"{path}, line {line}"))
            line = table.line_num + 1
    except csv.Error as error:
        told = f"{path}, line {line}: no row of a CSV, as by a quote left open"
        raise CorpusError(f"{told}: {error}") from None
    return columns, rows


def _row(fields: list[str], columns: list[str], place: str) -> dict[str, str]:
    if len(fields) != len(columns):
        told = ", ".join(columns)
        raise CorpusError(f"{place}: a row is {told}; got {fields}")
    row = dict(zip(columns, fields, strict=True))
    if not row["fname"]:
        raise CorpusError(f"{place}: no fname; got {fields}")
    return row


def _picked(rows: list[dict[str, str]], path: Path, split: str | None) -> list[dict[str, str]]:
    """The rows of a split; None: all."""
    if split is None or not rows:
        return rows
    if "split" not in rows[0]:
        raise CorpusError(f"{path}: no column 'split' in {list(rows[0])}, and --split is {split}")
    there = sorted({row["split"] for row in rows})
    if split not in there:
        raise CorpusError(f"{path}: {unknown('split', split, there)}")
    return [row for row in rows if row["split"] == split]


def read_at_16k(path: str) -> bytes:
    """A file's first channel at 16 kHz, as FLAC of 16 bits."""
    audio = decode(read_file(path))
    out = io.BytesIO()
    soundfile.write(out, audio, GRID.sample_rate, format="FLAC", subtype="PCM_16")
    return out.getvalue()
