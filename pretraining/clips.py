"""Clips of a corpus -> audio of one length with targets; a clip's depend on its draw alone."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hear_pretrainedsed.audio import AudioError
from hear_pretrainedsed.containers import estimates_length, holds_several, streamed
from hear_pretrainedsed.events import GRID
from hear_pretrainedsed.training.batch import Batch
from hear_pretrainedsed.training.chance import generator_for
from pretraining.clip_index import IndexEvent
from pretraining.corpus import Corpus, CorpusError, Record
from pretraining.encoding import encode, encode_weak

MAX_BROKEN = 0.01
"""Share of broken clips from which a run stops."""

_ATTEMPTS = 20  # clips that are tried instead of a broken one
_NAMED = 10  # of broken clips, in a line on them
_BLOCK_S = 60  # read at a time from a stream that does not state its length
_UNKNOWN_FRAMES = 1 << 62  # libsndfile reports 2^63 - 1 for a stream without a length


class Draw(NamedTuple):
    """A clip's number and the seed of its crop."""

    index: int
    seed: int


class Row(NamedTuple):
    """A clip as it is learned from; audio (samples,) is None where it is broken and left out.

    targets (frames, classes), weak (classes,), pseudo (frames, classes): scores of a teacher.
    broken: name and reason of each clip that could not be decoded, this one or those it stands for.
    n_samples: where its own audio ends, before silence.
    """

    audio: Tensor | None
    targets: Tensor | None
    weak: Tensor | None
    pseudo: Tensor | None
    name: str
    broken: tuple[tuple[str, str], ...] = ()
    n_samples: int = 0


class PseudoLabels(Protocol):
    """A teacher's logits by clip."""

    def row(self, name: str) -> np.ndarray:
        """Logits (classes, 250) of a clip; `ValueError` where there are none."""
        ...


@dataclass(frozen=True, eq=False)
class Clips(Dataset):
    """`Row` by `Draw`.

    Audio is a clip's first channel at 16 kHz: of longer ones than `clip_samples` a random part with
    the events in it, shorter ones are followed by silence. With `pseudo` the part is the first
    10 s, which is what those logits are of. Targets are given if the events of every clip are
    known.

    A clip that cannot be decoded is replaced by another one, drawn by `weights` (clips,) where
    given; without `replaces` it is left out of its batch.
    """

    corpus: Corpus
    pseudo: PseudoLabels | None = None
    weights: np.ndarray | None = None
    replaces: bool = True
    clip_samples: int = GRID.window_samples

    def __post_init__(self) -> None:
        if self.pseudo is not None and self.clip_samples != GRID.window_samples:
            raise ValueError(f"clip_samples is {self.clip_samples}; pseudo labels are of 10 s")

    def __getitem__(self, draw: Draw) -> Row:
        broken: list[tuple[str, str]] = []
        for attempt in range(_ATTEMPTS if self.replaces else 1):
            number = draw.index if attempt == 0 else self._spare(draw.seed, attempt)
            record = self.corpus[number]
            try:
                audio = decode(record.audio)
            except AudioError as error:
                broken.append((record.name, str(error)))
                continue
            return self._row(record, audio, draw.seed, tuple(broken))
        if self.replaces:
            raise CorpusError(f"{self.corpus.folder}: {broken_line(dict(broken))}")
        return Row(None, None, None, None, self.corpus.names[draw.index], tuple(broken))

    def name(self, draw: Draw) -> str:
        """The clip that a draw gives, and the broken one whose place it takes."""
        row = self[draw]
        return f"{row.name} (for {row.broken[0][0]}, which is broken)" if row.broken else row.name

    def batch(self, rows: Iterable[Row]) -> Batch:
        """Rows as a batch, which may be empty; rows without audio are left out."""
        rows = [row for row in rows if row.audio is not None]
        n_classes = len(self.corpus.labels)
        shape = (len(rows), GRID.n_frames(self.clip_samples), n_classes)
        return Batch(
            audio=_stack([row.audio for row in rows], (0, self.clip_samples)),
            targets=_stack([row.targets for row in rows], shape) if self.has_targets else None,
            weak=_stack([row.weak for row in rows], (len(rows), n_classes)),
            pseudo=_stack([row.pseudo for row in rows], shape) if self.pseudo else None,
            n_samples=torch.tensor([row.n_samples for row in rows], dtype=torch.int64),
            files=tuple(row.name for row in rows),
        )

    @cached_property
    def has_targets(self) -> bool:
        """Whether batches have frame targets."""
        return self.corpus.has_events

    def _row(
        self, record: Record, audio: np.ndarray, seed: int, broken: tuple[tuple[str, str], ...]
    ) -> Row:
        n_classes, size = len(self.corpus.labels), self.clip_samples
        start = 0 if self.pseudo else crop_start(len(audio), seed, size)
        shift_s = start / GRID.sample_rate
        events = [(a - shift_s, b - shift_s, c) for a, b, c in record.events or ()]
        return Row(
            torch.from_numpy(window(audio, start, size)),
            self._targets(events, n_classes) if self.has_targets else None,
            torch.from_numpy(encode_weak(record.weak, n_classes)),
            self._pseudo(record.name, n_classes),
            record.name,
            broken,
            min(len(audio) - start, size),
        )

    def _targets(self, events: Iterable[IndexEvent], n_classes: int) -> Tensor:
        return torch.from_numpy(encode(events, n_classes, GRID.n_frames(self.clip_samples)))

    def _pseudo(self, name: str, n_classes: int) -> Tensor | None:
        if self.pseudo is None:
            return None
        logits = torch.from_numpy(np.asarray(self.pseudo.row(name), np.float32))
        if logits.shape != (n_classes, GRID.window_frames):
            raise ValueError(
                f"pseudo labels of {name!r} have the shape {tuple(logits.shape)}; "
                f"(classes, frames) is {(n_classes, GRID.window_frames)}"
            )
        return logits.sigmoid().T.contiguous()

    def _spare(self, seed: int, attempt: int) -> int:
        """The clip that stands for one that is broken."""
        place = torch.rand((), generator=generator_for(seed, "spare", attempt), dtype=torch.float64)
        if self.weights is None:
            return int(place * len(self.corpus))
        height = place.item() * self._heights[-1]
        return min(int(np.searchsorted(self._heights, height, "right")), len(self.corpus) - 1)

    @cached_property
    def _heights(self) -> np.ndarray:
        assert self.weights is not None
        return np.cumsum(self.weights, dtype=np.float64)


class _Once(soundfile.SoundFile):
    """Audio that is read at one go: soundfile seeks after a read, which such streams may refuse."""

    def seekable(self) -> bool:
        return False


@contextmanager
def _opened(data: bytes) -> Iterator[_Once]:
    """Encoded audio; an MP3 that states no length as a stream, since libsndfile would guess one."""
    with _Once(io.BytesIO(data)) as file:
        if holds_several(io.BytesIO(data), file.format):
            raise AudioError(f"several {file.format} streams, one after the other")
        if file.format != "MP3" or not estimates_length(io.BytesIO(data)):
            yield file
            return
    with streamed(io.BytesIO(data)) as end, _Once(end, closefd=False) as file:
        yield file


def _first_channel(file: _Once) -> np.ndarray:
    """All samples of the first channel (samples,), float32."""
    options = dict(dtype="float32", always_2d=True)
    if file.frames < _UNKNOWN_FRAMES:
        return file.read(file.frames, **options)[:, 0]
    blocks = []
    while len(block := file.read(_BLOCK_S * file.samplerate, **options)):
        blocks.append(block[:, 0].copy())
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def decode(data: bytes) -> np.ndarray:
    """Encoded audio -> its first channel at 16 kHz (samples,), float32.

    Any format that libsndfile reads from its content. Raises `AudioError` for what is not audio,
    damaged, without samples or with NaN or Inf.
    """
    try:
        with _opened(data) as file:
            rate, stated = file.samplerate, file.frames
            samples = _first_channel(file)
    except soundfile.LibsndfileError as error:
        raise AudioError(_reason(error)) from None
    if len(samples) == 0 or not np.isfinite(samples.sum()):
        raise AudioError("no samples in it" if len(samples) == 0 else "NaN or Inf in it")
    if len(samples) < stated < _UNKNOWN_FRAMES:
        raise AudioError(f"damaged: it states {stated} samples and holds {len(samples)}")
    if rate == GRID.sample_rate:
        return np.ascontiguousarray(samples)
    import soxr

    return soxr.resample(np.ascontiguousarray(samples), rate, GRID.sample_rate, "HQ")


def duration_s(data: bytes) -> float:
    """Seconds that encoded audio states; it is decoded only where it states none.

    Raises `AudioError` for what is not audio.
    """
    try:
        with _opened(data) as file:
            if 0 < file.frames < _UNKNOWN_FRAMES:
                return file.frames / file.samplerate
    except soundfile.LibsndfileError as error:
        raise AudioError(_reason(error)) from None
    return len(decode(data)) / GRID.sample_rate


def crop_start(n_samples: int, seed: int, size: int = GRID.window_samples) -> int:
    """Where the part of a clip longer than `size` begins: any sample, each as likely; else 0."""
    n_more = n_samples - size
    if n_more <= 0:
        return 0
    generator = generator_for(seed, "crop")
    return int(torch.randint(n_more + 1, (), generator=generator))


def window(audio: np.ndarray, start: int, size: int = GRID.window_samples) -> np.ndarray:
    """The `size` samples of a clip from `start` on, with silence after its end."""
    out = np.zeros(size, np.float32)
    part = audio[start : start + size]
    out[: len(part)] = part
    return out


def broken_line(broken: Mapping[str, str]) -> str:
    """The first names of broken clips and the first one's reason, in one line."""
    reason = next(iter(broken.values()))
    count = f"{len(broken)} clip{'s'[: len(broken) != 1]} cannot be decoded"
    names = ", ".join(list(broken)[:_NAMED])
    if len(broken) > _NAMED:
        names += f" and {len(broken) - _NAMED} more"
    return f"{count}: {names} (the first: {' '.join(reason.split())})"


def _reason(error: soundfile.LibsndfileError) -> str:
    return f"not audio, or damaged: {error.error_string.strip().rstrip('.')}"


def _stack(rows: Sequence[Tensor | None], shape: tuple[int, ...]) -> Tensor:
    return torch.stack(rows) if rows else torch.zeros(shape)  # type: ignore[arg-type]
