"""Tasks for evaluation only: a checkpoint's own head is scored, nothing is trained."""

from __future__ import annotations

import time

import numpy as np
import torch

from downstream.cells import Asked, Cell, Key, Measured, cell_of
from downstream.intervals import Units
from downstream.protocols import Settings
from hear_pretrainedsed.api import load_model


def score(asked: Asked, key: Key, settings: Settings) -> Cell:
    """The cell of a checkpoint's own head; without intervals, for nothing is resampled.

    Raises `ValueError` for a checkpoint without a head for the task's classes.
    """
    start = time.monotonic()
    model = load_model(
        asked.weights.path,
        checkpoint=asked.weights.checkpoint,
        device=settings.device,
        precision=settings.precision,
        batch_size=settings.batch_size,
    )

    def progress(n_done: int, n: int) -> None:
        settings.tell(f"{n_done} of {n} clips")

    task = asked.task
    found = task.facts.score_head(model, task, progress)
    metrics = {}
    for name, (micro, macro, per_class) in found.metrics.items():
        value = {"micro": micro, "macro": macro}[_headline(name)]
        metrics[name] = Measured(value, micro, macro, per_class, None, np.empty(0, np.float32))
    units = [[clip.unit for clip in task.clips(rotation.test)] for rotation in task.rotations]
    return cell_of(
        key,
        asked,
        metrics=metrics,
        sampling=Units.of(units).sampling,
        recipe=dict(found.recipe),
        chosen=(),
        n_test_frames=found.n_frames,
        seconds={"run_s": time.monotonic() - start},
        n_threads=torch.get_num_threads(),
    )


def _headline(name: str) -> str:
    from downstream.scoring import get_metric

    return get_metric(name).headline
