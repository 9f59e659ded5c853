"""Many recordings: names for what is written about each, progress, broken files, tight memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hear_pretrainedsed import __version__
from hear_pretrainedsed.audio import AudioError, audio_files, read_audio
from hear_pretrainedsed.memory import in_smaller_batches, out_of_memory
from hear_pretrainedsed.model import SEDModel

_STEM_BYTES = 200  # file systems take names of 255; a number, an ending and a `.part` come on top


@dataclass(frozen=True)
class Recording:
    """An input file, its name in tables, and what the names of its outputs begin with."""

    path: Path
    name: str
    stem: str

    def outputs(self, folder: Path) -> Path:
        """What the paths of its outputs in a folder begin with; their folder is made."""
        path = folder / self.stem
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def find_recordings(paths: Sequence[Path]) -> list[Recording]:
    """Recordings in files and folders, each with a name and a stem of its own.

    A file's name is its last part, below a given folder its path from there; where two files would
    share it, the later one's is its whole path, if need be from the root. Stems are names without
    ending, those of long names cut to 200 bytes; where two would share one, the later keeps its
    ending or gets a number. `ValueError` for what is not there.
    """
    found: list[Recording] = []
    seen: set[Path] = set()
    names: set[str] = set()
    stems: set[str] = set()
    for given in paths:
        if not given.exists():
            raise ValueError(f"no such file or folder: {given}")
        for path in audio_files([given]):
            if (real := Path(os.path.realpath(path))) in seen:
                continue
            seen.add(real)
            inner = path.relative_to(given) if given.is_dir() else Path(path.name)
            name = next(x for x in (inner.as_posix(), str(path), str(real)) if x not in names)
            names.add(name)
            found.append(Recording(path, name, _free_stem(inner, stems)))
    return found


def _free_stem(inner: Path, taken: set[str]) -> str:
    stem, number = _cut(inner.with_suffix("")), 1
    if stem.casefold() in taken:  # some file systems take X for x
        stem = _cut(inner)
    while (numbered := stem if number == 1 else f"{stem}-{number}").casefold() in taken:
        number += 1
    taken.add(numbered.casefold())
    return numbered


def _cut(path: Path) -> str:
    """The path with no more of its last part than leaves room for endings of outputs."""
    name = path.name
    while len(os.fsencode(name)) > _STEM_BYTES:
        name = name[:-1]
    return str(path.with_name(name))


class Run:
    """A model's work on many recordings, with a progress bar on stderr if that is a terminal."""

    def __init__(self, model: SEDModel, recordings: Sequence[Recording], shows_bar: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TimeRemainingColumn

        self.model = model
        self.recordings = recordings
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._bar = Progress(
            "{task.completed:.1f} of {task.total}",
            BarColumn(),
            TimeRemainingColumn(),
            "{task.fields[name]}",
            console=self._console,
            redirect_stdout=False,
            disable=not (shows_bar and sys.stderr.isatty()),
        )
        self._task = self._bar.add_task("", total=len(recordings), name="")
        self._share = 0.0  # of a recording that is one window
        model.frontend.register_forward_hook(self._end_chunk)

    def for_each(self, work: Callable[[Recording, Tensor], None]) -> int:
        """Do `work` on each recording and its audio (samples,); how many could not be processed.

        A recording that raises `AudioError`, or that memory does not hold, is named on stderr and
        skipped.
        """
        n_failed = 0
        with self._bar:
            for number, recording in enumerate(self.recordings):
                self._show(completed=number, name=recording.name)
                try:
                    with _quiet_decoders():
                        audio = read_audio(recording.path, self.model.sample_rate)
                    self._share = 1 / self.model.n_windows(len(audio))
                    work(recording, audio)
                except AudioError as error:
                    n_failed += 1
                    self.say(f"{error}")
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise
                    n_failed += 1
                    self.say(f"{recording.path}: not enough memory for it as a whole")
            self._show(completed=len(self.recordings), name="")
        if n_failed and len(self.recordings) > 1:
            self.say(f"{n_failed} of {len(self.recordings)} files could not be processed")
        return n_failed

    def compute(
        self, function: Callable[[Tensor], Tensor], recording: Recording, audio: Tensor
    ) -> np.ndarray:
        """`function` of audio (1, samples), for audio (samples,): (frames, dim), float32.

        When memory runs out, the model's batch size is halved, for this recording and the others.
        Raises `AudioError` when a single window is too much, and for samples so large that the
        model computes no numbers from them.
        """
        n_windows = self.model.n_windows(len(audio))
        with torch.no_grad():
            try:
                out = in_smaller_batches(self.model, n_windows, lambda: function(audio[None])[0])
            except MemoryError as error:
                raise AudioError(f"{recording.path}: {error}") from None
        found = out.float().cpu().numpy()
        if not np.isfinite(found).all():
            raise AudioError(
                f"{recording.path}: the model computes NaN or Inf from it; its samples reach "
                f"{float(audio.abs().max()):.3g}, and audio is in [-1, 1]"
            )
        return found

    def facts(self, recording: Recording, audio: Tensor) -> dict[str, object]:
        """What it takes to make a result again: recording, weights, options, version."""
        provenance, options = self.model.provenance, self.model.options
        return {
            "filename": recording.name,
            "duration_s": len(audio) / self.model.sample_rate,
            "checkpoint": provenance.get("checkpoint"),
            "weights": provenance.get("file"),
            "sha256": provenance.get("sha256"),
            "windowing": options.windowing,
            "precision": options.precision,
            "version": __version__,
        }

    def say(self, line: str) -> None:
        """One line on stderr, above the bar."""
        self._console.print(f"hear-pretrainedsed: {line}", markup=False)

    def _end_chunk(self, module: object, inputs: tuple[Tensor, ...], spec: Tensor) -> None:
        self._bar.advance(self._task, self._share * len(inputs[0]))

    def _show(self, completed: int, name: str) -> None:
        from rich.markup import escape

        self._bar.update(self._task, completed=completed, name=escape(name))


@contextmanager
def _quiet_decoders() -> Iterator[None]:
    """Nothing on stderr for a while: libmpg123 writes its notes on damaged MP3s there."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
