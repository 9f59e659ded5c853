"""FSD50K: clip labels of its CSVs; its 44.1 kHz recordings are kept at 16 kHz, as FLAC.

`dev.csv` or `eval.csv` have a heading: fname (a number), labels (names with commas between), mids,
and in dev.csv split (train or val). Classes are those of its `vocabulary.csv`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import soundfile

from hear_pretrainedsed.events import GRID
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
    """Clips of FSD50K: `audio` folders, `weak` CSVs, `classes`, its vocabulary.csv."""
    require(request, "fsd50k", ("audio", "weak", "classes"), ())
    vocabulary = open_vocabulary(str(request.classes))
    weak: dict[str, tuple[int, ...]] = {}
    for path in request.weak:
        _read(path, vocabulary, weak)
    paths = audio_below(request.audio)

    def found() -> Iterator[Found]:
        for name, labels in weak.items():
            if name in paths:
                yield Found(name, paths[name], None, labels)

    missing = (name for name in weak if name not in paths)
    return listing("fsd50k", vocabulary, found(), read_at_16k, missing, request.weak)


def _read(path: Path, vocabulary: Vocabulary, weak: dict[str, tuple[int, ...]]) -> None:
    strange: set[str] = set()
    twice: dict[str, None] = {}
    with opened(path) as file:
        table = csv.DictReader(file)
        for column in ("fname", "labels"):
            if column not in (table.fieldnames or ()):
                raise CorpusError(f"{path}: no column {column!r} in {table.fieldnames}")
        for row in table:
            labels = [label.strip() for label in (row["labels"] or "").split(",")]
            strange |= {label for label in labels if label and label not in vocabulary.places}
            if row["fname"] in weak:
                twice[row["fname"]] = None
            known = (label for label in labels if label in vocabulary.places)
            weak[row["fname"]] = tuple(vocabulary.places[label] for label in known)
    if strange:
        raise CorpusError(vocabulary.refusal(strange, str(path)))
    if twice:
        raise CorpusError(f"{path}: {first_few(twice, 'clip')} given twice")


def read_at_16k(path: str) -> bytes:
    """A file's first channel at 16 kHz, as FLAC of 16 bits."""
    audio = decode(read_file(path))
    out = io.BytesIO()
    soundfile.write(out, audio, GRID.sample_rate, format="FLAC", subtype="PCM_16")
    return out.getvalue()
