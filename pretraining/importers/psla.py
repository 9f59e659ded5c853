"""PSLA's data files: {"data": [{"wav": path, "labels": "mid,mid"}, ...]}.

Files with enhanced labels have the same form and take their place. A path is as it is written, or
from the data file's folder; with folders of audio, files are looked for there by name instead.
Classes are those of the `class_labels_indices.csv` that PSLA has beside its data files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from pretraining.corpus import CorpusError
from pretraining.importers.listing import (
    Found,
    Listing,
    Request,
    audio_below,
    listing,
    read_file,
    require,
    unreadable,
)
from pretraining.vocabulary import open_vocabulary

Entry = tuple[Path, list[str]]  # the file as it is written, its labels


def list_psla(request: Request) -> Listing:
    """Clips of PSLA's data files: `weak` JSON, `classes`, `audio` folders if the files moved."""
    require(request, "psla", ("weak",), ("audio",))
    vocabulary = open_vocabulary(request.classes or "audioset_527")
    entries: list[Entry] = []
    for path in request.weak:
        added = _read(path)
        strange = {label for _, labels in added for label in labels} - set(vocabulary.places)
        if strange:
            raise CorpusError(vocabulary.refusal(strange, str(path)))
        entries += added
    moved = audio_below(request.audio) if request.audio else None
    missing: list[str] = []

    def found() -> Iterator[Found]:
        for wav, labels in entries:
            there = moved.get(wav.stem) if moved is not None else _if_file(wav)
            if there is None:
                missing.append(wav.stem)
            else:
                places = tuple(vocabulary.places[label] for label in labels)
                yield Found(wav.stem, there, None, places)

    rows = list(found())
    return listing("psla", vocabulary, rows, read_file, missing, request.weak)


def _read(path: Path) -> list[Entry]:
    """Entries of a data file, their paths from its folder."""
    try:
        rows = json.loads(path.read_text("utf-8"))["data"]
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f'{path}: not of the form {{"data": [...]}}: {error}') from None
    out = []
    for number, row in enumerate(rows):
        try:
            wav, labels = path.parent / row["wav"], row["labels"].split(",")
        except (KeyError, TypeError, AttributeError):
            raise CorpusError(f"{path}: entry {number} has no wav and labels: {row}") from None
        out.append((wav, [label.strip() for label in labels if label.strip()]))
    return out


def _if_file(path: Path) -> str | None:
    return os.path.abspath(path) if os.path.isfile(path) else None
