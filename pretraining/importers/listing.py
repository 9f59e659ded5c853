"""What an importer finds: clips with labels, where their audio is, what is missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hear_pretrainedsed.audio import EXTENSIONS, AudioError, read_part
from pretraining.clip_index import ClipIndex, IndexEvent, Labelled
from pretraining.corpus import CorpusError
from pretraining.vocabulary import Vocabulary, first_few


@dataclass(frozen=True)
class Request:
    """What the user has. Which of it an importer takes is in its documentation.

    audio: folders, or HDF5 files. strong: tables of events. weak: tables of clip labels. classes:
    a class list by name or in a file; None: the importer's own. split: of a table that tells one
    for each clip, those of this one; None: all.
    """

    audio: tuple[Path, ...] = ()
    strong: tuple[Path, ...] = ()
    weak: tuple[Path, ...] = ()
    classes: str | None = None
    split: str | None = None


class Found(NamedTuple):
    """A clip: its name, where its audio is (for the reader), its labels."""

    name: str
    place: Any
    events: tuple[IndexEvent, ...] | None
    weak: tuple[int, ...]


@dataclass(frozen=True)
class Listing:
    """Clips to write, in order.

    places: where the audio of each is, by whole paths, so that an import that goes on knows whether
    it is the same audio. read: place -> encoded audio; may be pickled, raises `OSError` or
    `AudioError`. missing: names of labelled clips without audio. sources: the label files.
    """

    importer: str
    labels: tuple[str, ...]
    index: ClipIndex
    places: Sequence[Any]
    read: Callable[[Any], bytes]
    missing: tuple[str, ...] = ()
    sources: tuple[Path, ...] = ()

    def part(self, first: int, end: int) -> Listing:
        """Some of the clips, without what is missing."""
        numbers = range(first, min(end, len(self.index)))
        places = self.places[first:end]
        return replace(self, index=self.index.rows(numbers), places=places, missing=(), sources=())


def listing(
    importer: str,
    vocabulary: Vocabulary,
    found: Iterable[Found],
    read: Callable[[Any], bytes],
    missing: Iterable[str],
    sources: Iterable[Path],
) -> Listing:
    """A listing, checked: `CorpusError` where no clip has audio or one is there twice."""
    places: list[Any] = []
    seen: set[str] = set()
    twice: dict[str, None] = {}

    def rows() -> Iterable[Labelled]:
        for name, place, events, weak in found:
            if name in seen:
                twice[name] = None
            seen.add(name)
            places.append(place)
            yield Labelled(name, events, tuple(sorted(set(weak))))

    index = ClipIndex.of(rows())
    gone, sources = tuple(missing), tuple(sources)
    names = ", ".join(str(path) for path in sources)
    if twice:
        raise CorpusError(f"{names}: {first_few(twice, 'clip')} given twice")
    if not places:
        raise CorpusError(f"{names}: no clip has audio; {first_few(gone, 'clip')} missing")
    return Listing(importer, vocabulary.labels, index, places, read, gone, sources)


def weak_of(events: Iterable[IndexEvent]) -> tuple[int, ...]:
    """The classes of a clip's events."""
    return tuple(sorted({number for _, _, number in events}))


def stems_of(segment: str) -> tuple[str, ...]:
    """Names that a segment's audio may have: its own, the recording's, that with a Y before it."""
    recording, _, start = segment.rpartition("_")
    if not start.isdigit() or not recording:
        return (segment, f"Y{segment}")
    return (segment, recording, f"Y{recording}", f"Y{segment}")


def pick(segment: str, there: Mapping[str, Any]) -> str | None:
    """The name under which a segment's audio is there, if it is; the most exact one."""
    return next((stem for stem in stems_of(segment) if stem in there), None)


def audio_below(folders: Iterable[Path]) -> dict[str, str]:
    """Paths of audio files in folders and below, by name without extension.

    Raises `CorpusError` for a folder that is not there, and for two files of one name.
    """
    found: dict[str, str] = {}
    twice: dict[str, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise CorpusError(f"{folder}: no such folder of audio")
        for parent, below, names in os.walk(os.path.abspath(folder)):
            below.sort()
            for name in sorted(names):
                stem, extension = os.path.splitext(name)
                if extension.lower() not in EXTENSIONS or name.startswith("."):
                    continue
                if stem in found:
                    twice[stem] = None
                found[stem] = os.path.join(parent, name)
    if twice:
        places = ", ".join(str(folder) for folder in folders)
        raise CorpusError(f"{places}: {first_few(twice, 'name')} shared by several files")
    return found


def read_file(path: str) -> bytes:
    """A file's bytes. Raises `OSError`, and `AudioError` for one that is seen to be cut short."""
    data = Path(path).read_bytes()
    read_part(path, 0, 1)
    return data


def require(request: Request, importer: str, needs: Sequence[str], takes: Sequence[str]) -> None:
    """Refuse a request that lacks what an importer needs, or has what it cannot use."""
    for name in needs:
        if not getattr(request, name):
            raise CorpusError(f"the importer {importer} needs --{name}")
    for name in ("audio", "strong", "weak", "split"):
        if getattr(request, name) and name not in (*needs, *takes):
            raise CorpusError(f"the importer {importer} has no use for --{name}")


def at_least_one(request: Request, importer: str, *names: str) -> None:
    """Refuse a request that has none of some fields."""
    if not any(getattr(request, name) for name in names):
        given = " or ".join(f"--{name}" for name in names)
        raise CorpusError(f"the importer {importer} needs {given}")


def unreadable(path: Path, error: Exception) -> CorpusError:
    """The error for a file that cannot be read at all."""
    reason = AudioError(str(error)) if not isinstance(error, OSError) else error.strerror or error
    return CorpusError(f"{path}: cannot be read: {' '.join(str(reason).split())}")
