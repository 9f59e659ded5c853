"""A small event task in HEAR's folder layout, made of synthetic recordings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import synthesis

NAME = "synthetic_events"
VERSION = "v2"
FOLDER = f"{NAME}-{VERSION}-small"
CLIP_S = 10.0
N_CLIPS = {"train": 16, "valid": 8, "test": 12}
SNR_DB = (6.0, 20.0)
EVENTS_PER_CLIP = (4, 8)  # the second one excluded


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
        "version": VERSION,
        "mode": "small",
        "embedding_type": "event",
        "prediction_type": "multilabel",
        "split_mode": "trainvaltest",
        "splits": splits,
        "sample_duration": CLIP_S,
        "evaluation": ["event_onset_200ms_fms", "segment_1s_er"],
    }
