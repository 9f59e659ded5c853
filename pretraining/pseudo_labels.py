"""An ensemble's logits for every clip of a corpus, in the published form.

HDF5 with `filenames` and `strong_logits` (clips, classes, 250), float16, as PretrainedSED publishes
them (Schmid et al., arXiv 2409.09546, section 3.3); a published file is read alike. The ensemble is
the mean of its members' logits. Files written here also say what they were made from.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from hear_pretrainedsed.audio import EXTENSIONS, AudioError
from hear_pretrainedsed.events import GRID
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.progress import Progress
from pretraining.clips import MAX_BROKEN, broken_line, decode, window
from pretraining.corpus import Corpus
from pretraining.importers.listing import stems_of
from pretraining.vocabulary import first_few

FILENAMES, LOGITS, N_DONE, ORIGIN, BROKEN = (
    "filenames",
    "strong_logits",
    "n_done",
    "origin",
    "broken",
)
_EDGE = 1e-6  # of scores that have no logits
_N_CHECKED = 4
_TOLERANCE = 0.05  # of logits in float16, whose steps are 0.016 at 16 to 32


class PseudoLabelError(ValueError):
    """Pseudo labels that cannot be used or made; one line that names the file and the reason."""


class PseudoLabels:
    """Logits by a clip's name. May be pickled and read in several processes.

    Names are compared without folder and ending, see `stem`. Of a clip that is not in the file as
    it is called, the row is that of its segment or recording, with or without a Y before it, as the
    importers find audio (`stems_of`). Raises `PseudoLabelError` for a file
    that has not the two tables, or tables that do not belong together.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._pid = 0
        with _opened(self.path) as file:
            if missing := [name for name in (FILENAMES, LOGITS) if name not in file]:
                raise PseudoLabelError(f"{self.path}: no pseudo labels, it lacks {missing[0]!r}")
            shape = file[LOGITS].shape
            if len(shape) != 3 or shape[0] != len(file[FILENAMES]):
                raise PseudoLabelError(
                    f"{self.path}: {LOGITS} has the shape {shape} with {len(file[FILENAMES])} "
                    f"{FILENAMES}; (clips, classes, frames) is wanted"
                )
            self.shape: tuple[int, int, int] = shape
            self.origin: dict[str, Any] = json.loads(file.attrs.get(ORIGIN, "{}"))
            self.n_done = int(file[N_DONE][0]) if N_DONE in file else shape[0]
            broken = np.flatnonzero(file[BROKEN][:]) if BROKEN in file else []
            self.broken = tuple(_text(file[FILENAMES][i]) for i in broken)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def row(self, name: str) -> np.ndarray:
        """Logits (classes, 250) of a clip, float16. `PseudoLabelError` where there are none."""
        if (number := self._number(name)) is None:
            raise PseudoLabelError(
                f"{self.path}: no pseudo labels of {name!r}; it has {len(self._numbers)} clips, "
                f"the first {next(iter(self._numbers), None)!r}"
            )
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = h5py.File(self.path, "r"), os.getpid()
        try:
            row = self._file[LOGITS][number]
        except OSError as error:
            raise PseudoLabelError(
                f"{self.path}: damaged: row {number} ({name!r}) cannot be read: {error}"
            ) from None
        if not np.isfinite(row).all():
            raise PseudoLabelError(f"{self.path}: {name!r} was broken when these were made")
        return row

    def check(self, corpus: Corpus) -> None:
        """Refuse a file that is not finished, logits of other classes or shape, clips without any.

        Rows that were never written hold zeros, which would count as scores of a half.
        """
        if self.n_done < self.shape[0]:
            raise PseudoLabelError(
                f"{self.path}: is not finished: {self.n_done} of {self.shape[0]} rows; the same "
                "`hear-pretrainedsed pseudo-labels` goes on with it"
            )
        wanted = (len(corpus.labels), GRID.window_frames)
        if self.shape[1:] != wanted:
            raise PseudoLabelError(
                f"{self.path}: clips have the shape {self.shape[1:]}; of {corpus.folder} it is "
                f"{wanted} (classes, frames)"
            )
        labels = self.origin.get("labels")
        if labels is not None:
            corpus.require_labels(labels)
        missing = [name for name in corpus.names if self._number(name) is None]
        if missing:
            raise PseudoLabelError(
                f"{self.path}: of other clips: {len(missing)} of {len(corpus)} of "
                f"{corpus.folder} are not in it, as {', '.join(missing[:3])}"
            )
        users: dict[int | None, str] = {}
        if shared := [n for n in corpus.names if users.setdefault(self._number(n), n) != n]:
            raise PseudoLabelError(
                f"{self.path}: {first_few(shared, 'clip')} without a row of its own: by its name, "
                f"another clip of {corpus.folder} has the same one"
            )

    def _number(self, name: str) -> int | None:
        """The row of a clip; None: there is none, or the name fits several."""
        own = stem(name)
        there = next((one for one in (own, *_also(own)) if one in self._numbers), None)
        return self._also_called.get(own) if there is None else self._numbers[there]

    @cached_property
    def _also_called(self) -> dict[str, int]:
        """Rows by the other names that their clips may have, but for names of several."""
        found: dict[str, set[int]] = {}
        for name, number in self._numbers.items():
            for other in _also(name):
                found.setdefault(other, set()).add(number)
        return {name: rows.pop() for name, rows in found.items() if len(rows) == 1}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        with _opened(self.path) as file:
            names = file[FILENAMES][:]
        return _places(map(_text, names), self.path)


def write_pseudo_labels(
    models: Sequence[SEDModel],
    corpus: Corpus,
    path: str | os.PathLike[str],
    *,
    batch_size: int = 8,
    progress: Progress = lambda done, total: None,
) -> PseudoLabels:
    """Write the mean of the models' logits for every clip's first 10 s.

    What a killed run leaves (`path` with `.part`) is gone on with. The finished file is read once
    more, and some of its clips are computed anew, before it gets its name.

    Args:
        models: with the corpus' classes, each with a head for frames.
        corpus: whose clips; broken ones get NaN and are listed, more than 1 % of them stop.
        batch_size: clips that go through a model at a time.

    Raises:
        PseudoLabelError: something of that name is there, models of other classes, clips of one
            name, a `.part` of other models or another corpus, too many broken clips, or logits that
            are not finite.
        OSError: the disk is full; what is there is gone on with.
    """
    path = Path(path)
    check_free(path)
    _check_models(models, corpus)
    _places(corpus.names, corpus.folder)
    origin = _origin(models, corpus)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _begun(part, corpus, origin) as file:
        _fill(file, models, corpus, batch_size, progress, part)
    written = PseudoLabels(part)
    _verify(written, models, corpus)
    os.replace(part, path)
    return PseudoLabels(path)


def check_free(path: Path) -> None:
    """Refuse the name of a file or folder that is there: hours of work are not written over."""
    if path.exists():
        raise PseudoLabelError(f"{path}: is there already; remove it, or give another name")


@torch.no_grad()
def ensemble_logits(models: Sequence[SEDModel], audio: torch.Tensor) -> torch.Tensor:
    """Audio (batch, 160000) -> the mean of the models' logits (batch, frames, classes)."""
    total = torch.zeros(())
    for model in models:
        if model.head.emits == "logits":
            logits = model.logits(audio.to(model.device))
        else:
            logits = model.scores(audio.to(model.device)).float().logit(eps=_EDGE)
        total = total + logits.float().cpu()
    return total / len(models)


def stem(name: str) -> str:
    """A clip's name without folder and audio ending; what else follows a dot is the name's own."""
    base = name.rsplit("/", 1)[-1]
    head, ending = os.path.splitext(base)
    return head if ending.lower() in EXTENSIONS else base


def _also(name: str) -> tuple[str, ...]:
    """Other names of a segment's clip: AudioSet's ids stand with and without a Y before them."""
    return (*stems_of(name), *(stems_of(name[1:]) if name.startswith("Y") else ()))


def _places(names: Iterable[str], source: Path) -> dict[str, int]:
    """The number of each name as it is compared; refuses one that is there twice."""
    places: dict[str, int] = {}
    twice: dict[str, None] = {}
    for number, name in enumerate(map(stem, names)):
        if places.setdefault(name, number) != number:
            twice[name] = None
    if twice:
        told = first_few(twice, "clip")
        raise PseudoLabelError(f"{source}: {told} given twice (without folder and audio ending)")
    return places


def _fill(
    file: h5py.File,
    models: Sequence[SEDModel],
    corpus: Corpus,
    batch_size: int,
    progress: Progress,
    part: Path,
) -> None:
    """All rows that are not there yet; rows are written before they count as done."""
    first = int(file[N_DONE][0])
    before = np.flatnonzero(file[BROKEN][:first])
    broken: dict[str, str] = {corpus.names[i]: "found before" for i in before}
    for start, rows in _read_ahead(corpus, first, batch_size):
        values = np.full((len(rows), *file[LOGITS].shape[1:]), np.nan, np.float16)
        bad = np.array([isinstance(row, AudioError) for row in rows])
        good = np.flatnonzero(~bad)
        broken |= {corpus.names[start + i]: str(rows[i]) for i in np.flatnonzero(bad)}
        if len(broken) > MAX_BROKEN * len(corpus) and len(broken) > 1:
            raise PseudoLabelError(f"{corpus.folder}: {broken_line(broken)}")
        if len(good):
            audio = torch.from_numpy(np.stack([rows[i] for i in good]))
            logits = ensemble_logits(models, audio).transpose(1, 2).numpy()
            if not np.isfinite(logits).all():
                raise PseudoLabelError(f"{part}: logits of {corpus.names[start]!r} are not finite")
            values[good] = logits.clip(-6e4, 6e4)
        try:
            file[LOGITS][start : start + len(rows)] = values
            file[BROKEN][start : start + len(rows)] = bad
            file.flush()
            file[N_DONE][0] = start + len(rows)
            file.flush()
        except OSError as error:
            raise OSError(error.errno, f"cannot write {part}: {error}") from error
        progress(start + len(rows), len(corpus))


def _read_ahead(
    corpus: Corpus, first: int, batch_size: int
) -> Iterator[tuple[int, list[np.ndarray | AudioError]]]:
    """Audio of the clips from `first` on; the next batch is decoded meanwhile."""

    def read(number: int) -> np.ndarray | AudioError:
        try:
            return window(decode(corpus[number].audio), 0)
        except AudioError as error:
            return error

    def batch(start: int) -> list[np.ndarray | AudioError]:
        return [read(i) for i in range(start, min(start + batch_size, len(corpus)))]

    with ThreadPoolExecutor(1) as reader:
        waiting = reader.submit(batch, first)
        for start in range(first, len(corpus), batch_size):
            rows = waiting.result()
            waiting = reader.submit(batch, start + batch_size)
            yield start, rows


@contextmanager
def _begun(part: Path, corpus: Corpus, origin: dict[str, Any]) -> Iterator[h5py.File]:
    """The file that is being written, made if need be.

    Its tables lie in one piece each, whose place is known before the first row, so that nothing of
    the file's structure changes any more: a kill at any moment leaves a file that can be read.
    """
    if part.exists():
        there = PseudoLabels(part).origin
        if there != origin:
            apart = sorted(k for k in origin | there if origin.get(k) != there.get(k))
            raise PseudoLabelError(
                f"{part}: begun with another {' and '.join(apart)}; remove it or take another name"
            )
    else:
        fresh = part.with_name(part.name + ".new")
        with h5py.File(fresh, "w") as file:
            file.create_dataset(FILENAMES, data=[name.encode() for name in corpus.names])
            shape = (len(corpus), len(corpus.labels), GRID.window_frames)
            _in_one_piece(file, LOGITS, shape, h5py.h5t.IEEE_F16LE)
            _in_one_piece(file, N_DONE, (1,), h5py.h5t.STD_I64LE)
            _in_one_piece(file, BROKEN, shape[:1], h5py.h5t.STD_U8LE)
            file[N_DONE][0] = 0
            file[BROKEN][:] = 0
            file.attrs[ORIGIN] = json.dumps(origin)
        os.replace(fresh, part)
    with h5py.File(part, "r+") as file:
        yield file


def _in_one_piece(file: h5py.File, name: str, shape: tuple[int, ...], kind: Any) -> None:
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.CONTIGUOUS)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), settings)


def _verify(written: PseudoLabels, models: Sequence[SEDModel], corpus: Corpus) -> None:
    """Every row is there, and some are what the models give."""
    written.check(corpus)
    names = [name for name in corpus.names if name not in written.broken]
    for name in names:
        written.row(name)
    numbers = [i for i, name in enumerate(corpus.names) if name not in written.broken]
    for number in numbers[:: max(1, len(numbers) // _N_CHECKED)][:_N_CHECKED]:
        audio = torch.from_numpy(window(decode(corpus[number].audio), 0))[None]
        again = ensemble_logits(models, audio)[0].T.numpy()
        gap = np.abs(again - written.row(corpus.names[number]).astype(np.float32)).max()
        if gap > _TOLERANCE * max(1.0, np.abs(again).max() / 32):
            raise PseudoLabelError(
                f"{written.path}: {corpus.names[number]!r} differs by {gap:.3g} when computed anew"
            )


def _check_models(models: Sequence[SEDModel], corpus: Corpus) -> None:
    if not models:
        raise PseudoLabelError("no model to make pseudo labels with")
    for model in models:
        if model.labels is None or tuple(model.labels) != corpus.labels:
            name = model.provenance.get("checkpoint", "a model")
            raise PseudoLabelError(
                f"{name} has other classes ({len(model.labels or ())}) than {corpus.folder} "
                f"({len(corpus.labels)})"
            )


def _origin(models: Sequence[SEDModel], corpus: Corpus) -> dict[str, Any]:
    """What the logits were made from."""
    keys = ("checkpoint", "sha256")
    labels = "\n".join(corpus.labels).encode()
    return {
        "models": [{key: model.provenance.get(key) for key in keys} for model in models],
        "corpus_sha256": corpus.sha256,
        "labels": list(corpus.labels),
        "labels_sha256": hashlib.sha256(labels).hexdigest(),
    }


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    if not path.is_file():
        raise PseudoLabelError(f"{path}: there is no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        reason = " ".join(str(error).split())
        raise PseudoLabelError(f"{path}: no HDF5 file, or damaged: {reason}") from None
    with file:
        yield file


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
