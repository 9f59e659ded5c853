"""Protocol `best`: what we recommend for frozen backbones; one recipe, found on validation data.

Each part and what it gains is on `docs/protocols.md`; `tools/ablation.py` measures it again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from downstream import probe as heads
from downstream.block_heads import BlockHeads, Layout, Statistics
from downstream.calibration import calibrate, decode
from downstream.embeddings import Frames, FrameSource, FrameSpec
from downstream.metrics import frame_map
from downstream.postprocess import boxes
from downstream.protocols.base import Found, Protocol, Settings
from downstream.protocols.knn import K, clip_scores
from downstream.protocols.paper import folds_of, outcome, sigmoid
from downstream.scoring import main_score
from downstream.targets import frame_targets
from downstream.tasks.task import Clip, Rotation, Task, Triple
from hear_pretrainedsed.decoding import Decoding
from hear_pretrainedsed.model import build_checkpoint
from hear_pretrainedsed.registry import get_checkpoint

Scores = dict[str, np.ndarray]
Outcome = tuple[Scores, dict[str, list[Triple]]]  # smoothed scores, events


@dataclass(frozen=True)
class ChangePoints:
    """How `postprocess.boxes` is set."""

    width_frames: int = 6
    merge_above: float = 0.6


@dataclass(frozen=True)
class Recipe:
    """What the ablation varies, and how heads are trained.

    layer_sum: blocks are summed by learned shares (and the sequence model's output with them, where
    there is one); else the final output is taken. n_dropped: last blocks left out of the sum.
    n_prototypes: of each class; None: a linear head. windowing, concat_mel: of `FrameSpec`.
    calibrated: thresholds and medians a class from valid; else 0.5 and the task's own.
    change_points: scores become boxes between their jumps before that.

    Training: AdamW; epochs within the bounds on steps; the lr and the check with the best frame mAP
    on valid are kept.
    """

    layer_sum: bool = True
    n_dropped: int = 0
    n_prototypes: int | None = 4
    windowing: str = "overlap"
    concat_mel: bool = False
    calibrated: bool = True
    change_points: ChangePoints | None = None
    lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    weight_decay: float = 0.01
    batch_pieces: int = 32
    n_epochs: int = 20
    steps_from_to: tuple[int, int] = (500, 4000)
    warmup_share: float = 0.1
    n_checks: int = 10


RECIPE = Recipe()


def specs(checkpoint: str, recipe: Recipe, precision: str) -> tuple[list[FrameSpec], Layout]:
    """Which frames of a checkpoint are put side by side, and how their columns are summed.

    Columns of blocks that are dropped come with the others, so that one file serves all recipes.
    """
    with torch.device("meta"):
        model = build_checkpoint(get_checkpoint(checkpoint))
    wanted, widths = [], []
    options: dict[str, Any] = {"windowing": recipe.windowing, "precision": precision}
    if recipe.layer_sum:
        n_blocks = model.backbone.n_blocks
        if recipe.n_dropped >= n_blocks:
            raise ValueError(f"{checkpoint}: {recipe.n_dropped} blocks dropped, and it has no more")
        wanted.append(FrameSpec(layer=tuple(range(n_blocks)), stored="float16", **options))
        widths += model.backbone.block_dims[: n_blocks - recipe.n_dropped]
    sequence_model = not isinstance(model.sequence_model, torch.nn.Identity)
    if sequence_model or recipe.concat_mel or not recipe.layer_sum:
        wanted.append(FrameSpec(concat_mel=recipe.concat_mel, **options))
        widths.append(model.frame_dim)
    mel = [model.frontend.n_mels] if recipe.concat_mel else []
    return wanted, Layout.of(widths, mel)


@dataclass(frozen=True)
class FirstColumns:
    """Frames without their last columns."""

    frames: Frames
    dim: int

    def clip(self, file: str) -> np.ndarray:
        """Frames (frames, dim) of one clip."""
        return self.frames.clip(file)[:, : self.dim]


@dataclass
class Fit:
    """Heads in training on one rotation, and the best of each so far."""

    model: BlockHeads
    best: list[float] = field(default_factory=list)
    step: list[int] = field(default_factory=list)
    state: list[list[Tensor]] = field(default_factory=list)

    def see(self, step: int, values: Sequence[float]) -> None:
        """Keep the parameters of heads that are better than they ever were."""
        if not self.best:
            n = len(values)
            self.best, self.step, self.state = [-math.inf] * n, [0] * n, [[] for _ in range(n)]
        for i, value in enumerate(values):
            if value > self.best[i] or not self.state[i]:
                self.best[i], self.step[i] = value, step
                self.state[i] = [p.detach().clone() for p in self.model.groups[i]]


@dataclass(frozen=True)
class Kit:
    """A task's frames under a recipe: training, scores, decoding."""

    task: Task
    sources: Sequence[heads.Source]
    layout: Layout
    recipe: Recipe
    settings: Settings
    seed: int

    @classmethod
    def of(
        cls, task: Task, source: FrameSource, recipe: Recipe, settings: Settings, seed: int
    ) -> Kit:
        """Frames from the cache, or computed now."""
        wanted, layout = specs(source.weights.checkpoint, recipe, settings.precision)
        sources: list[heads.Source] = [source.frames(x) for x in wanted]
        if recipe.layer_sum and recipe.n_dropped:
            n_columns = layout.in_dim - sum(frames.dim for frames in sources[1:])
            sources[0] = FirstColumns(sources[0], n_columns)
        return cls(task, sources, layout, recipe, settings, seed)

    def run_of(self, data: heads.LabelledFrames, lrs: Sequence[float]) -> heads.Run:
        """How long a training is."""
        low, high = self.recipe.steps_from_to
        an_epoch = math.ceil(data.n_pieces / self.recipe.batch_pieces)
        n_steps = min(max(self.recipe.n_epochs * an_epoch, low), high)
        return heads.Run(
            lrs=tuple(lrs),
            n_steps=n_steps,
            n_warmup_steps=round(self.recipe.warmup_share * n_steps),
            batch_pieces=self.recipe.batch_pieces,
            weight_decay=self.recipe.weight_decay,
            bf16=self.settings.precision == "bf16",
            check_steps=max(1, n_steps // self.recipe.n_checks),
        )

    def fit(self, rotation: Rotation, lrs: Sequence[float]) -> tuple[BlockHeads, dict[str, Any]]:
        """The head of the best lr at its best check, and what was chosen."""
        labels = self.task.labels
        data = heads.LabelledFrames.of(self.sources, self.task.clips(rotation.train), labels)
        run = self.run_of(data, lrs)
        generator = torch.Generator().manual_seed(self.seed)
        statistics = Statistics.of(data, generator)
        model = BlockHeads(self.layout, statistics, len(lrs), self.recipe.n_prototypes, generator)
        fit = Fit(model.to(self.settings.device))
        valid = self.task.clips(rotation.valid)

        def check(step: int) -> None:
            fit.see(step, self.frame_maps(model, valid))

        heads.train(model, data, run, generator, self.settings.tell, check)
        best = int(np.argmax(fit.best))
        chosen = {"lr": lrs[best], "step": fit.step[best], "valid_frame_map": fit.best[best]}
        if len(lrs) > 1:
            chosen["valid_frame_map_of_lr"] = dict(zip(map(str, lrs), fit.best, strict=True))
        model.keep(fit.state[best])
        return model, chosen

    def logits(self, model: BlockHeads, clips: Sequence[Clip]) -> list[Scores]:
        """Logits {file: (frames, classes)} of each head."""
        found = {c.file: heads.logits_of(model, heads.arrays_of(self.sources, c)) for c in clips}
        return [{file: x[i] for file, x in found.items()} for i in range(len(model.groups))]

    def scores(self, model: BlockHeads, clips: Sequence[Clip]) -> Scores:
        """Scores {file: (frames, classes)} of the first head."""
        return {file: sigmoid(x) for file, x in self.logits(model, clips)[0].items()}

    def frame_maps(self, model: BlockHeads, clips: Sequence[Clip]) -> list[float]:
        """Mean average precision over frames of each head; -inf where no class is active."""
        values = []
        for logits in self.logits(model, clips):
            wanted = {
                c.file: frame_targets(c, self.task.labels, len(logits[c.file])) for c in clips
            }
            values.append(frame_map(logits, wanted, self.task.labels).macro)
        return [-math.inf if math.isnan(value) else value for value in values]

    def decoding(self, clips: Sequence[Clip], scores: Scores) -> Decoding | None:
        """What is best for each class on some clips; None: nothing is calibrated."""
        if not self.recipe.calibrated:
            return None
        return calibrate(self.task, clips, self.boxed(scores))

    def boxed(self, scores: Scores) -> Scores:
        """Scores as boxes, if the recipe says so."""
        how = self.recipe.change_points
        return {f: boxes(x, **asdict(how)) for f, x in scores.items()} if how else scores

    def decode(self, scores: Scores, decoding: Decoding | None) -> Outcome:
        """Scores -> the same, smoothed; and events."""
        scores = self.boxed(scores)
        if decoding is None:
            return outcome(self.task, scores, 0.5)
        return decode(scores, decoding, self.task.labels)

    def calibrated(
        self, on_valid: Scores, on_test: Scores, valid: Sequence[Clip]
    ) -> tuple[dict[str, Any], Outcome]:
        """What is chosen on valid and the score there, and test clips decoded by it."""
        decoding = self.decoding(valid, on_valid)
        record = {"valid_score": main_score(self.task, valid, *self.decode(on_valid, decoding))}
        if decoding is not None:
            for name, values in asdict(decoding).items():
                record[name] = dict(zip(self.task.labels, values, strict=True))
        return record, self.decode(on_test, decoding)


def probe(task: Task, source: FrameSource, settings: Settings, seed: int) -> Found:
    """The recipe: lr and check by frame mAP on valid, then the decoding on valid, then test.

    The lr is searched on the first rotation only, all else on each.
    """
    kit = Kit.of(task, source, RECIPE, settings, seed)
    tested: Outcome = ({}, {})
    chosen: list[dict[str, Any]] = []
    lrs: Sequence[float] = RECIPE.lrs
    for rotation in task.rotations:
        model, record = kit.fit(rotation, lrs)
        lrs = (record["lr"],)
        record["block_shares"] = [round(x, 4) for x in model.convex()[0].tolist()]
        valid, test = (task.clips(split) for split in (rotation.valid, rotation.test))
        found, decoded = kit.calibrated(kit.scores(model, valid), kit.scores(model, test), valid)
        chosen.append(record | found)
        for part, more in zip(tested, decoded, strict=True):
            part.update(more)
    config = {"protocol": "best", **asdict(RECIPE)}
    return Found(*tested, folds_of(task), tuple(chosen), config)


def knn(task: Task, source: FrameSource, settings: Settings, seed: int) -> Found:
    """Votes of the nearest train frames, by the final output; decoded like the probe's scores."""
    recipe = replace(RECIPE, layer_sum=False, concat_mel=False)
    kit = Kit.of(task, source, recipe, settings, seed)
    tested: Outcome = ({}, {})
    chosen: list[dict[str, Any]] = []
    for rotation in task.rotations:
        train, valid, test = (
            task.clips(split) for split in (rotation.train, rotation.valid, rotation.test)
        )
        votes = clip_scores(task, kit.sources[0], train, [*valid, *test], settings.device)
        found, decoded = kit.calibrated(
            {clip.file: votes[clip.file] for clip in valid},
            {clip.file: votes[clip.file] for clip in test},
            valid,
        )
        chosen.append(found)
        for part, more in zip(tested, decoded, strict=True):
            part.update(more)
    config = {"protocol": "best", "k": K, "windowing": RECIPE.windowing}
    config |= {name: asdict(RECIPE)[name] for name in ("calibrated", "change_points")}
    return Found(*tested, folds_of(task), tuple(chosen), config)


PROTOCOL = Protocol("best", {"probe": probe, "knn": knn})
