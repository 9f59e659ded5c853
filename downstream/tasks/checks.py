"""What is wrong with a task's data, said before anything is computed from it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from pathlib import Path

from downstream.tasks.task import Task
from hear_pretrainedsed.registry import unknown

_N_SHOWN = 3
_BEYOND_S = 0.05  # an annotation may end this much after the clip: rounding in the sources


class TaskWarning(UserWarning):
    """Something in a task's data that is odd but can be used; an error with `strict`."""


def first_few(offenders: Iterable[object]) -> str:
    """The first offenders and how many more there are."""
    found = list(offenders)
    more = f" and {len(found) - _N_SHOWN} more" if len(found) > _N_SHOWN else ""
    return ", ".join(map(str, found[:_N_SHOWN])) + more


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


def warn(text: str, stacklevel: int = 3) -> None:
    """Warn of data that is odd."""
    warnings.warn(text, TaskWarning, stacklevel=stacklevel)


def check_task(task: Task, *, strict: bool = False) -> None:
    """Refuse a task that cannot be trained or scored fairly; warn of what is odd."""
    with warnings.catch_warnings():
        if strict:
            warnings.simplefilter("error", TaskWarning)
        try:
            _check_splits(task)
            _check_events(task)
            _check_classes(task)
        except TaskWarning as warning:
            raise ValueError(f"{warning} (refused because of --strict)") from None


def _check_splits(task: Task) -> None:
    place: dict[str, str] = {}
    for split, clips in task.splits.items():
        if not clips:
            raise ValueError(f"{task.name}: the split {split!r} is empty")
        if not any(clip.events for clip in clips):
            raise ValueError(f"{task.name}: no event in any clip of the split {split!r}")
        for clip in clips:
            if clip.file in place:
                raise ValueError(
                    f"{task.name}: the clip {clip.file} is in {place[clip.file]!r} and in "
                    f"{split!r}: what is trained on would be tested on"
                )
            place[clip.file] = split


def _check_events(task: Task) -> None:
    known = set(task.labels)
    wrong, beyond = [], []
    for clips in task.splits.values():
        for clip in clips:
            for onset_s, offset_s, label in clip.events:
                if label not in known:
                    raise ValueError(f"{clip.file}: {unknown('label', label, task.labels)}")
                times_fit = math.isfinite(offset_s) and 0 <= onset_s <= offset_s
                if not times_fit:
                    wrong.append(f"{clip.file} {label} {onset_s} to {offset_s} s")
                elif offset_s > clip.duration_s + _BEYOND_S:
                    beyond.append(f"{clip.file} {label} {onset_s} to {offset_s} s")
    if wrong:
        raise ValueError(
            f"{task.name}: times are finite, not negative, and an onset is not after its offset: "
            f"{first_few(wrong)}"
        )
    if beyond:
        warn(f"{task.name}: {len(beyond)} events reach beyond their clip: {first_few(beyond)}")


def _check_classes(task: Task) -> None:
    for rotation in task.rotations:
        for part in ("train", "valid", "test"):
            clips = task.clips(getattr(rotation, part))
            present = {label for clip in clips for _, _, label in clip.events}
            if absent := [label for label in task.labels if label not in present]:
                warn(
                    f"{task.name}: no event in {part} of {len(absent)} classes: {first_few(absent)}"
                )
