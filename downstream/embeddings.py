"""audio -> frames of a checkpoint, made once and kept.

What is kept is keyed by content: the weights' sha256, the audio's, and everything that the frames
depend on (`FrameSpec`). It is one file of rows that is only ever appended to, so that an
interrupted run goes on where it was, and it is read memory-mapped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np
import torch
from torch import Tensor

from downstream.tasks.task import Clip
from hear_pretrainedsed import __version__
from hear_pretrainedsed.api import load_model
from hear_pretrainedsed.audio import read_audio
from hear_pretrainedsed.fetch import fetch
from hear_pretrainedsed.frames import FrameGrid
from hear_pretrainedsed.memory import in_smaller_batches
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.options import Layers
from hear_pretrainedsed.records import known_sha256, locked
from hear_pretrainedsed.registry import get_checkpoint

GRID = FrameGrid()
_ROWS, _INDEX = "frames.bin", "index.jsonl"
_WINDOWS_AT_ONCE = {"cpu": 8, "cuda": 64}

Progress = Callable[[int, int], None]  # clips done, clips in all


@dataclass(frozen=True)
class FrameSpec:
    """Which frames of a checkpoint: fields as in `hear_pretrainedsed.options.Options`.

    stored: precision on disk, "float32" or "float16" (stacks of layers are large).
    """

    layer: Layers = None
    windowing: str = "reference"
    precision: str = "fp32"
    concat_mel: bool = False
    stored: str = "float32"


@dataclass(frozen=True)
class Weights:
    """A checkpoint's name, its file, and the sha256 of it."""

    checkpoint: str
    path: Path
    sha256: str


def find_weights(name: str) -> Weights:
    """The weights of a checkpoint by name, fetched if need be."""
    facts = get_checkpoint(name)
    path = fetch(facts.file, facts.url, facts.sha256)
    return Weights(name, path, known_sha256(path))


class Frames:
    """Frames of many clips: `clip(file)` is (frames, dim), a view of the file on disk."""

    def __init__(self, folder: Path) -> None:
        index = _read_index(folder)
        self.dim: int = index[0]["dim"]
        dtype = np.dtype(index[0]["dtype"])
        n_rows = sum(entry["n_frames"] for entry in index)
        # "c": torch wants arrays that it could write to; what is written never reaches the file
        self._rows = np.memmap(folder / _ROWS, dtype, mode="c", shape=(n_rows, self.dim))
        ends = np.cumsum([entry["n_frames"] for entry in index]).tolist()
        self._place = {
            entry["file"]: (end - entry["n_frames"], end)
            for entry, end in zip(index, ends, strict=True)
        }

    def clip(self, file: str) -> np.ndarray:
        """Frames (frames, dim) of one clip, as stored."""
        first, end = self._place[file]
        return self._rows[first:end]

    def n_frames(self, file: str) -> int:
        """How many frames a clip has."""
        first, end = self._place[file]
        return end - first

    def join(self, files: Sequence[str]) -> Tensor:
        """Frames of some clips one after the other, (frames, dim), float32, in memory."""
        out = np.empty((sum(map(self.n_frames, files)), self.dim), np.float32)
        first = 0
        for file in files:
            part = self.clip(file)
            out[first : first + len(part)] = part
            first += len(part)
        return torch.from_numpy(out)


@dataclass(frozen=True)
class FrameSource:
    """Frames of one checkpoint for one task's clips, computed when first asked for.

    batch_size: windows at a time; None: auto. Halved when memory runs out.
    """

    weights: Weights
    clips: Sequence[Clip]
    cache: Path
    device: str = "cpu"
    progress: Progress | None = None
    batch_size: int | None = None

    def frames(self, spec: FrameSpec) -> Frames:
        """The frames, from the cache or computed now."""
        folder = self.cache / self._key(spec)
        if not folder.is_dir():
            self.cache.mkdir(parents=True, exist_ok=True)
            with locked(self.cache / f"{folder.name}.lock"):
                if not folder.is_dir():  # another process may have made it meanwhile
                    self._compute(spec, folder)
        return Frames(folder)

    def _key(self, spec: FrameSpec) -> str:
        found = hashlib.sha256()
        facts = {"weights": self.weights.sha256, "version": __version__, **asdict(spec)}
        found.update(json.dumps(facts, sort_keys=True).encode())
        for clip in self.clips:
            found.update(f"{clip.file}\0{_audio_sha256(clip.path)}\0".encode())
        return f"{self.weights.checkpoint}-{found.hexdigest()[:32]}"

    def _compute(self, spec: FrameSpec, folder: Path) -> None:
        part = folder.with_name(f"{folder.name}.part")
        part.mkdir(exist_ok=True)
        n_done = _resume(part)
        model = self._model(spec)
        with (part / _ROWS).open("ab") as rows, (part / _INDEX).open("a") as index:
            for group, frames in _frames_of(model, self.clips[n_done:]):
                for clip, one in zip(group, frames, strict=True):
                    with np.errstate(over="ignore"):  # refused in the next line
                        array = one.cpu().numpy().astype(spec.stored)
                    if not np.isfinite(array).all():
                        raise ValueError(f"{clip.path}: frames that are no finite {spec.stored}")
                    _append(rows, index, clip.file, array)
                    n_done += 1
                if self.progress:
                    self.progress(n_done, len(self.clips))
        os.replace(part, folder)

    def _model(self, spec: FrameSpec) -> SEDModel:
        layer = list(spec.layer) if isinstance(spec.layer, tuple) else spec.layer
        return load_model(
            self.weights.path,
            checkpoint=self.weights.checkpoint,
            device=self.device,
            layer=layer,
            windowing=spec.windowing,
            precision=spec.precision,
            concat_mel=spec.concat_mel,
            batch_size=self.batch_size,
        )


def _frames_of(
    model: SEDModel, clips: Sequence[Clip]
) -> Iterator[tuple[Sequence[Clip], Sequence[Tensor]]]:
    """Groups of clips of one length with their frames; the next group is decoded meanwhile."""
    size = model.options.batch_size or _WINDOWS_AT_ONCE[model.device.type]
    groups = list(_groups(clips, size))
    with ThreadPoolExecutor(1) as decoder:
        waiting = [decoder.submit(_read, group) for group in groups[:2]]
        for number, group in enumerate(groups):
            audio = waiting.pop(0).result()
            if number + 2 < len(groups):
                waiting.append(decoder.submit(_read, groups[number + 2]))
            yield group, _computed(model, group, audio)


def _computed(model: SEDModel, group: Sequence[Clip], audio: Sequence[Tensor]) -> list[Tensor]:
    """Frames (frames, dim) of each clip; when memory runs out, half as many windows at a time.

    Later groups are computed with as few. Raises `MemoryError` when a single window is too much.
    """
    n_windows = [model.n_windows(len(one)) for one in audio]

    @torch.inference_mode()
    def frames() -> list[Tensor]:
        return [x for part in _parts(audio, n_windows, model) for x in model.embeddings(part)]

    try:
        return in_smaller_batches(model, sum(n_windows), frames)
    except MemoryError as error:
        raise MemoryError(f"{group[0].path}: {error}") from None


def _parts(audio: Sequence[Tensor], n_windows: Sequence[int], model: SEDModel) -> Iterator[Tensor]:
    """Neighbours of one length as (clips, samples), of no more windows than a batch has."""
    size = model.options.batch_size or sum(n_windows)
    for _, same in groupby(zip(audio, n_windows, strict=True), key=lambda row: len(row[0])):
        rows, (n, *_) = zip(*same, strict=True)
        step = max(1, size // n)
        yield from (torch.stack(rows[i : i + step]) for i in range(0, len(rows), step))


def _groups(clips: Sequence[Clip], n_windows: int) -> Iterator[list[Clip]]:
    """Neighbours of one length, together about `n_windows` windows."""
    for duration_s, same in groupby(clips, key=lambda clip: clip.duration_s):
        size = max(1, int(n_windows * GRID.window_samples / GRID.sample_rate / duration_s))
        rows = list(same)
        yield from (rows[i : i + size] for i in range(0, len(rows), size))


def _read(group: Sequence[Clip]) -> list[Tensor]:
    return [read_audio(clip.path) for clip in group]


def _audio_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_frames(folder: Path, frames: Mapping[str, np.ndarray]) -> None:
    """Frames {file: (frames, dim)} of one type, as `Frames` reads them."""
    folder.mkdir(parents=True)
    with (folder / _ROWS).open("ab") as rows, (folder / _INDEX).open("a") as index:
        for file, array in frames.items():
            _append(rows, index, file, array)


def _append(rows: BinaryIO, index: TextIO, file: str, frames: np.ndarray) -> None:
    """Add a clip's frames (frames, dim); the rows reach the disk before the line about them."""
    rows.write(frames.tobytes())
    rows.flush()
    os.fsync(rows.fileno())
    entry = {"file": file, "n_frames": len(frames), "dim": frames.shape[1]}
    index.write(json.dumps(entry | {"dtype": frames.dtype.name}) + "\n")
    index.flush()


def _read_index(folder: Path) -> list[dict[str, object]]:
    lines = (folder / _INDEX).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]  # what no line end follows was cut off


def _resume(part: Path) -> int:
    """Clips that an interrupted run has finished; what it left of the next one is cut off."""
    rows, index = part / _ROWS, part / _INDEX
    if not (rows.is_file() and index.is_file()):
        rows.unlink(missing_ok=True)
        index.unlink(missing_ok=True)
        return 0
    done = _read_index(part)
    n_bytes = sum(e["n_frames"] * e["dim"] * np.dtype(e["dtype"]).itemsize for e in done)
    os.truncate(rows, n_bytes)
    text = "".join(json.dumps(entry) + "\n" for entry in done)
    index.write_text(text, encoding="utf-8")
    return len(done)
