"""A folder of audio in any format, with AudioSet Strong's events, AudioSet's clip labels, or both.

A clip's audio is the file of its segment's name or its recording's (with or without the letter Y
before it), anywhere in the folders. Clips of both tables have events and clip labels; those of the
events alone have their events' classes as clip labels.
"""

from __future__ import annotations

from collections.abc import Iterator

from pretraining.importers.listing import (
    Found,
    Listing,
    Request,
    at_least_one,
    audio_below,
    listing,
    pick,
    read_file,
    require,
    weak_of,
)
from pretraining.importers.tables import read_strong, read_weak
from pretraining.vocabulary import open_vocabulary


def list_folder(request: Request) -> Listing:
    """Clips of a folder: `audio` folders, `strong` TSV, `weak` CSV, `classes`."""
    require(request, "folder", ("audio",), ("strong", "weak"))
    at_least_one(request, "folder", "strong", "weak")
    default = "audioset_strong_train" if request.strong else "audioset_527"
    vocabulary = open_vocabulary(request.classes or default)
    strong = read_strong(request.strong, vocabulary) if request.strong else {}
    weak = read_weak(request.weak, vocabulary)
    paths = audio_below(request.audio)
    segments = [*strong, *(segment for segment in weak if segment not in strong)]
    stems = {segment: pick(segment, paths) for segment in segments}

    def found() -> Iterator[Found]:
        for segment, stem in stems.items():
            if stem is not None:
                events = strong.get(segment)
                labels = weak[segment] if segment in weak else weak_of(events or ())
                yield Found(stem, paths[stem], events, labels)

    missing = (segment for segment, stem in stems.items() if stem is None)
    tables = (*request.strong, *request.weak)
    return listing("folder", vocabulary, found(), read_file, missing, tables)
