"""What every protocol takes and gives: frames of a task in, scores and events of test clips out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from downstream.embeddings import FrameSource
from downstream.tasks.task import Task, Triple
from hear_pretrainedsed.training.plan import Place


def _nobody(line: str) -> None:
    """Tell nobody."""


def _any_task(task: Task, mode: str) -> None:
    """Take every task."""


@dataclass(frozen=True)
class Settings:
    """What a user may set about a run; each protocol says which of it it reads.

    precision: of frames and head, "fp32" or "bf16". device: of the head's training.
    steps_scale: protocol `paper`: shrinks its steps, which marks the result `paper-scaled`.
    max_steps: mode `finetune`: no training has more steps; where that shrinks it, it is as if
        `steps_scale` had, and marks the result likewise.
    grid_points: protocol `hear`: how many points of its grid are tried. grid: which grid.
    batch_size: windows, or pieces of a training, in memory at a time; None: auto. Halved when
        memory runs out.
    tell: is called with a line on where the training is.
    """

    precision: str = "fp32"
    device: str = "cpu"
    steps_scale: float | None = None
    grid_points: int = 8
    grid: str = "default"
    max_steps: int | None = None
    batch_size: int | None = None
    tell: Callable[[str], None] = _nobody

    @property
    def norm_pieces(self) -> int:
        """Mode `finetune`: pieces that batch norms take their statistics from, if not frozen."""
        return Place(Path(), self.device, micro_pieces=self.batch_size).micro


@dataclass(frozen=True)
class Found:
    """What a protocol says about the test clips of all rotations.

    scores: {file: (frames, classes)} on the 40 ms grid. events: {file: [(onset_s, offset_s,
    label), ...]}. folds: the test files of each rotation. chosen: a record a rotation of what was
    selected on valid (hyperparameters, epoch, post-processing, `valid_score`). config: everything
    that was set, so that it can be repeated.
    """

    scores: Mapping[str, np.ndarray]
    events: Mapping[str, list[Triple]]
    folds: tuple[tuple[str, ...], ...]
    chosen: tuple[dict[str, Any], ...]
    config: dict[str, Any] = field(default_factory=dict)


Mode = Callable[[Task, FrameSource, Settings, int], Found]  # ..., seed


@dataclass(frozen=True)
class Protocol:
    """A named way to obtain a downstream number: a function for each of its modes.

    reads: fields of `Settings` that a mode depends on beside `precision`, which all do; what is not
    among them does not make another result. check: (task, mode) raises `ValueError` for a task that
    the protocol cannot be run on.
    """

    name: str
    modes: Mapping[str, Mode]
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    check: Callable[[Task, str], None] = _any_task

    def config(self, mode: str, settings: Settings) -> dict[str, Any]:
        """The settings that a mode depends on."""
        return {name: getattr(settings, name) for name in ("precision", *self.reads.get(mode, ()))}
