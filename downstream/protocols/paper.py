"""Protocol `paper`: PretrainedSED's downstream setting, frozen (Schmid et al., arXiv 2409.09546).

A linear layer on the 250 frames of 10 s pieces; Adam without weight decay, no mixing, batches of
256 pieces, 500 epochs, the last one tested; lr from 0 to its maximum over 4000 steps, then half a
cosine to 0; labels at frame centres; *logits* (not scores) above 0.5 after a median filter, events
from 125 ms on. Piano: 50 ms and a median of 150 ms; DESED: 0.48 s (`Facts` of the task).

Departures from the released script: `docs/protocols.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from downstream import probe as heads
from downstream.embeddings import GRID, Frames, FrameSource, FrameSpec
from downstream.postprocess import median_filter, runs, to_events
from downstream.protocols.base import Found, Protocol, Settings
from downstream.protocols.knn import K, clip_scores
from downstream.scoring import METRICS, main_score
from downstream.tasks.task import Clip, Rotation, Task, Triple


@dataclass(frozen=True)
class Recipe:
    """The frozen example of the release: its maximum lr is 0.2, around which the grid lies.

    n_warmup_steps: what its scripts really use, whatever their option says. threshold_logit: what
    logits are compared with: a score of 0.62.
    """

    lrs: tuple[float, ...] = (0.02, 0.06, 0.2, 0.6, 2.0)
    n_epochs: int = 500
    n_warmup_steps: int = 4000
    batch_pieces: int = 256
    threshold_logit: float = 0.5


RECIPE = Recipe()


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Logits -> scores, float32, of numpy arrays."""
    return torch.from_numpy(np.asarray(logits, np.float32)).sigmoid().numpy()


@dataclass(frozen=True)
class Kit:
    """A task's frames under this protocol, and how values of frames become events."""

    task: Task
    frames: Frames
    settings: Settings
    seed: int

    def outcome(
        self, values: Mapping[str, np.ndarray], threshold: float
    ) -> tuple[dict[str, np.ndarray], dict[str, list[Triple]]]:
        """Logits or scores {file: (frames, classes)} -> the same, smoothed; and events."""
        return outcome(self.task, values, threshold)

    def run_of(self, data: heads.LabelledFrames, lrs: Sequence[float]) -> heads.Run:
        """How long a training is; `steps_scale` shrinks warm-up and total alike."""
        scale = self.settings.steps_scale
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"--steps-scale is {scale}; it is finite and above 0 (1: all steps)")
        n_steps = RECIPE.n_epochs * math.ceil(data.n_pieces / RECIPE.batch_pieces)
        return heads.Run(
            lrs=tuple(lrs),
            n_steps=max(1, round((scale or 1) * n_steps)),
            n_warmup_steps=round((scale or 1) * RECIPE.n_warmup_steps),
            batch_pieces=RECIPE.batch_pieces,
            bf16=self.settings.precision == "bf16",
        )

    def train(self, rotation: Rotation, lrs: Sequence[float]) -> tuple[heads.Heads, heads.Run]:
        """One head an lr, all from the same start and on the same batches."""
        labels, device = self.task.labels, self.settings.device
        data = heads.LabelledFrames.of([self.frames], self.task.clips(rotation.train), labels)
        run = self.run_of(data, lrs)
        generator = torch.Generator().manual_seed(self.seed)
        model = heads.LinearHeads(len(lrs), data.dim, len(labels), generator).to(device)
        heads.train(model, data, run, generator, self.settings.tell)
        return model, run

    def logits(self, model: heads.Heads, clips: Sequence[Clip]) -> list[dict[str, np.ndarray]]:
        """Logits {file: (frames, classes)} of each head."""
        by_clip = {c.file: heads.logits_of(model, [self.frames.clip(c.file)]) for c in clips}
        return [{file: x[i] for file, x in by_clip.items()} for i in range(len(model.groups))]

    def valid_scores(self, model: heads.Heads, clips: Sequence[Clip]) -> list[float]:
        """The task's main metric of each head."""
        found = []
        for logits in self.logits(model, clips):
            smooth, events = self.outcome(logits, RECIPE.threshold_logit)
            scores = {file: sigmoid(x) for file, x in smooth.items()}
            found.append(main_score(self.task, clips, scores, events))
        return found


def probe(task: Task, source: FrameSource, settings: Settings, seed: int) -> Found:
    """The lr that is best on the first rotation's valid, on all rotations; `paper-scaled` if so.

    Of lrs with equal valid scores (none of them finds an event, say) the lowest is taken.
    """
    kit = Kit(task, source.frames(FrameSpec(precision=settings.precision)), settings, seed)
    logits: dict[str, np.ndarray] = {}
    chosen: list[dict[str, Any]] = []
    lrs: Sequence[float] = RECIPE.lrs
    for rotation in task.rotations:
        model, run = kit.train(rotation, lrs)
        valid = kit.valid_scores(model, task.clips(rotation.valid))
        best = int(np.argmax(worth(valid, task)))
        record = {"lr": lrs[best], "valid_score": valid[best], "n_steps": run.n_steps}
        if len(lrs) > 1:
            record["valid_score_of_lr"] = dict(zip(map(str, lrs), valid, strict=True))
        chosen.append(record)
        logits |= kit.logits(model, task.clips(rotation.test))[best]
        lrs = (lrs[best],)
    smooth, events = kit.outcome(logits, RECIPE.threshold_logit)
    scores = {file: sigmoid(x) for file, x in smooth.items()}
    name = "paper" if settings.steps_scale in (None, 1) else "paper-scaled"
    config = {"protocol": name, "steps_scale": settings.steps_scale or 1, **asdict(RECIPE)}
    return Found(scores, events, folds_of(task), tuple(chosen), config | smoothing(task))


def knn(task: Task, source: FrameSource, settings: Settings, seed: int) -> Found:
    """Votes of the nearest train frames, post-processed like the probe's scores."""
    kit = Kit(task, source.frames(FrameSpec(precision=settings.precision)), settings, seed)
    votes: dict[str, np.ndarray] = {}
    for rotation in task.rotations:
        votes |= clip_scores(
            task,
            kit.frames,
            task.clips(rotation.train),
            task.clips(rotation.test),
            settings.device,
        )
    threshold = 1 / (1 + math.exp(-RECIPE.threshold_logit))
    scores, events = kit.outcome(votes, threshold)
    config = {"protocol": "paper", "k": K, "threshold": threshold}
    chosen = tuple({} for _ in task.rotations)
    return Found(scores, events, folds_of(task), chosen, config | smoothing(task))


def outcome(
    task: Task, values: Mapping[str, np.ndarray], threshold: float
) -> tuple[dict[str, np.ndarray], dict[str, list[Triple]]]:
    """Logits or scores {file: (frames, classes)} -> the same, smoothed; and events."""
    smooth = {file: median_filter(x, median_frames(task)) for file, x in values.items()}
    shortest = task.facts.min_duration_s
    events = {
        file: to_events(runs(x, threshold), task.labels, min_duration_s=shortest)
        for file, x in smooth.items()
    }
    return smooth, events


def median_frames(task: Task) -> int:
    """Width of the median filter, rounded as heareval does."""
    return round(task.facts.median_s / GRID.hop_s)


def worth(values: Sequence[float], task: Task) -> list[float]:
    """Scores of a task's main metric, the larger the better; what is not defined is worst."""
    sign = 1 if METRICS[task.metrics[0]].maximize else -1
    return [-math.inf if math.isnan(value) else sign * value for value in values]


def smoothing(task: Task) -> dict[str, Any]:
    """What `outcome` is set to, for the record."""
    return {"median_frames": median_frames(task), "min_duration_s": task.facts.min_duration_s}


def folds_of(task: Task) -> tuple[tuple[str, ...], ...]:
    """The test files of each rotation."""
    return tuple(tuple(clip.file for clip in task.clips(r.test)) for r in task.rotations)


PROTOCOL = Protocol("paper", {"probe": probe, "knn": knn}, reads={"probe": ("steps_scale",)})
