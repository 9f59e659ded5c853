"""Raw data of a task, as its authors publish it: folders, zip archives, single files."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO

import soundfile
from torch import Tensor

from downstream.tasks.checks import equal_by, first_few
from hear_pretrainedsed.audio import SAMPLE_RATE, AudioError, read_audio
from hear_pretrainedsed.containers import estimates_length

_DAMAGED = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError)
_HEAD_BYTES = 1 << 16
_UNKNOWN_FRAMES = 1 << 62  # libsndfile reports 2^63 - 1 for a FLAC stream without a length


@dataclass(frozen=True)
class Member:
    """A file: `name` is its path in the folder or archive `place`, with slashes."""

    name: str
    place: Path

    @property
    def file(self) -> str:
        """Its name without folders."""
        return PurePosixPath(self.name).name

    @property
    def stem(self) -> str:
        """Its name without folders and extension."""
        return PurePosixPath(self.name).stem

    @property
    def path(self) -> Path:
        """Where it is, if `place` is a folder."""
        return self.place / self.name


class Sources:
    """Files of several folders and zip archives; nothing is unpacked before it is read.

    Hidden files and what macOS adds to archives are left out. Raises `ValueError` for what is
    missing, or neither a folder, a zip archive nor a plain file.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._archives: dict[Path, zipfile.ZipFile] = {}
        self.members: list[Member] = []
        for path in map(Path, paths):
            self.members += [m for m in self._members(path) if not _is_hidden(m.name)]

    def __enter__(self) -> Sources:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for archive in self._archives.values():
            archive.close()

    def _members(self, path: Path) -> list[Member]:
        if path.is_dir():
            return _files_below(path)
        if not path.is_file():
            raise ValueError(f"{path}: no such file or folder")
        if path.suffix.lower() in (".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar"):
            raise ValueError(f"{path}: unpack it and give the folder; archives are read as .zip")
        if path.suffix.lower() != ".zip":
            return [Member(path.name, path.parent)]
        try:
            archive = self._archives[path] = zipfile.ZipFile(path)
        except zipfile.BadZipFile:
            raise ValueError(f"{path}: no zip archive, or one that was not loaded whole") from None
        return [Member(info.filename, path) for info in archive.infolist() if not info.is_dir()]

    def matching(self, pattern: str) -> dict[str, Member]:
        """Members by file name whose whole name fits a pattern from some folder on.

        Raises `ValueError` where two of them have one file name.
        """
        wanted = re.compile(rf"(?:.*/)?(?:{pattern})")
        found: dict[str, Member] = {}
        twice = []
        for member in self.members:
            if wanted.fullmatch(member.name):
                if member.file in found:
                    twice.append(f"{member.file} in {found[member.file].path} and {member.path}")
                found[member.file] = member
        if twice:
            raise ValueError(f"files that are there twice: {first_few(twice)}")
        return found

    def read_bytes(self, member: Member) -> bytes:
        """Its content."""
        if member.place not in self._archives:
            return member.path.read_bytes()
        try:
            return self._archives[member.place].read(member.name)
        except _DAMAGED as error:
            raise ValueError(f"{member.place}: {member.name}: {error}") from None

    def read_text(self, member: Member) -> str:
        """Its content as UTF-8, with or without a byte-order mark."""
        try:
            return self.read_bytes(member).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{member.path}: no UTF-8 text") from None

    def same_bytes(self, members: Iterable[Member]) -> list[list[Member]]:
        """Groups of files with equal bytes, whether in a folder or in an archive."""
        return equal_by(members, (self._n_bytes, self._head, self._sha256))

    def _n_bytes(self, member: Member) -> int:
        if member.place in self._archives:
            return self._archives[member.place].getinfo(member.name).file_size
        return member.path.stat().st_size

    def _head(self, member: Member) -> bytes:
        with self._opened(member) as file:
            return hashlib.sha256(file.read(_HEAD_BYTES)).digest()

    def _sha256(self, member: Member) -> bytes:
        with self._opened(member) as file:
            return hashlib.file_digest(file, "sha256").digest()

    @contextmanager
    def _opened(self, member: Member) -> Iterator[IO[bytes]]:
        archive = self._archives.get(member.place)
        try:
            with archive.open(member.name) if archive else member.path.open("rb") as file:
                yield file
        except _DAMAGED as error:
            raise ValueError(f"{member.place}: {member.name}: {error}") from None

    def read_audio(self, member: Member) -> Tensor:
        """Its audio (samples,), mono at 16 kHz; a temporary copy is made of what is in an archive.

        Raises `ValueError` naming the file.
        """
        if member.place not in self._archives:
            return read_audio(member.path)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, member.file)
            try:
                with self._archives[member.place].open(member.name) as packed:
                    with copy.open("wb") as file:
                        shutil.copyfileobj(packed, file, 1 << 20)
                return read_audio(copy)
            except AudioError as error:
                raise ValueError(str(error).replace(str(copy), str(member.path))) from None
            except _DAMAGED as error:
                raise ValueError(f"{member.place}: {member.name}: {error}") from None


def duration_s(path: Path, sample_rate: int | None = None) -> float:
    """Length of a recording, by its header if that says so; `ValueError` unless its rate fits."""
    try:
        info = soundfile.info(os.fspath(path))
    except (soundfile.LibsndfileError, OSError):
        raise ValueError(f"{path}: no audio that libsndfile reads, or damaged") from None
    if sample_rate is not None and info.samplerate != sample_rate:
        raise ValueError(f"{path}: {info.samplerate} Hz, wanted {sample_rate} Hz")
    if info.frames >= _UNKNOWN_FRAMES or (info.format == "MP3" and _is_guess(path)):
        return len(read_audio(path)) / SAMPLE_RATE
    return info.frames / info.samplerate


def _is_guess(path: Path) -> bool:
    with path.open("rb") as file:
        return estimates_length(file)


def _files_below(folder: Path) -> list[Member]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        found += [
            Member(Path(parent, name).relative_to(folder).as_posix(), folder)
            for name in sorted(names)
        ]
    return found


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)
