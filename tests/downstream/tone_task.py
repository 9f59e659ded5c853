"""A folder of the user's own: tones of two pitches in noise, labelled by a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from downstream.embeddings import FrameSource, Weights
from downstream.tasks import Task
from hear_pretrainedsed.records import known_sha256
from hear_pretrainedsed.registry import get_checkpoint

CHECKPOINT = "fmn04.strong"
PITCHES_HZ = {"high": 5000, "low": 500}
SPLITS = ("train", "train", "train", "valid", "test")


def tone_folder(folder: Path, seconds: float = 12.0) -> Path:
    """Five recordings with three tones each, which overlap, and their split."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["filename\tonset\toffset\tevent_label\tsplit"]
    for i, split in enumerate(SPLITS):
        rng = np.random.default_rng(i)
        n = round(seconds * 16_000)
        audio, times = 0.01 * rng.standard_normal(n), np.arange(n) / 16_000
        for label, onset in (("low", 1.0), ("high", 1.6 + 0.3 * i), ("low", 8.5)):
            offset = onset + 1 + 0.2 * i
            part = slice(round(onset * 16_000), round(offset * 16_000))
            audio[part] += 0.3 * np.sin(2 * np.pi * PITCHES_HZ[label] * times[part])
            rows.append(f"{i}.wav\t{onset}\t{offset}\t{label}\t{split}")
        soundfile.write(folder / f"{i}.wav", audio, 16_000)
    (folder / "labels.tsv").write_text("\n".join(rows) + "\n")
    return folder


def tone_source(task: Task, release_file: Callable[[str], Path], cache: Path) -> FrameSource:
    """The stand-in weights of a small MobileNet."""
    path = release_file(CHECKPOINT)
    assert path.name == get_checkpoint(CHECKPOINT).file
    weights = Weights(CHECKPOINT, path, known_sha256(path))
    return FrameSource(weights, task.clips(task.splits), cache)
