"""Recordings and labels of the user's own: any length, any format that libsndfile reads.

Labels are one table, one JSON file or Audacity's label files (`own_labels`). Recordings are divided
by file, 60 / 20 / 20, each class in each part where it can be, or as a column of the table says:
where files are cut from one recording only that column keeps them together. There is no official
evaluation to depart from; an interval's unit is a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from downstream.tasks import checks, own_labels, own_split
from downstream.tasks.hear_writer import task_metadata
from downstream.tasks.sources import duration_s
from downstream.tasks.task import Clip, Facts, Rotation, Task
from hear_pretrainedsed.audio import EXTENSIONS, audio_files

_MS_TIMES = 10  # a time this many clips long is no slip
_STOCK_METRICS = ("event_onset_200ms_fms", "segment_1s_er")  # protocol `hear` selects by these


@dataclass(frozen=True)
class LabelChoice:
    """Which labels of a folder are taken, and how it is divided; None: what is there.

    `labels`, `split_column` as in `own_labels.read`; `seed` draws the splits without a column.
    """

    labels: str | None = None
    split_column: str | None = None
    seed: int | None = None

    def options(self) -> dict[str, str | int]:
        """What was chosen, as options of the task `own`."""
        return {name: value for name, value in vars(self).items() if value is not None}


def _open(
    folder: Path,
    facts: Facts,
    *,
    labels: str | None = None,
    split_column: str | None = None,
    seed: int | None = None,
    strict: bool = False,
) -> Task:
    """The options are those of `LabelChoice`."""
    with checks.strictly(strict):
        audio = audio_files([folder])
        found = own_labels.read(folder, audio, labels, split_column)
        paths = _paths(found, {path.relative_to(folder).as_posix(): path for path in audio})
        used = set(paths.values())
        unused = [path.name for path in audio if path not in used]
        if unused:
            checks.warn(f"{len(unused)} recordings have no labels: {checks.first_few(unused)}")
        in_files = {file: {label for _, _, label in rows} for file, rows in found.events.items()}
        if found.split and seed is not None:
            raise ValueError(f"{found.source} has a column of splits: a seed would draw nothing")
        split = found.split or own_split.stratified(in_files, seed or 0)
        task = _task(folder, facts, found, paths, split)
        _check_seconds(task)
        checks.check_task(task)
    return task


def _task(
    folder: Path,
    facts: Facts,
    found: own_labels.Labels,
    paths: Mapping[str, Path],
    split: Mapping[str, str],
) -> Task:
    clips: dict[str, list[Clip]] = {name: [] for name in own_split.SPLITS}
    for given, path in paths.items():
        file = path.relative_to(folder).as_posix()
        events = tuple(sorted(found.events[given]))
        clips[split[given]].append(Clip(file, path, events, duration_s(path), file))
    splits = {name: tuple(sorted(rows, key=lambda clip: clip.file)) for name, rows in clips.items()}
    name = folder.resolve().name
    task = Task(
        facts=facts,
        name=name,
        version="",
        folder=folder,
        labels=tuple(sorted({label for rows in found.events.values() for *_, label in rows})),
        splits=splits,
        rotations=(Rotation(("train",), ("valid",), ("test",)),),
    )
    version = task.labels_digest()[:12]  # of the labels: an edited table is another task
    hear = task_metadata(name, version, "own", splits, None, _STOCK_METRICS)
    return replace(task, version=version, hear=hear)


def _check_seconds(task: Task) -> None:
    """Refuse times far beyond their clips that would fit as milliseconds."""
    events = [(clip, event) for clip in task.clips(task.splits) for event in clip.events]
    far = [pair for pair in events if pair[1][1] > _MS_TIMES * pair[0].duration_s]
    if far and all(offset / 1000 <= clip.duration_s for clip, (_, offset, _) in events):
        told = (f"{clip.file} {b:g} (clip: {clip.duration_s:g} s)" for clip, (_, b, _) in far)
        raise ValueError(
            f"{task.name}: {len(far)} of {len(events)} events end far beyond their clip; times are "
            f"in seconds, are these milliseconds? {checks.first_few(told)}"
        )


def _paths(found: own_labels.Labels, audio: Mapping[str, Path]) -> dict[str, Path]:
    """Recordings by the names that the labels give them: paths in the folder, or file names."""
    by_name: dict[str, list[Path]] = {}
    for path in audio.values():
        by_name.setdefault(path.name, []).append(path)
    paths, missing = {}, []
    for file in found.events:
        same = by_name.get(PurePosixPath(file).name, []) if "/" not in file else []
        if file in audio:
            paths[file] = audio[file]
        elif len(same) > 1:
            raise ValueError(f"{found.source}: {file} is in two folders; write its path")
        elif same:
            paths[file] = same[0]
        else:
            missing.append(file)
    if missing:
        raise ValueError(
            f"{found.source}: {len(missing)} of {len(found.events)} files have no audio: "
            f"{checks.first_few(missing)}"
        )
    if twice := [path for path, n in Counter(paths.values()).items() if n > 1]:
        raise ValueError(f"{found.source}: named in two ways: {checks.first_few(twice)}")
    return paths


def _recognises(folder: Path) -> bool:
    return any(path.suffix.lower() in EXTENSIONS for path in folder.rglob("*"))


OWN = Facts(
    name="own",
    version="that of the labels",
    licence="the user's",
    citation="",
    metrics=(*_STOCK_METRICS, "psds1", "frame_map"),
    unit="file",
    open=_open,
    recognises=_recognises,
)
