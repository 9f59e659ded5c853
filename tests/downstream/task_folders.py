"""Small task folders of noise for tests."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

Rows = Sequence[tuple[float, float, str]]  # onset, offset, label


def noise(path: Path, seconds: float = 1.0, rate: int = 16_000) -> Path:
    """Noise that depends on the file's name and folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = "/".join(path.parts[-3:])  # not the temporary folder's name: the same in every run
    rng = np.random.default_rng(zlib.crc32(place.encode()))
    soundfile.write(path, rng.uniform(-0.1, 0.1, round(seconds * rate)), rate)
    return path


def hear_task(
    folder: Path,
    splits: Mapping[str, Mapping[str, Rows]],
    labels: Sequence[str] = ("a", "b"),
    rate: int = 16_000,
    **metadata: object,
) -> Path:
    """A folder in HEAR's layout, clips of a second; rows are in ms."""
    for split, clips in splits.items():
        (folder / "16000" / split).mkdir(parents=True)
        listed = {}
        for file, rows in clips.items():
            noise(folder / "16000" / split / file, rate=rate)
            listed[file] = [{"start": a, "end": b, "label": label} for a, b, label in rows]
        (folder / f"{split}.json").write_text(json.dumps(listed))
    rows = [f"{i},{label}\n" for i, label in enumerate(labels)]
    (folder / "labelvocabulary.csv").write_text("idx,label\n" + "".join(rows))
    known = {
        "task_name": "small",
        "version": "v1",
        "embedding_type": "event",
        "prediction_type": "multilabel",
        "split_mode": "trainvaltest" if "train" in splits else "new_split_kfold",
        "splits": list(splits),
        "sample_duration": 1.0,
        "evaluation": ["event_onset_200ms_fms", "segment_1s_er"],
    }
    (folder / "task_metadata.json").write_text(json.dumps(known | metadata))
    return folder


BOTH: Rows = ((100, 400, "a"), (300, 900, "b"))


def three_splits(train: Rows = BOTH, valid: Rows = BOTH, test: Rows = BOTH) -> dict:
    """A clip in each of train, valid and test."""
    return {"train": {"x.wav": train}, "valid": {"y.wav": valid}, "test": {"z.wav": test}}
