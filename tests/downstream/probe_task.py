"""A task whose frames are made up: what a probe should find is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from downstream.embeddings import Frames, FrameSpec
from downstream.tasks import Clip, Facts, Rotation, Task
from downstream.tasks.hear_folder import HEAR_FOLDER

LABELS = ("bell", "dog", "rain")
DIM = 16


def facts(metrics: Sequence[str] = ("event_onset_200ms_fms",)) -> Facts:
    return Facts(
        name="made_up",
        version="v1",
        licence="",
        citation="",
        metrics=tuple(metrics),
        unit="clip",
        open=HEAR_FOLDER.open,
    )


def made_up_task(
    n_clips: int = 4, duration_s: float = 20.0, folds: int = 0, metrics: Sequence[str] = ()
) -> Task:
    """Clips with 4 events each, on whole frames; one rotation, or as many as folds."""
    rng = np.random.default_rng(0)
    names = [f"fold{i:02d}" for i in range(folds)] or ["train", "valid", "test"]
    splits = {}
    for name in names:
        clips = []
        for i in range(n_clips):
            onsets = np.sort(rng.choice(int(duration_s) - 1, 4, replace=False)) + 0.2
            events = tuple((float(t), float(t) + 0.6, str(rng.choice(LABELS))) for t in onsets)
            file = f"{name}_{i}.wav"
            clips.append(Clip(file, Path(file), events, duration_s, file))
        splits[name] = tuple(clips)
    rotations = [Rotation(("train",), ("valid",), ("test",))]
    if folds:
        rotations = [
            Rotation(
                tuple(n for n in names if n not in (names[i], names[(i + 1) % folds])),
                (names[(i + 1) % folds],),
                (names[i],),
            )
            for i in range(folds)
        ]
    return Task(
        facts(metrics or ("event_onset_200ms_fms",)),
        "made_up",
        "v1",
        Path("."),
        LABELS,
        splits,
        tuple(rotations),
    )


class MadeUpSource:
    """Stands for a `FrameSource`: frames of 40 ms that hold the labels, turned, and noise."""

    def __init__(self, task: Task, folder: Path, noise: float = 0.3, widths: Sequence[int] = ()):
        self.task, self.folder, self.noise = task, folder, noise
        self.widths = widths  # of blocks
        self.final_dim = DIM
        self.specs: list[FrameSpec] = []

    def frames(self, spec: FrameSpec) -> Frames:
        self.specs.append(spec)
        dims = [self.final_dim] if spec.layer is None else [self.widths[i] for i in spec.layer]
        rng = np.random.default_rng(1)
        turns = [rng.standard_normal((len(LABELS), dim)) for dim in dims]
        folder = self.folder / str(len(list(self.folder.glob("*"))))
        folder.mkdir(parents=True)
        rows, index = [], []
        for clip in self.task.clips(self.task.splits):
            n = round(clip.duration_s / 0.04)
            wanted = np.zeros((n, len(LABELS)))
            for onset, offset, label in clip.events:
                wanted[round(onset / 0.04) : round(offset / 0.04), LABELS.index(label)] = 1
            x = np.concatenate([wanted @ turn for turn in turns], axis=1)
            rows.append((x + self.noise * rng.standard_normal(x.shape)).astype(spec.stored))
            entry = {"file": clip.file, "n_frames": n, "dim": x.shape[1], "dtype": spec.stored}
            index.append(json.dumps(entry) + "\n")
        (folder / "frames.bin").write_bytes(np.concatenate(rows).tobytes())
        (folder / "index.jsonl").write_text("".join(index))
        return Frames(folder)
