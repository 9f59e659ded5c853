"""sha256 of a task's recordings, of which results depend as much as of its labels.

A file is read once: its hash is recorded in the cache folder (`audio/`, one record a task folder)
and holds while the file's size, time of change and time of its entry's change (which no copying
tool sets back) stay what they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from hear_pretrainedsed.records import FRESH_NS, cache_folder

_N_THREADS = 8

_Facts = tuple[int, int, int]  # bytes, mtime (ns), ctime (ns)
_Entry = tuple[str, _Facts]  # sha256, of a file with these facts


def audio_hashes(folder: Path, paths: Sequence[Path]) -> list[str | None]:
    """The sha256 of each file of a task in this folder; None for a file that is not there."""
    record = cache_folder() / "audio" / f"{_name(folder)}.json"
    known = _read(record)
    keys = [os.path.abspath(path) for path in paths]
    with ThreadPoolExecutor(_N_THREADS) as threads:
        found = dict(zip(keys, threads.map(_entry, keys, map(known.get, keys)), strict=True))
    now_ns = time.time_ns()
    settled = {
        key: entry
        for key, entry in found.items()
        if entry and now_ns - max(entry[1][1:]) >= FRESH_NS  # else its times may not tell a change
    }
    if any(known.get(key) != entry for key, entry in settled.items()):
        _write(record, known | settled)
    return [entry and entry[0] for entry in map(found.get, keys)]


def _entry(path: str, known: _Entry | None) -> _Entry | None:
    try:
        if known and known[1] == _facts(os.stat(path)):
            return known
        with open(path, "rb") as file:
            facts = _facts(os.fstat(file.fileno()))
            return _sha256(file), facts
    except FileNotFoundError:
        return None


def _facts(stat: os.stat_result) -> _Facts:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _sha256(file: BinaryIO) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _name(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]


def _read(record: Path) -> dict[str, _Entry]:
    """What is recorded; nothing where that cannot be used, since it can be made again."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return {key: (str(sha256), (a, b, c)) for key, (sha256, (a, b, c)) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _write(record: Path, entries: dict[str, _Entry]) -> None:
    part = record.with_name(f"{record.name}.{uuid.uuid4().hex}.part")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(entries), encoding="utf-8")
        os.replace(part, record)
    except OSError:  # a folder that cannot be written to costs time alone: hashes are made again
        with suppress(OSError):
            part.unlink()
