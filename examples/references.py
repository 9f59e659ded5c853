"""What a number means: the same protocol on a plain log-mel spectrogram, and events at random.

Both are scored like a checkpoint's frames, and stand in the table as if they were one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from downstream.cells import Cell, Measured
from downstream.embeddings import FrameSpec
from downstream.protocols import PROTOCOLS, Found, Settings
from downstream.scoring import score_task
from downstream.tasks import Clip, Task
from hear_pretrainedsed.audio import read_audio
from hear_pretrainedsed.model import SEDModel

LOG_MEL, CHANCE = "log-mel alone", "chance: events at random"
WITH_LOG_MEL = ("hear", "paper")  # these take any frames; protocol best wants a backbone's blocks
N_CHANCE = 20


@dataclass(frozen=True)
class HeldFrames:
    """Frames by clip in memory, in place of a `FrameSource` and of its `Frames`."""

    arrays: Mapping[str, np.ndarray]  # (frames, dim) each

    def frames(self, spec: FrameSpec) -> HeldFrames:
        """The frames, whatever is asked for."""
        return self

    @property
    def dim(self) -> int:
        """Width of a frame."""
        return next(iter(self.arrays.values())).shape[1]

    def clip(self, file: str) -> np.ndarray:
        """Frames (frames, dim) of one clip."""
        return self.arrays[file]

    def n_frames(self, file: str) -> int:
        """How many frames a clip has."""
        return len(self.arrays[file])

    def join(self, files: Sequence[str]) -> Tensor:
        """Frames of some clips one after the other, (frames, dim)."""
        return torch.from_numpy(np.concatenate([self.arrays[file] for file in files]))


@torch.no_grad()
def log_mel(task: Task, model: SEDModel) -> HeldFrames:
    """The log-mel spectrogram that a network sees, averaged over each 40 ms; clips of 10 s."""
    clips = task.clips(task.splits)
    return HeldFrames(
        {clip.file: model.mel_frames(read_audio(clip.path)[None])[0].numpy() for clip in clips}
    )


def rows(cells: Sequence[Cell], task: Task, mel: HeldFrames, settings: Settings) -> list[Cell]:
    """What stands beside these cells of a checkpoint."""
    found = []
    draws = [_scored(task, _at_random(task, np.random.default_rng(i))) for i in range(N_CHANCE)]
    for cell in cells:
        protocol = cell.protocol.removesuffix("-scaled")
        if protocol in WITH_LOG_MEL:
            run = PROTOCOLS[protocol].modes[cell.mode]
            metrics = _scored(task, run(task, mel, settings, cell.seed))
            found.append(_beside(cell, LOG_MEL, metrics, cell.seed))
        found += [_beside(cell, CHANCE, metrics, seed) for seed, metrics in enumerate(draws)]
    return found


def _beside(cell: Cell, name: str, metrics: dict[str, Measured], seed: int) -> Cell:
    return replace(cell, checkpoint=name, weights_sha256="", seed=seed, metrics=metrics)


def _scored(task: Task, found: Found) -> dict[str, Measured]:
    return {name: Measured.of(result) for name, result in score_task(task, found).items()}


def _at_random(task: Task, rng: np.random.Generator) -> Found:
    """Events as many, as long and of such classes as those of train, anywhere in a test clip."""
    train, test = task.clips("train"), task.clips("test")
    known = [event for clip in train for event in clip.events]

    def draw(clip: Clip) -> list[tuple[float, float, str]]:
        picked = rng.choice(len(known), rng.poisson(len(known) / len(train)))
        lengths = [(known[i][1] - known[i][0], known[i][2]) for i in picked]
        onsets_s = [rng.uniform(0, clip.duration_s - length_s) for length_s, _ in lengths]
        return [(a, a + n, label) for a, (n, label) in zip(onsets_s, lengths, strict=True)]

    scores = {clip.file: np.zeros((1, len(task.labels)), np.float32) for clip in test}
    events = {clip.file: draw(clip) for clip in test}
    return Found(scores, events, (tuple(clip.file for clip in test),), ())
