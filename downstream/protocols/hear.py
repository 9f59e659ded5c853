"""Protocol `hear`: heareval 2021.1.3 (Turian et al., 2022), step for step.

Frames get the labels of the events that they lie in, training frames keep their order, MLPs from a
grid are trained until validation stops to improve, post-processing is chosen on valid, and folds
are rotated with the hyperparameters of the first rotation. Departures: initial weights and dropout
masks come from other random numbers than heareval's; a last training batch of one frame is left
out (heareval fails on it); times are compared in float64, as heareval did with numpy 1 (with
numpy 2 it rounds an event's times to float32, and can lose the frame at an event's end).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from downstream import mlp
from downstream.embeddings import GRID, Frames, FrameSource, FrameSpec
from downstream.protocols.base import Found, Protocol, Settings
from downstream.protocols.knn import K, clip_scores
from downstream.scoring import METRICS
from downstream.targets import frame_targets
from downstream.tasks.task import Clip, Rotation, Task, Triple
from hear_pretrainedsed.events import median_of_active
from hear_pretrainedsed.registry import unknown

#: heareval's PARAM_GRID and its two smaller ones, without what has one value only.
_DEFAULT: dict[str, list[Any]] = {
    "hidden_layers": [1, 2],
    "hidden_dim": [1024],
    "dropout": [0.1],
    "lr": [3.2e-3, 1e-3, 3.2e-4, 1e-4],
    "patience": [20],
    "max_epochs": [500],
    "check_val_every_n_epoch": [3],
    "batch_size": [1024],
    "initialization": ["xavier_uniform_", "xavier_normal_"],
}
_FAST = {"max_epochs": [10, 50], "check_val_every_n_epoch": [3, 10]}
_FASTER = {
    "hidden_layers": [0, 1],
    "hidden_dim": [64, 128],
    "patience": [1, 3],
    "max_epochs": [10],
    "check_val_every_n_epoch": [1],
}
GRIDS = {"default": _DEFAULT, "fast": _DEFAULT | _FAST, "faster": _DEFAULT | _FASTER}
TASK_GRIDS = {"dcase2016_task2": {"check_val_every_n_epoch": [10]}}  # by HEAR's task name
POSTPROCESSING = {"median_filter_ms": [250], "min_duration": [125, 250]}
THRESHOLD = 0.5
GRID_SEED = 42  # of heareval's draw from the grid

Conf = dict[str, Any]
Postprocessing = tuple[tuple[str, Any], ...]


def points(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations, in scikit-learn's order: keys sorted, the last one fastest."""
    keys = sorted(grid)
    return [
        dict(zip(keys, values, strict=True))
        for values in itertools.product(*(grid[key] for key in keys))
    ]


def drawn_points(hear: Mapping[str, Any], settings: Settings) -> list[Conf]:
    """The grid points that heareval tries on a task with this metadata, in its order."""
    if settings.grid not in GRIDS:
        raise ValueError(unknown("grid", settings.grid, GRIDS))
    grid = GRIDS[settings.grid] | TASK_GRIDS.get(hear.get("task_name", ""), {})
    grid |= hear.get("evaluation_params", {}).get("task_specific_param_grid", {})
    if strange := [key for key in grid if key not in _DEFAULT]:
        raise ValueError(unknown("task_specific_param_grid entry", strange[0], _DEFAULT))
    found = points(grid)
    random.Random(GRID_SEED).shuffle(found)
    return found[: settings.grid_points]


def file_order(task: Task) -> dict[str, list[Clip]]:
    """The clips of each split in the order in which heareval stores their frames."""
    draw = random.Random(0)
    order = {}
    for split in task.hear.get("splits", task.splits):
        clips = list(task.splits[split])
        draw.shuffle(clips)
        order[split] = clips
    return order


def to_events(
    scores: np.ndarray, labels: Sequence[str], median_filter_ms: float, min_duration: float
) -> list[Triple]:
    """Scores (frames, classes) of a clip -> its events as heareval makes them.

    An event lasts from the centre of its first frame to that of its last one, so one frame alone
    has no length.
    """
    hop_ms = 1000 * GRID.hop_s
    active = (scores > THRESHOLD).T
    if width := int(round(median_filter_ms / hop_ms)):
        active = median_of_active(active, width)
    edges = np.zeros((active.shape[0], active.shape[1] + 2), np.int8)
    edges[:, 1:-1] = active
    steps = np.diff(edges, axis=1)
    row, first = np.nonzero(steps == 1)
    last = np.nonzero(steps == -1)[1] - 1
    start, end = (first + 0.5) * hop_ms, (last + 0.5) * hop_ms
    kept = np.flatnonzero(end - start >= min_duration)
    kept = kept[np.argsort(start[kept], kind="stable")]
    columns = (start[kept] / 1000, end[kept] / 1000, row[kept])
    return [(a, b, labels[c]) for a, b, c in zip(*(x.tolist() for x in columns), strict=True)]


def postprocessings(task: Task) -> list[Postprocessing]:
    """Those that a task chooses among."""
    params = task.hear.get("evaluation_params", {})
    grid = params.get("event_postprocessing_grid", POSTPROCESSING)
    return [tuple(point.items()) for point in points(grid)]


def selects_by_score(task: Task) -> bool:
    """Whether the best validation is that of the best score, else of the lowest loss."""
    return task.hear.get("use_scoring_for_early_stopping", True)


def judged_by(task: Task) -> str:
    """The score that selects: the first one in HEAR's metadata."""
    return task.hear.get("evaluation", _of_events(task.metrics))[0]


def _of_events(names: Iterable[str]) -> list[str]:
    return [name for name in names if METRICS[name].needs == "events"]


def check(task: Task, mode: str) -> None:
    """Raise `ValueError` for a task that nothing can be selected on under this protocol."""
    by_score = selects_by_score(task)
    n_choices = len(postprocessings(task))
    if not by_score and n_choices > 1:
        raise ValueError(
            f"{task.name}: selects by loss, which cannot choose among {n_choices} "
            "post-processings: event_postprocessing_grid has to have one"
        )
    if (by_score or mode == "knn") and METRICS[judged_by(task)].needs != "events":
        raise ValueError(
            f"{task.name}: protocol hear selects by the first metric of `evaluation`, which is "
            f"{judged_by(task)!r} and of scores; of events are {', '.join(_of_events(METRICS))}: "
            "put one of these first, or take protocol paper or best"
        )


@dataclass
class Part:
    """Frames of some clips in heareval's order, and what is wanted of them."""

    clips: list[Clip]
    x: Tensor  # (frames, dim)
    y: Tensor  # (frames, classes)
    lengths: list[int]  # frames of each clip

    def by_clip(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Rows (frames, ...) as {file: rows of the clip}."""
        parts = np.split(rows, np.cumsum(self.lengths)[:-1])
        return {clip.file: part for clip, part in zip(self.clips, parts, strict=True)}


@dataclass
class Trial:
    """One head on its way: the best validation so far, and how long that is ago."""

    conf: Conf
    head: mlp.Head
    sign: int  # 1 if the score is to grow
    best: float = float("nan")
    best_epoch: int = -1
    state: list[Tensor] = field(default_factory=list)
    postprocessing: Postprocessing = ()
    n_waited: int = 0
    stopped: bool = False

    def validate(self, epoch: int, score: float, postprocessing: Postprocessing) -> None:
        """What lightning's ModelCheckpoint and EarlyStopping do with a validation score."""
        signed = self.sign * float(np.float32(score))
        known = self.best_epoch >= 0
        if not known or signed > self.sign * self.best:
            worst = -self.sign * float("inf")
            self.best = worst if np.isnan(signed) else self.sign * signed
            self.best_epoch, self.postprocessing = epoch, postprocessing
            self.state = self.head.state()
            self.n_waited = 0
        else:
            self.n_waited += 1
        self.stopped = not np.isfinite(signed) or self.n_waited >= self.conf["patience"]


@dataclass
class Kit:
    """A task under this protocol: its frames, scores and post-processing, whatever the fold."""

    task: Task
    frames: Frames
    settings: Settings
    order: dict[str, list[Clip]]
    by_score: bool  # select by score, else by loss
    postprocessings: list[Postprocessing]

    @classmethod
    def of(cls, task: Task, frames: Frames, settings: Settings) -> Kit:
        """Read what the task's metadata sets."""
        choices = postprocessings(task)
        return cls(task, frames, settings, file_order(task), selects_by_score(task), choices)

    @property
    def metric(self) -> str:
        """What the best validation is judged by."""
        return judged_by(self.task)

    @property
    def sign(self) -> int:
        """1 if what is selected by is to grow."""
        return 1 if self.by_score and METRICS[self.metric].maximize else -1

    def part(self, splits: Sequence[str]) -> Part:
        """Frames and labels of some splits, in the precision of the products."""
        clips = [clip for split in splits for clip in self.order[split]]
        files = [clip.file for clip in clips]
        lengths = [self.frames.n_frames(file) for file in files]
        y = [frame_targets(c, self.task.labels, n) for c, n in zip(clips, lengths, strict=True)]
        dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
        device = self.settings.device
        x = self.frames.join(files).to(device, dtype)
        return Part(clips, x, torch.from_numpy(np.concatenate(y)).to(device).float(), lengths)

    def scores(self, head: mlp.Head, part: Part) -> tuple[float, dict[str, np.ndarray]]:
        """Loss over all frames, and scores by clip."""
        logits = mlp.logits(head, part.x)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, part.y)
        return loss.item(), part.by_clip(logits.sigmoid().cpu().numpy())

    def events(self, scores: Mapping[str, np.ndarray], how: Postprocessing) -> dict[str, Any]:
        """Events of clips under one post-processing."""
        labels = self.task.labels
        return {file: to_events(x, labels, **dict(how)) for file, x in scores.items()}

    def validate(self, head: mlp.Head, part: Part) -> tuple[float, Postprocessing]:
        """The validation score, and the post-processing that it is reached with."""
        loss, scores = self.scores(head, part)
        return self.selected(scores, part.clips) if self.by_score else (loss, self.fixed)

    @property
    def fixed(self) -> Postprocessing:
        """The one post-processing of a task that selects by loss."""
        return self.postprocessings[0]

    def selected(
        self, scores: Mapping[str, np.ndarray], clips: Sequence[Clip]
    ) -> tuple[float, Postprocessing]:
        """The largest score of clips over all post-processings, and which one that is.

        NaN (no event found) counts as 0 among them, and of equal ones the larger wins. heareval
        takes the largest of an error rate too, though its heads are selected by the smallest.
        """
        reference = {clip.file: clip.events for clip in clips}
        metric = METRICS[self.metric]
        found = []
        for how in self.postprocessings:
            score = metric.micro_of_events(reference, self.events(scores, how), self.task.labels)
            found.append((0.0 if np.isnan(score) else score, how, score))
        _, how, score = max(found, key=lambda one: one[:2])
        return score, how

    def train(self, confs: Sequence[Conf], rotation: Rotation, seed: int) -> list[Trial]:
        """Train one head a conf on a rotation; those of one shape side by side."""
        train, valid = self.part(rotation.train), self.part(rotation.valid)
        trials = [self._trial(conf, train, seed, i) for i, conf in enumerate(confs)]
        shapes = list(dict.fromkeys(_shape(conf) for conf in confs))
        for shape in shapes:
            together = [trial for trial in trials if _shape(trial.conf) == shape]
            self._train_together(together, shape, train, valid, seed)
        return trials

    def _trial(self, conf: Conf, train: Part, seed: int, number: int) -> Trial:
        if conf["initialization"] not in mlp.INITS:
            raise ValueError(unknown("initialization", conf["initialization"], mlp.INITS))
        generator = torch.Generator().manual_seed(1000 * seed + number)
        sizes = (train.x.shape[1], train.y.shape[1])
        init, device = conf["initialization"], self.settings.device
        head = mlp.new_head(sizes, _shape(conf), conf["lr"], init, generator, device)
        return Trial(conf, head, self.sign)

    def _train_together(
        self, trials: list[Trial], shape: mlp.Shape, train: Part, valid: Part, seed: int
    ) -> None:
        masks = mlp.Masks(seed, shape.dropout, train.x.dtype, self.settings.device)
        for epoch in itertools.count():
            active = [t for t in trials if not t.stopped and epoch < t.conf["max_epochs"]]
            if not active:
                return
            mlp.epoch([t.head for t in active], train.x, train.y, shape, masks)
            for trial in active:
                if (epoch + 1) % trial.conf["check_val_every_n_epoch"] == 0:
                    trial.validate(epoch, *self.validate(trial.head, valid))
            best = [f"{t.best:.3f}" for t in trials if t.best_epoch >= 0]
            self.settings.tell(f"epoch {epoch + 1}, {len(active)} heads, valid {' '.join(best)}")


def _shape(conf: Conf) -> mlp.Shape:
    names = ("hidden_layers", "hidden_dim", "dropout", "batch_size")
    return mlp.Shape(*(conf[name] for name in names))


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial with the best validation score; the first of equal ones."""
    done = [trial for trial in trials if trial.best_epoch >= 0]
    if not done:
        raise ValueError("no grid point was ever validated: max_epochs is too small for its checks")
    return max(done, key=lambda trial: trial.sign * trial.best)


def probe(task: Task, source: FrameSource, settings: Settings, seed: int) -> Found:
    """The whole protocol: grid on the first rotation, its winner on all of them, test."""
    check(task, "probe")
    confs = drawn_points(task.hear, settings)
    kit = Kit.of(task, source.frames(FrameSpec(precision=settings.precision)), settings)
    scores: dict[str, np.ndarray] = {}
    events: dict[str, list[Triple]] = {}
    chosen: list[dict[str, Any]] = []
    for rotation in task.rotations:
        trial = best_of(kit.train(confs, rotation, seed))
        confs = [trial.conf]
        trial.head.load(trial.state)
        _, found = kit.scores(trial.head, kit.part(rotation.test))
        scores |= found
        events |= kit.events(found, trial.postprocessing)
        record = {**trial.conf, "epoch": trial.best_epoch, "valid_score": trial.best}
        chosen.append(record | {"postprocessing": dict(trial.postprocessing)})
    config = {"grid": settings.grid, "grid_points": settings.grid_points}
    return Found(scores, events, _folds(task), tuple(chosen), config)


def knn(task: Task, source: FrameSource, settings: Settings, seed: int) -> Found:
    """Votes of the nearest train frames as scores; post-processing chosen on valid."""
    check(task, "knn")
    kit = Kit.of(task, source.frames(FrameSpec(precision=settings.precision)), settings)
    scores: dict[str, np.ndarray] = {}
    events: dict[str, list[Triple]] = {}
    chosen: list[dict[str, Any]] = []
    for rotation in task.rotations:
        train, valid, test = map(task.clips, (rotation.train, rotation.valid, rotation.test))
        votes = clip_scores(task, kit.frames, train, [*valid, *test], settings.device)
        valid_score, how = kit.selected({clip.file: votes[clip.file] for clip in valid}, valid)
        found = {clip.file: votes[clip.file] for clip in test}
        scores |= found
        events |= kit.events(found, how)
        chosen.append({"valid_score": valid_score, "postprocessing": dict(how)})
    return Found(scores, events, _folds(task), tuple(chosen), {"k": K})


def _folds(task: Task) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(clip.file for clip in task.clips(r.test)) for r in task.rotations)


PROTOCOL = Protocol(
    "hear", {"probe": probe, "knn": knn}, reads={"probe": ("grid", "grid_points")}, check=check
)
