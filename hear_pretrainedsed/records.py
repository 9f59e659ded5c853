"""The cache folder and its record of the sha256 of every weights file that was loaded.

Published hashes are not known: the first load of a file records its own, later ones compare.
"""

import fcntl
import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

FRESH_NS = 2_000_000_000  # a file this young may change again within one tick of its mtime
RECORDS_NAME = "sha256.json"


def cache_folder() -> Path:
    """Folder of the files: $HEAR_PRETRAINEDSED_HOME, else hear_pretrainedsed in the XDG cache."""
    if home := os.environ.get("HEAR_PRETRAINEDSED_HOME"):
        return Path(home).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME", "")  # relative: to be ignored, says its specification
    return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "hear_pretrainedsed"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold this lock. Its file stays: to remove it would let two processes hold two locks."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class HashRecord:
    """The sha256 of a file, the first one recorded for it (None: now first), and equal files."""

    key: str
    sha256: str
    recorded: str | None
    twins: tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    sha256: str
    n_bytes: int
    mtime_ns: int  # -1 while the file is too young for its mtime to tell two versions apart


def record_sha256(path: str | Path) -> HashRecord:
    """Record the sha256 of a file at its first load; compare, and warn of changes, at later ones.

    Records are in `sha256.json` in the cache folder. The key of a file in that folder is its name:
    a published file, whose first hash stays until its entry is removed, so that every load of other
    bytes warns. The key of a file elsewhere is its absolute path: the user's own, whose change is
    told once. Files of different names and equal bytes warn too. A file with the size and mtime of
    its entry is not hashed again. Raises OSError if `path` cannot be read, and nothing else.
    """
    path, folder = Path(path), cache_folder()
    parent = path.parent.resolve()
    published = parent == folder.resolve()
    key = path.name if published else str(parent / path.name)
    records = _read_records(folder) or {}
    old = records.get(key)
    new = _measure(path, old)
    was = old.sha256 if old else None
    changed = was not in (None, new.sha256)
    if changed:
        accept = f"if that is meant, remove its entry from {folder / RECORDS_NAME}"
        then = accept if published else "from now on that is its recorded one"
        warnings.warn(f"{key}: sha256 was {was}, is {new.sha256}; {then}", stacklevel=2)
    if new != old and not (changed and published):
        _save_entry(folder, key, new)
    same = [k for k, entry in records.items() if entry.sha256 == new.sha256]
    twins = [k for k in same if Path(k).name != path.name and os.path.exists(folder / k)]
    if twins:
        others = ", ".join(twins)
        warnings.warn(f"{key} has the bytes of {others}: is it what its name says?", stacklevel=2)
    return HashRecord(key, new.sha256, was, tuple(twins))


def known_sha256(path: Path) -> str:
    """The sha256 of a file in the cache folder, from its record while that still fits the file."""
    known = (_read_records(path.parent) or {}).get(path.name)
    return _measure(path, known).sha256


def forget_sha256(path: Path) -> None:
    """Take a file of the cache folder out of the record: its next content is its first."""
    folder = cache_folder()
    with locked(folder / f"{RECORDS_NAME}.lock"):
        records = _read_records(folder) or {}
        if records.pop(path.name, None) is not None:
            _write_records(folder, records)


def _measure(path: Path, known: _Entry | None) -> _Entry:
    with open(path, "rb") as file:
        stat = os.fstat(file.fileno())
        if known and (known.n_bytes, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return known
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    is_young = time.time_ns() - stat.st_mtime_ns < FRESH_NS
    return _Entry(digest, stat.st_size, -1 if is_young else stat.st_mtime_ns)


def _read_records(folder: Path) -> dict[str, _Entry] | None:
    """Read all entries; None if the file is there and cannot be used."""
    try:
        content = json.loads((folder / RECORDS_NAME).read_text(encoding="utf-8"))
        return {str(key): _Entry(**entry) for key, entry in content.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _save_entry(folder: Path, key: str, entry: _Entry) -> None:
    path = folder / RECORDS_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{RECORDS_NAME}.lock"):
            records = _read_records(folder)
            if records is None:
                aside = path.with_suffix(".json.unusable")
                os.replace(path, aside)
                warnings.warn(f"{path} was unusable: moved to {aside}, begun anew", stacklevel=3)
            _write_records(folder, (records or {}) | {key: entry})
    except OSError as error:  # a cache folder that others share may be read-only
        warnings.warn(f"cannot record the sha256 of {key} in {path} ({error})", stacklevel=3)


def _write_records(folder: Path, records: Mapping[str, _Entry]) -> None:
    new = folder / f"{RECORDS_NAME}.part"
    content = {key: asdict(entry) for key, entry in records.items()}
    new.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(new, folder / RECORDS_NAME)
