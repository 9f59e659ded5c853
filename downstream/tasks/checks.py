"""What is wrong with a task's data, said before anything is computed from it."""

from __future__ import annotations

import codecs
import hashlib
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TypeVar

from downstream.tasks.task import Task
from hear_pretrainedsed.audio import AudioError, read_audio
from hear_pretrainedsed.registry import unknown

_N_SHOWN = 3
BEYOND_S = 0.05  # an annotation may end this much after the clip: rounding in the sources
_BLOCK_BYTES = 1 << 14
_N_DECODERS = 4  # each holds a whole recording, 230 MB an hour

SameBytes = Callable[[Iterable[Path]], list[list[Path]]]
T = TypeVar("T")


class TaskWarning(UserWarning):
    """Something in a task's data that is odd but can be used; an error with `strict`."""


def first_few(offenders: Iterable[object]) -> str:
    """The first offenders and how many more there are."""
    found = list(offenders)
    more = f" and {len(found) - _N_SHOWN} more" if len(found) > _N_SHOWN else ""
    return ", ".join(map(str, found[:_N_SHOWN])) + more


def read_utf8(path: Path) -> str:
    """A text file as UTF-8, with or without a byte-order mark; `ValueError` for other encodings."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        where = "it is UTF-16" if is_utf16 else f"line {line} is in another encoding"
        raise ValueError(f"{path}: {where}; save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path}: bytes of zero in it, as UTF-16 has them; save it as UTF-8")
    return text


def warn(text: str) -> None:
    """Warn of data that is odd."""
    warnings.warn(text, TaskWarning, stacklevel=3)


@contextmanager
def strictly(strict: bool) -> Iterator[None]:
    """Where `strict`, warnings of tasks within are `ValueError`s."""
    with warnings.catch_warnings():
        if strict:
            warnings.simplefilter("error", TaskWarning)
        try:
            yield
        except TaskWarning as warning:
            raise ValueError(f"{warning} (refused because of strict)") from None


def check_files(split: str, listed: Iterable[str], folder: Path) -> None:
    """Refuse listed clips without audio; warn of audio that is not listed."""
    names = list(listed)
    there = {path.name for path in folder.iterdir() if path.is_file()}
    if missing := [name for name in names if name not in there]:
        raise ValueError(
            f"{split}: {len(missing)} of {len(names)} clips have no audio in {folder}: "
            f"{first_few(missing)}"
        )
    extra = sorted(name for name in there - set(names) if not name.startswith("."))
    if extra:
        warn(f"{split}: {len(extra)} audio files are not listed: {first_few(extra)}")


def check_audio(task: Task) -> None:
    """Decode every clip of the splits once; `ValueError` tells those that cannot be.

    Training reads pieces of some clips and testing others, at its end: this finds bad ones first.
    """

    def problem(path: Path) -> str | None:
        try:
            read_audio(path)
        except AudioError as error:
            return str(error)
        return None

    paths = list(dict.fromkeys(clip.path for clip in task.clips(task.splits)))
    with ThreadPoolExecutor(_N_DECODERS) as pool:
        told = [text for text in pool.map(problem, paths) if text]
    if told:
        raise ValueError(
            f"{task.name}: {len(told)} of {len(paths)} clips cannot be used: {first_few(told)}"
        )


def check_task(task: Task, same: SameBytes | None = None) -> None:
    """Refuse a task that cannot be trained or scored fairly; warn of what is odd.

    `same` groups recordings with equal bytes; None: `same_bytes`.
    """
    _check_splits(task)
    _check_events(task)
    _check_lengths(task)
    _check_leaks(task, same or same_bytes)
    _check_classes(task)


def _check_splits(task: Task) -> None:
    for split, clips in task.splits.items():
        if not clips:
            raise ValueError(f"{task.name}: the split {split!r} is empty")
        if not any(clip.events for clip in clips):
            raise ValueError(f"{task.name}: no event in any clip of the split {split!r}")


def _check_events(task: Task) -> None:
    known = set(task.labels)
    strange, wrong, outside, longer = [], [], [], []
    for clip in task.clips(task.splits):
        for onset_s, offset_s, label in clip.events:
            event = f"{clip.file} {label} {onset_s:g} to {offset_s:g} s"
            if label not in known:
                strange.append((clip.file, label))
            elif not (math.isfinite(offset_s) and 0 <= onset_s <= offset_s):
                wrong.append(event)
            elif onset_s >= clip.duration_s:
                outside.append(f"{event} (clip: {clip.duration_s:g} s)")
            elif offset_s > clip.duration_s + BEYOND_S:
                longer.append(f"{event} (clip: {clip.duration_s:g} s)")
    if strange:
        told = unknown("label", strange[0][1], task.labels)
        raise ValueError(
            f"{task.name}: {len(strange)} events have a label outside the vocabulary: "
            f"{first_few(f'{file} {label}' for file, label in strange)}; {told}"
        )
    if wrong:
        raise ValueError(
            f"{task.name}: times are finite, not negative, and an onset is not after its offset: "
            f"{first_few(wrong)}"
        )
    if outside:
        raise ValueError(
            f"{task.name}: {len(outside)} events begin after their clip's end: {first_few(outside)}"
        )
    if longer:
        warn(f"{task.name}: {len(longer)} events reach beyond their clip: {first_few(longer)}")


def _check_lengths(task: Task) -> None:
    """Refuse a split, and warn of classes, of which no event has a length: they fill no frame."""
    points: dict[str, list[str]] = defaultdict(list)
    lasting: set[str] = set()
    for split, clips in task.splits.items():
        told, n_lasting = [], 0
        for clip in clips:
            for onset_s, offset_s, label in clip.events:
                if onset_s < offset_s:
                    lasting.add(label)
                    n_lasting += 1
                    continue
                told.append(f"{clip.file} {label} at {onset_s:g} s")
                points[label].append(told[-1])
        if not n_lasting:
            raise ValueError(
                f"{task.name}: no event of the split {split!r} has a length, so nothing in it can "
                f"be learned or found: {first_few(told)}; an offset lies after its onset"
            )
    for label in sorted(points.keys() - lasting):
        told = first_few(points[label])
        warn(f"{task.name}: no event of {label!r} has a length, so it cannot be learned: {told}")


def _check_leaks(task: Task, same: SameBytes) -> None:
    """Refuse a recording in two splits, by its name or by its bytes.

    What is not labelled strongly is trained on: it may be in train too, not in other splits. Of
    splits that are folds none may share a recording: each of them is a test split once.
    """
    place: dict[Path, tuple[str, str]] = {}
    names: dict[str, str] = {}
    for split, clips in task.splits.items():
        for clip in clips:
            if clip.file in names:
                _leak(task, f"the clip {clip.file} is in {names[clip.file]!r} and in {split!r}")
            names[clip.file] = split
            place[clip.path] = (split, clip.file)
    trained = {split for rotation in task.rotations for split in rotation.train}
    held_out = {split for rotation in task.rotations for split in (*rotation.valid, *rotation.test)}
    only_trained = (trained - held_out) | set(task.extra)
    for kind, clips in task.extra.items():
        for clip in clips:
            if names.get(clip.file, kind) not in only_trained:
                _leak(task, f"the clip {clip.file} is in {names[clip.file]!r} and in {kind!r}")
            place.setdefault(clip.path, (kind, clip.file))
    for paths in same(place):
        found: dict[str, list[str]] = {}
        for split, file in map(place.__getitem__, paths):
            found.setdefault(split, []).append(f"{file} in {split!r}")
        if len(found) > 1 and not set(found) <= only_trained:
            ones, more = zip(*((told[0], told[1:]) for told in found.values()), strict=True)
            told = first_few([*ones, *chain(*more)])  # one of each split first
            _leak(task, f"the same audio is in more than one split: {told}")


def _leak(task: Task, what: str) -> None:
    raise ValueError(f"{task.name}: {what}: what is trained on would be tested on")


def same_bytes(paths: Iterable[Path]) -> list[list[Path]]:
    """Groups of files with equal bytes.

    Files of one size are told apart by three blocks of each; only what is left is read whole.
    """
    return equal_by(paths, (lambda path: path.stat().st_size, _blocks_sha256, _sha256))


def equal_by(things: Iterable[T], keys: Iterable[Callable[[T], object]]) -> list[list[T]]:
    """Groups of things that are equal by every key; a key is asked only where those before fit."""
    groups = [list(things)]
    for key in keys:
        finer = []
        for group in groups:
            found: dict[object, list[T]] = defaultdict(list)
            for thing in group:
                found[key(thing)].append(thing)
            finer += [same for same in found.values() if len(same) > 1]
        groups = finer
    return groups


def _blocks_sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for start in (0, size // 2, max(0, size - _BLOCK_BYTES)):
            file.seek(start)
            found.update(file.read(_BLOCK_BYTES))
    return found.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_classes(task: Task) -> None:
    """One warning of all classes that some part of some rotation has no event of."""
    present = {
        split: {label for clip in clips for _, _, label in clip.events}
        for split, clips in task.splits.items()
    }
    told = [
        text
        for part in ("train", "valid", "test")
        if (text := _absent(task, part, present))  # train first: it is the worst
    ]
    if told:
        warn(f"{task.name}: classes without an event {'; '.join(told)}")


def _absent(task: Task, part: str, present: Mapping[str, set[str]]) -> str:
    absent: dict[str, None] = {}
    n_rotations = 0
    for rotation in task.rotations:
        there = set().union(*(present[split] for split in getattr(rotation, part)))
        missing = [label for label in task.labels if label not in there]
        n_rotations += bool(missing)
        absent |= dict.fromkeys(missing)
    if not absent:
        return ""
    of = f" of {n_rotations} of {len(task.rotations)} rotations" if len(task.rotations) > 1 else ""
    return f"in {part}{of}: {first_few(absent)}"
