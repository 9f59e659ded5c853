"""A folder of results: `results.jsonl`, one line a finished cell, and `cells/<id>.npz` beside it.

Several processes may write to one folder. A cell's arrays are complete before its line is there,
and what a killed run has left of a line is cut off.
"""

from __future__ import annotations

import errno
import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from downstream.cells import SCHEMA, Cell, Key, Measured, key_of, make_cell
from downstream.protocols.base import Found
from downstream.tables import Row, results_table, table
from downstream.tasks.task import Triple
from hear_pretrainedsed.events import whole_file
from hear_pretrainedsed.records import locked

__all__ = [
    "SCHEMA",
    "Cell",
    "Key",
    "Measured",
    "Row",
    "Store",
    "append",
    "key_of",
    "make_cell",
    "read",
    "read_arrays",
    "results_table",
    "table",
    "write_arrays",
]

_LINES, _LOCK, _ARRAYS = "results.jsonl", "results.lock", "cells"


class Store:
    """A folder of results, made if need be, and what was finished in it when it was opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._finished: dict[str, Cell] = {}
        self._seen: tuple[int, int] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Take in what other processes have finished meanwhile."""
        path = self.folder / _LINES
        if not path.is_file():
            return
        stat = os.stat(path)
        if (stamp := (stat.st_size, stat.st_mtime_ns)) != self._seen:
            self._finished = {cell.id: cell for cell in read(self.folder)}
            self._seen = stamp

    def finished(self, key: Key) -> Cell | None:
        """The cell of this key, if it is there: the same was asked for and run to its end."""
        return self._finished.get(key.id)

    def cell(self, cell_id: str) -> Cell:
        """The finished cell of this id."""
        return self._finished[cell_id]

    def append(self, cell: Cell, found: Found) -> None:
        """Keep a finished cell, its arrays first."""
        labels = list(cell.metrics[cell.main_metric].per_class)
        write_arrays(self.folder, cell.id, found, labels)
        self.append_line(cell)

    def append_line(self, cell: Cell) -> None:
        """Keep a finished cell without arrays."""
        append(self.folder, cell)
        self._finished[cell.id] = cell


def append(folder: Path, cell: Cell) -> None:
    """Add a cell's line in one write; half a line at the end of the file is cut off first."""
    path = Path(folder) / _LINES
    line = (cell.to_line() + "\n").encode()
    with locked(Path(folder) / _LOCK), open(path, "ab", buffering=0) as file:
        size = _mend(path)
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, size)
            raise


def _mend(path: Path) -> int:
    """Make a file of lines end with a line end; its size then."""
    with open(path, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if file.read() in (b"", b"\n"):
            return size
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if _is_cell(content[whole:]):
            file.write(b"\n")
            return size + 1
        warnings.warn(f"{path}: cut off half a line that a killed run has left", stacklevel=4)
        file.truncate(whole)
        return whole


def _is_cell(line: bytes) -> bool:
    try:
        Cell.from_line(line.decode())
    except ValueError:
        return False
    return True


def read(folder: Path) -> list[Cell]:
    """All finished cells of a folder; of those with one id the last one.

    Half a line at the end, which a killed run has left, is left out with a warning. Raises
    `ValueError`, naming file and line, for any other line that is no cell of this schema.
    """
    path = Path(folder) / _LINES
    if not path.is_file():
        return []
    *lines, rest = _content(path).split(b"\n")
    if rest and _is_cell(rest):
        lines.append(rest)
    elif rest:
        warnings.warn(f"{path}: left out half a line at its end", stacklevel=2)
    cells: dict[str, Cell] = {}
    for number, line in enumerate(lines, 1):
        try:
            cell = Cell.from_line(line.decode())
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        cells[cell.id] = cell
    return list(cells.values())


def _content(path: Path) -> bytes:
    """All bytes of the file of lines, not while another process is writing."""
    try:
        with locked(path.with_name(_LOCK)):
            return path.read_bytes()
    except OSError:  # a folder that cannot be written to has no writer either
        return path.read_bytes()


def write_arrays(folder: Path, cell_id: str, found: Found, labels: Sequence[str]) -> Path:
    """Test scores and events as `cells/<id>.npz`, whole or not at all.

    Scores are kept as logits in float16: near 0 and 1, where thresholds of PSDS lie, those are as
    fine as in between. Events keep all their digits. Raises `ValueError` for scores that are not in
    0..1.
    """
    files = [file for fold in found.folds for file in fold]
    path = Path(folder) / _ARRAYS / f"{cell_id}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {label: i for i, label in enumerate(labels)}
    rows = [(i, *event[:3]) for i, file in enumerate(files) for event in found.events[file]]
    with whole_file(path) as out:
        np.savez_compressed(
            out,
            labels=np.array(labels, dtype=str),
            files=np.array(files, dtype=str),
            n_frames=np.array([len(found.scores[file]) for file in files]),
            logits=np.concatenate([_logits(file, found.scores[file]) for file in files]),
            event_file=np.array([row[0] for row in rows], np.int32),
            event_s=np.array([row[1:3] for row in rows], np.float64).reshape(-1, 2),
            event_label=np.array([place[row[3]] for row in rows], np.int32),
        )
    return path


def _logits(file: str, scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.size and not (scores.min() >= 0 and scores.max() <= 1):
        raise ValueError(f"{file!r}: scores are from 0 to 1")
    with np.errstate(divide="ignore"):
        return (np.log(scores) - np.log1p(-scores)).astype(np.float16)


def read_arrays(
    folder: Path, cell_id: str
) -> tuple[dict[str, np.ndarray], dict[str, list[Triple]]]:
    """Scores {file: float32 (frames, classes)} and events by file that `write_arrays` kept."""
    path = Path(folder) / _ARRAYS / f"{cell_id}.npz"
    if not path.is_file():
        raise ValueError(f"no arrays of this cell: {path}")
    try:
        with np.load(path, allow_pickle=False) as kept:
            content: Mapping[str, Any] = {name: kept[name] for name in kept.files}
    except (ValueError, EOFError, BadZipFile, zlib.error):
        told = f"{path} is damaged: remove it and the cell's line, and the same command makes both"
        raise ValueError(told) from None
    files, labels = content["files"].tolist(), content["labels"].tolist()
    with np.errstate(over="ignore"):
        scores = 1 / (1 + np.exp(-content["logits"].astype(np.float32)))
    parts = np.split(scores, np.cumsum(content["n_frames"])[:-1])
    events: dict[str, list[Triple]] = {file: [] for file in files}
    columns = (content["event_file"], content["event_s"], content["event_label"])
    for file, (onset_s, offset_s), label in zip(*(c.tolist() for c in columns), strict=True):
        events[files[file]].append((onset_s, offset_s, labels[label]))
    return dict(zip(files, parts, strict=True)), events
