"""A small event task in HEAR's folder layout, made of synthetic recordings; and its reader."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import synthesis
import torch
from torch import Tensor

NAME = "synthetic_events"
FOLDER = f"{NAME}-v1-small"
CLIP_S = 10.0
N_CLIPS = {"train": 40, "valid": 10, "test": 15}
SNR_DB = (0.0, 15.0)
EVENTS_PER_CLIP = (2, 6)  # the second one excluded


@dataclass(frozen=True)
class Split:
    """Clips of equal length, and what sounds in them."""

    files: list[str]
    audio: Tensor  # (clips, samples)
    events: list[list[tuple[float, float, str]]]  # of each clip: onset_s, offset_s, label


def write_task(tasks_dir: Path, n_clips: dict[str, int] = N_CLIPS, seed: int = 0) -> Path:
    """Write the task's folder below `tasks_dir`, the same for every call; returns its path."""
    folder = tasks_dir / FOLDER
    for number, (split, n) in enumerate(n_clips.items()):
        rng = np.random.default_rng((seed, number))
        audio_folder = folder / str(synthesis.SAMPLE_RATE) / split
        audio_folder.mkdir(parents=True, exist_ok=True)
        events = {}
        for i in range(n):
            n_events = int(rng.integers(*EVENTS_PER_CLIP))
            audio, labelled = synthesis.recording(rng, CLIP_S, n_events, SNR_DB)
            name = f"{split}_{i:02d}.wav"
            soundfile.write(audio_folder / name, audio, synthesis.SAMPLE_RATE, subtype="PCM_16")
            events[name] = [
                {"label": label, "start": 1000 * onset_s, "end": 1000 * offset_s}
                for onset_s, offset_s, label in labelled
            ]
        (folder / f"{split}.json").write_text(json.dumps(events, indent=1))
    lines = [f"{i},{label}" for i, label in enumerate(synthesis.SOUNDS)]
    (folder / "labelvocabulary.csv").write_text("\n".join(["idx,label", *lines, ""]))
    (folder / "task_metadata.json").write_text(json.dumps(_metadata(list(n_clips)), indent=1))
    return folder


def _metadata(splits: list[str]) -> dict[str, object]:
    """What stock heareval reads of a task."""
    return {
        "task_name": NAME,
        "version": "v1",
        "mode": "small",
        "embedding_type": "event",
        "prediction_type": "multilabel",
        "split_mode": "trainvaltest",
        "splits": splits,
        "sample_duration": CLIP_S,
        "evaluation": ["event_onset_200ms_fms", "segment_1s_er"],
    }


def read_labels(folder: Path) -> list[str]:
    """Class names of a task, in the order of its vocabulary."""
    rows = (folder / "labelvocabulary.csv").read_text().splitlines()[1:]
    return [row.split(",", 1)[1] for row in rows]


def read_split(folder: Path, split: str) -> Split:
    """Audio and events of one split of a task in HEAR's layout."""
    listed = json.loads((folder / f"{split}.json").read_text())
    audio_folder = folder / str(synthesis.SAMPLE_RATE) / split
    clips = [soundfile.read(audio_folder / name, dtype="float32")[0] for name in listed]
    events = [
        [(event["start"] / 1000, event["end"] / 1000, str(event["label"])) for event in rows]
        for rows in listed.values()
    ]
    return Split(list(listed), torch.from_numpy(np.stack(clips)), events)
