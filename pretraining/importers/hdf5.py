"""The HDF5 files of the PaSST recipe for AudioSet, with AudioSet Strong's events or without.

A file has `audio_name` (a name with extension, "Y" and the recording's id), `mp3` (encoded audio,
uint8) and `target` (the 527 classes as packed bits, numpy.packbits). With tables of events the
clips are those of the tables, and their clip labels the classes of their events.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pretraining.corpus import CorpusError
from pretraining.importers.listing import (
    Found,
    Listing,
    Request,
    listing,
    pick,
    require,
    unreadable,
    weak_of,
)
from pretraining.importers.tables import read_strong
from pretraining.vocabulary import Vocabulary, first_few, open_vocabulary

Place = tuple[str, int]  # a file, row in it

_ROWS = 1 << 14  # of targets, unpacked at a time


def read_row(place: Place) -> bytes:
    """The encoded audio of a clip, as it is in the file."""
    path, row = place
    return _open(path, os.getpid())["mp3"][row].tobytes()


@lru_cache(maxsize=16)
def _open(path: str, pid: int) -> Any:
    """A file, opened once a process: HDF5's handles do not survive a fork."""
    import h5py

    return h5py.File(path, "r")


def list_hdf5(request: Request) -> Listing:
    """Clips of HDF5 files: `audio` files, `strong` TSV if there is one, `classes`."""
    require(request, "hdf5", ("audio",), ("strong",))
    default = "audioset_strong_train" if request.strong else "audioset_527"
    vocabulary = open_vocabulary(request.classes or default)
    places = _names(request.audio)
    if not request.strong:
        found = _with_targets(request.audio, places, vocabulary)
        return listing("hdf5", vocabulary, found, read_row, (), request.audio)
    strong = read_strong(request.strong, vocabulary)
    stems = {segment: pick(segment, places) for segment in strong}

    def with_events() -> Iterator[Found]:
        for segment, stem in stems.items():
            if stem is not None:
                yield Found(stem, places[stem], strong[segment], weak_of(strong[segment]))

    missing = (segment for segment, stem in stems.items() if stem is None)
    return listing("hdf5", vocabulary, with_events(), read_row, missing, request.strong)


def _names(paths: Sequence[Path]) -> dict[str, Place]:
    """Where each clip is, by name without extension."""
    places: dict[str, Place] = {}
    twice: dict[str, None] = {}
    for path in paths:
        file, whole_path = _checked(path), os.path.abspath(path)
        for row, text in enumerate(file["audio_name"][:]):
            name = os.path.splitext(text.decode() if isinstance(text, bytes) else str(text))[0]
            if name in places:
                twice[name] = None
            places[name] = (whole_path, row)
    if twice:
        raise CorpusError(f"{', '.join(map(str, paths))}: {first_few(twice, 'clip')} given twice")
    return places


def _checked(path: Path) -> Any:
    try:
        file = _open(str(path), os.getpid())
    except OSError as error:
        raise unreadable(path, error) from None
    for name in ("audio_name", "mp3"):
        if name not in file:
            raise CorpusError(f"{path}: no data set {name!r} in it, but {sorted(file)}")
    if len(file["audio_name"]) != len(file["mp3"]):
        sizes = len(file["audio_name"]), len(file["mp3"])
        raise CorpusError(f"{path}: {sizes[0]} names for {sizes[1]} clips")
    return file


def _with_targets(
    paths: Sequence[Path], places: dict[str, Place], vocabulary: Vocabulary
) -> Iterator[Found]:
    """Clips with the labels of `target`, file by file."""
    n_classes = len(vocabulary.labels)
    names = iter(places.items())
    for path in paths:
        file = _checked(path)
        n_bytes = -(-n_classes // 8)
        shape = file["target"].shape if "target" in file else None
        if shape != (len(file["mp3"]), n_bytes):
            raise CorpusError(
                f"{path}: target has the shape {shape}; {n_classes} classes of "
                f"{vocabulary.source} in packed bits are {(len(file['mp3']), n_bytes)}"
            )
        for first in range(0, len(file["mp3"]), _ROWS):
            bits = np.unpackbits(file["target"][first : first + _ROWS], axis=1)
            if bits[:, n_classes:].any():
                raise CorpusError(f"{path}: target has classes beyond the {n_classes} of the list")
            for row in bits:
                name, place = next(names)
                yield Found(name, place, None, tuple(np.flatnonzero(row).tolist()))
