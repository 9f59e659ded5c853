"""DCASE 2016 task 2, sound events in synthetic office audio, as HEAR has it.

72 files of 120 s: 18 of the development set and 54 of the test set, 11 classes. Departures from the
challenge's own evaluation: HEAR's splits mix both sets (44 / 14 / 14), and onset F with a collar of
200 ms and the 1 s segment error rate are its scores.

Splits. The 72 files are 24 scenes (set, number, events a class, polyphony), each at three
event-to-background ratios with the same events. `official` is HEAR's, which divides files: every
test file has a twin in train or valid, with the same events. `scene_disjoint` keeps a scene in one
split: six folds of four scenes, two of each polyphony, drawn by HEAR's k-fold recipe; the first one
is test, the second one valid, the rest train. `scene_folds` rotates these folds as HEAR rotates
folds, so that each scene is tested once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path

from downstream.tasks import checks, hear_folder, hear_splits
from downstream.tasks.hear_writer import Event, Wanted, task_metadata, write_hear_folder
from downstream.tasks.sources import Member, Sources
from downstream.tasks.task import Clip, Facts, Progress, Rotation, Task
from hear_pretrainedsed.registry import unknown

NAME = "dcase2016_task2"
CLIP_S = 120.0
SPLITS = ("official", "scene_disjoint", "scene_folds")

_FILE = re.compile(r"(dev|test)_(\d+)_ebr_(-?\d+)_nec_(\d+)_poly_(\d+)")
_SETS = ("dev_1", "test_1", "test_2", "test_3")
_EBR_DB = (-6, 0, 6)
_NEC_POLY = ((1, 0), (2, 0), (3, 0), (3, 1), (4, 1), (5, 1))
_N_FOLDS = 6


def scene_of(file: str) -> str:
    """The scene of a file: its name without the event-to-background ratio."""
    found = _FILE.match(file)
    if found is None:
        raise ValueError(f"{file}: wanted a name as dev_1_ebr_-6_nec_1_poly_0.wav")
    part, number, _, nec, poly = found.groups()
    return f"{part}_{number}_nec_{nec}_poly_{poly}"


def scene_folds(scenes: Iterable[str]) -> dict[str, list[str]]:
    """Scenes by fold, each polyphony divided by itself; names and order follow from `scenes`."""
    folds: dict[str, list[str]] = {}
    scenes = sorted(set(scenes))
    for poly in sorted({scene[-1] for scene in scenes}):
        same = [scene for scene in scenes if scene[-1] == poly]
        for fold, drawn in hear_splits.kfold(same, _N_FOLDS).items():
            folds.setdefault(fold, []).extend(drawn)
    return folds


def _open(folder: Path, facts: Facts, *, split: str = "official", strict: bool = False) -> Task:
    if split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))
    with checks.strictly(strict):
        task = hear_folder.read_named_folder(folder, facts, (NAME,))
        units = {
            name: tuple(replace(clip, unit=scene_of(clip.file)) for clip in clips)
            for name, clips in task.splits.items()
        }
        task = replace(task, splits=units)
        if split != "official":
            task = _by_scene(task, split)
        checks.check_task(task)
    return task


def _by_scene(task: Task, split: str) -> Task:
    clips = sorted(task.clips(task.splits), key=lambda clip: clip.file)
    folds = scene_folds(clip.unit for clip in clips)
    names = list(folds)

    def of(*wanted: str) -> tuple[Clip, ...]:
        scenes = {scene for fold in wanted for scene in folds[fold]}
        return tuple(clip for clip in clips if clip.unit in scenes)

    if split == "scene_folds":
        splits = {fold: of(fold) for fold in names}
        rotations, mode = hear_folder.fold_rotations(names), "new_split_kfold"
    else:
        splits = {"train": of(*names[2:]), "valid": of(names[1]), "test": of(names[0])}
        rotations, mode = (Rotation(("train",), ("valid",), ("test",)),), "trainvaltest"
    hear = {**task.hear, "splits": list(splits), "split_mode": mode}
    name = f"{task.name}:{split}"
    return replace(task, name=name, splits=splits, rotations=rotations, hear=hear)


def _build(sources: Sources, folder: Path, progress: Progress) -> None:
    found = sources.matching(rf"{_FILE.pattern}\.(?:txt|wav)")
    stems = [
        f"{part}_ebr_{ebr}_nec_{nec}_poly_{poly}"
        for part, ebr, (nec, poly) in product(_SETS, _EBR_DB, _NEC_POLY)
    ]
    wanted = [f"{stem}.{kind}" for stem in stems for kind in ("txt", "wav")]
    if missing := [file for file in wanted if file not in found]:
        raise ValueError(
            f"{len(missing)} of the {len(wanted)} files of the development and test sets are not "
            f"there: {checks.first_few(missing)}"
        )
    events = {stem: _events(sources, found[f"{stem}.txt"]) for stem in stems}
    clips = {
        split: [Wanted(stem, found[f"{stem}.wav"], events[stem]) for stem in drawn]
        for split, drawn in hear_splits.trainvaltest(stems).items()
    }
    metadata = task_metadata(NAME, DCASE2016_TASK2.version, "full", clips, CLIP_S, _METRICS)
    labels = sorted({event["label"] for rows in events.values() for event in rows})
    write_hear_folder(folder, metadata, labels, clips, sources, progress)


def _events(sources: Sources, member: Member) -> list[Event]:
    """Lines of onset, offset (s), label."""
    rows = []
    for line in sources.read_text(member).splitlines():
        if not line.strip():
            continue
        try:
            onset_s, offset_s, label = line.split()
            rows.append(
                {"label": label, "start": 1000 * float(onset_s), "end": 1000 * float(offset_s)}
            )
        except ValueError:
            raise ValueError(f"{member.path}: wanted onset, offset, label; got {line!r}") from None
    return rows


_METRICS = ("event_onset_200ms_fms", "segment_1s_er")
DCASE2016_TASK2 = Facts(
    name=NAME,
    version="hear2021",
    licence="CC BY 4.0",
    citation=(
        "Mesaros et al., Detection and Classification of Acoustic Scenes and Events: Outcome of "
        "the DCASE 2016 Challenge, IEEE/ACM TASLP 26(2), 2018"
    ),
    metrics=_METRICS,
    unit="scene",
    open=_open,
    recognises=lambda folder: hear_folder.task_name(folder) == NAME,
    build=_build,
)
