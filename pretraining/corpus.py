"""A corpus on disk: encoded audio with events and clip labels, read at random.

A corpus is one folder:

- `corpus-train.array_record-00000-of-00042`, ...: the shards, a tensorflow-datasets builder folder
  with `dataset_info.json` and `features.json`. A record holds a clip's name, its audio as it came
  (wav, flac, ogg, mp3 bytes), its events and its clip labels. TensorFlow is not needed to read it.
- `index.npz`: names, events, clip labels and durations of all clips, so that sampling weights need
  no audio. Times are exact here; the format of the records has 32 bits for them.
- `manifest.json`: counts, hours, seconds by class, what was missing, sources, sha256 of each shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hear_pretrainedsed.progress import Progress
from hear_pretrainedsed.registry import unknown
from pretraining.clip_index import ClipIndex, IndexEvent, Names

FORMAT = 1
NAME, SPLIT = "corpus", "train"
MANIFEST, INDEX = "manifest.json", "index.npz"

_READ_BYTES = 1 << 22


class CorpusError(ValueError):
    """A corpus that cannot be used or made; one line that names it and the reason."""


@dataclass(frozen=True)
class Record:
    """A clip: encoded audio, events (onset_s, offset_s, class index) and classes of the whole clip.

    `events` is None where only the whole clip is labelled.
    """

    name: str
    audio: bytes
    events: tuple[IndexEvent, ...] | None
    weak: tuple[int, ...]


class Corpus:
    """Clips by number. May be pickled and read in several processes: each opens the shards anew."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], index: ClipIndex) -> None:
        self.folder = folder
        self.manifest = manifest
        self.index = index
        self._source: Sequence[Mapping[str, Any]] | None = None
        self._pid = 0

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Class names; events and clip labels are indices of them."""
        return tuple(self.manifest["labels"])

    @property
    def names(self) -> Names:
        """The clips' names, without extension."""
        return self.index.names

    @property
    def sha256(self) -> str:
        """Digest of names, audio, events and labels, whatever the number of shards."""
        return self.manifest["sha256"]

    @cached_property
    def has_events(self) -> bool:
        """Whether the events of every clip are known."""
        return bool(self.index.is_strong.all())

    def __getitem__(self, number: int) -> Record:
        """The clip. `CorpusError` where its shard is damaged."""
        number = range(len(self))[number]
        try:
            found = self._records()[number]
        except (RuntimeError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CorpusError(
                f"{self.folder}: clip {number} ({self.names[number]!r}) cannot be read from "
                f"{self._shard_of(number)}: {reason}; `hear-pretrainedsed corpus check` names "
                "every damaged shard"
            ) from None
        row = self.index.row(number)
        name = found["name"].decode()
        if name != row.name:
            raise CorpusError(
                f"{self.folder}: clip {number} is {name!r} in {self._shard_of(number)}, "
                f"{row.name!r} in {INDEX}"
            )
        return Record(name, found["audio"], row.events, row.weak)

    def require_labels(self, labels: Sequence[str]) -> None:
        """Refuse other classes, or another order, than the corpus has."""
        if tuple(labels) == self.labels:
            return
        pairs = enumerate(zip(labels, self.labels, strict=False))
        place, (one, other) = next(
            ((i, pair) for i, pair in pairs if pair[0] != pair[1]), (-1, ("", ""))
        )
        which = f": class {place} is {one!r}, in the corpus {other!r}" if place >= 0 else ""
        raise CorpusError(
            f"{self.folder}: its {len(self.labels)} classes are not the {len(labels)} wanted{which}"
        )

    def _records(self) -> Sequence[Mapping[str, Any]]:
        if self._source is None or self._pid != os.getpid():  # a fork's own readers
            import tensorflow_datasets as tfds

            builder = tfds.builder_from_directory(self.folder)
            self._source, self._pid = builder.as_data_source(split=SPLIT), os.getpid()
        return self._source

    def _shard_of(self, number: int) -> str:
        ends = np.cumsum([shard["n_clips"] for shard in self.manifest["shards"]])
        return self.manifest["shards"][int(np.searchsorted(ends, number, side="right"))]["file"]


def open_corpus(folder: str | os.PathLike[str]) -> Corpus:
    """Open a corpus; sizes of its files are compared with the manifest, nothing is decoded.

    Raises `CorpusError` for a folder that is none, is not complete, or has files of other sizes.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    for file in (*manifest["shards"], manifest["index"]):
        _check_size(folder, file)
    try:
        with np.load(folder / INDEX) as arrays:
            index = ClipIndex(**{name: arrays[name] for name in arrays.files})
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise CorpusError(f"{folder / INDEX}: damaged: {error}") from None
    if len(index) != manifest["n_clips"]:
        raise CorpusError(
            f"{folder}: {INDEX} has {len(index)} clips, {MANIFEST} {manifest['n_clips']}"
        )
    return Corpus(folder, manifest, index)


def check_corpus(folder: str | os.PathLike[str], progress: Progress | None = None) -> list[str]:
    """Compare the sha256 of every file with the manifest; a line for each that is not as written.

    Raises `CorpusError` for a folder that is no corpus.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    wanted = [*manifest["shards"], manifest["index"]]
    problems = []
    for number, file in enumerate(wanted):
        try:
            _check_size(folder, file)
            if sha256_of(folder / file["file"]) != file["sha256"]:
                problems.append(f"{folder / file['file']}: damaged: its sha256 is another")
        except (CorpusError, OSError) as error:
            problems.append(str(error))
        if progress is not None:
            progress(number + 1, len(wanted))
    return problems


def sha256_of(path: Path) -> str:
    """Digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        begun = folder.with_name(folder.name + ".part")
        hint = f"; its import was interrupted ({begun}): run it again" if begun.is_dir() else ""
        raise CorpusError(f"{folder}: no corpus, it has no {MANIFEST}{hint}")
    try:
        manifest = json.loads(path.read_text("utf-8"))
        known = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{path}: damaged: {error}") from None
    if known != FORMAT:
        raise CorpusError(f"{path}: {unknown('format of a corpus', known, [FORMAT])}")
    return manifest


def _check_size(folder: Path, file: Mapping[str, Any]) -> None:
    path = folder / file["file"]
    if not path.is_file():
        raise CorpusError(f"{path}: missing from the corpus")
    if (size := path.stat().st_size) != file["bytes"]:
        raise CorpusError(f"{path}: damaged: it has {size} bytes, {MANIFEST} says {file['bytes']}")
