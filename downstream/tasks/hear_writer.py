"""Recordings and events -> a folder in HEAR's layout, which stock heareval reads.

As hear-preprocess makes it: clips are cut or padded with silence to the task's length, written as
16-bit WAV at 16 kHz; events that begin after that are left out, ends are cut to it. Departure: the
resampler is soxr, not ffmpeg's.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from downstream.tasks import checks
from downstream.tasks.hear_folder import HEAR_FOLDER, METADATA, SAMPLE_RATE, rotations
from downstream.tasks.sources import Member, Sources
from downstream.tasks.task import Clip, ExtraClip, Progress, Task

Event = Mapping[str, Any]  # label, start and end in ms: HEAR's keys


@dataclass(frozen=True)
class Wanted:
    """A clip to be written: its stem, its source, its events in ms (None: written without)."""

    stem: str
    source: Member
    events: Sequence[Event] | None


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, OUT.part, that becomes `out` when all went well, and else goes.

    Raises `ValueError` if `out` is there already.
    """
    if out.exists():
        raise ValueError(f"{out}: is there already; delete it or choose another folder")
    part = out.with_name(f"{out.name}.part")
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part)
        raise
    os.replace(part, out)


def write_hear_folder(
    folder: Path,
    metadata: Mapping[str, Any],
    labels: Iterable[object],
    clips: Mapping[str, Sequence[Wanted]],
    sources: Sources,
    progress: Progress,
) -> None:
    """Write a task; `clips` by split, or by kind where they have no events.

    Raises `ValueError`, before anything is read, for what the folder would not be opened with.
    """
    labels = list(labels)
    _check(metadata, labels, clips, sources)
    n_samples = round(metadata["sample_duration"] * SAMPLE_RATE)
    n_done, n_clips = 0, sum(map(len, clips.values()))
    for split, wanted in clips.items():
        audio_folder = folder / str(SAMPLE_RATE) / split
        audio_folder.mkdir(parents=True)
        wanted = sorted(wanted, key=lambda clip: clip.stem)
        for clip in wanted:
            audio = np.zeros(n_samples, np.float32)
            read = sources.read_audio(clip.source)[:n_samples].numpy()
            audio[: len(read)] = read
            path = audio_folder / f"{clip.stem}.wav"
            soundfile.write(path, audio, SAMPLE_RATE, subtype="PCM_16")
            n_done += 1
            progress(n_done, n_clips)
        if split in metadata["splits"]:
            listed = {f"{clip.stem}.wav": _cut(clip.events or (), metadata) for clip in wanted}
            write_json(folder / f"{split}.json", listed)
    rows = [f"{i},{label}" for i, label in enumerate(labels)]
    (folder / "labelvocabulary.csv").write_text("\n".join(["idx,label", *rows, ""]), "utf-8")
    write_json(folder / METADATA, metadata)


def task_metadata(
    name: str,
    version: str,
    mode: str,
    splits: Iterable[str],
    duration_s: float | None,
    evaluation: Sequence[str],
    **more: object,
) -> dict[str, Any]:
    """What HEAR's tools read of an event task; `duration_s` None: clips differ in length."""
    return {
        "task_name": name,
        "version": version,
        "mode": mode,
        "embedding_type": "event",
        "prediction_type": "multilabel",
        "split_mode": "trainvaltest",
        "splits": list(splits),
        "sample_duration": duration_s,
        "evaluation": list(evaluation),
        **more,
    }


def write_json(path: Path, content: object) -> None:
    """Write JSON, a line a value."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _check(
    metadata: Mapping[str, Any],
    labels: Iterable[object],
    clips: Mapping[str, Sequence[Wanted]],
    sources: Sources,
) -> None:
    """Refuse times, labels and splits of clips as they would be when they are written."""
    members = {clip.source.path: clip.source for wanted in clips.values() for clip in wanted}

    def same(paths: Iterable[Path]) -> list[list[Path]]:
        groups = sources.same_bytes(members[path] for path in paths)
        return [[member.path for member in group] for group in groups]

    splits = {split: tuple(map(_clip, clips[split])) for split in metadata["splits"]}
    extra = {
        kind: tuple(ExtraClip(f"{c.stem}.wav", c.source.path, math.inf, None) for c in wanted)
        for kind, wanted in clips.items()
        if kind not in splits
    }
    task = Task(
        facts=HEAR_FOLDER,
        name=metadata["task_name"],
        version=metadata["version"],
        folder=Path(),
        labels=tuple(map(str, labels)),
        splits=splits,
        rotations=rotations(metadata),
        extra=extra,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", checks.TaskWarning)  # opening says these
        checks.check_task(task, same)


def _clip(wanted: Wanted) -> Clip:
    """A clip that is to be written; of no known length: what is too long for the task is cut."""
    events = tuple(
        (event["start"] / 1000, event["end"] / 1000, str(event["label"]))
        for event in wanted.events or ()
    )
    file = f"{wanted.stem}.wav"
    return Clip(file, wanted.source.path, events, math.inf, file)


def _cut(events: Sequence[Event], metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    end_ms = 1000.0 * metadata["sample_duration"]
    rows = [dict(e, end=min(e["end"], end_ms)) for e in events if e["start"] < end_ms]
    return sorted(rows, key=lambda row: row["start"])
