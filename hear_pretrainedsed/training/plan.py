"""What is set about a training: how it goes, and where it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from hear_pretrainedsed.options import PRECISIONS
from hear_pretrainedsed.registry import unknown

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
"""Adam adds weight decay to the gradient, AdamW takes it off the weights."""
SCHEDULES = ("cosine", "linear", "steps")
"""After the warm-up: `schedule.warmup_cosine`, `warmup_linear`, and PSLA's `warmup_halving`."""


@dataclass(frozen=True)
class Plan:
    """How a training goes; its numbers depend on all of this.

    n_steps, n_warmup_steps: of the optimiser. batch_pieces: 10 s pieces a step, of each stream.
    schedule: of the lr, a name of `SCHEDULES`. halve_from_step, halve_every_steps: of "steps".
    lr, backbone_lr, sequence_lr, weight_decay, vector_decay, layer_decay, decay_last: as in
        `param_groups`.
    optimizer: a name of `OPTIMIZERS`. betas: its decay rates of the two moments. gradient_clip:
        the largest norm of the whole gradient; None: any.
    balanced: as in `pieces.Order`.
    ema_decay: of the average of weights that is validated and kept; None: the weights themselves.
    freeze_norms: batch norms keep the statistics that they came with, so that they do not depend
        on how a batch is cut up.
    valid_every_steps: None: after the last step alone. patience: the run ends when so many
        validations in a row bring nothing better, and the best weights are kept; None: it goes to
        its end, and the last weights are kept.
    precision: "fp32" or "bf16" (mixed).
    """

    n_steps: int
    n_warmup_steps: int
    batch_pieces: int
    lr: float
    weight_decay: float
    layer_decay: float = 1.0
    decay_last: bool = True
    vector_decay: float = 0.0
    backbone_lr: float | None = None
    sequence_lr: float | None = None
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float | None = None
    schedule: str = "cosine"
    halve_from_step: int | None = None
    halve_every_steps: int | None = None
    balanced: float | None = None
    ema_decay: float | None = None
    freeze_norms: bool = False
    valid_every_steps: int | None = None
    patience: int | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_pieces", "valid_every_steps", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it is at least 1")
        if self.precision not in PRECISIONS:
            raise ValueError(unknown("precision", self.precision, PRECISIONS))
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(unknown("optimizer", self.optimizer, OPTIMIZERS))
        if self.schedule not in SCHEDULES:
            raise ValueError(unknown("schedule", self.schedule, SCHEDULES))
        if self.schedule == "steps" and None in (self.halve_from_step, self.halve_every_steps):
            raise ValueError("the schedule steps needs halve_from_step and halve_every_steps")


@dataclass(frozen=True)
class Place:
    """Where a training runs; its numbers depend on it by rounding alone.

    With two exceptions. Batch norms that are not frozen take their statistics from `micro_pieces`
    pieces; and dropout is drawn by each process for its own rows, one part of them after another.

    folder: for what a killed run goes on from, and for logs; made if need be.
    device: "cpu", "cuda" or, for one process a node, "cuda:1". n_devices, n_nodes: processes of
        data-parallel training; several nodes are started as torchrun or Slurm does.
    micro_pieces: pieces in memory at a time, whose gradients are summed; None: all of a process's
        on a GPU up to 64, 8 on a CPU; halved when memory runs out.
    n_workers: processes that read audio; 0: the training process does.
    logger: a name of `fit.LOGGERS`; None: no log.
    save_every_steps: how often it is saved what a killed run goes on from; None: 200 on a GPU, 25
        on a CPU.
    keep_from_step: the weights of every validation from this step on stay in the folder `kept`,
        as step-00001234.pt, for averages and ensembles; None: of none.
    """

    folder: Path
    device: str = "cpu"
    n_devices: int = 1
    n_nodes: int = 1
    micro_pieces: int | None = None
    n_workers: int = 0
    logger: str | None = None
    save_every_steps: int | None = None
    keep_from_step: int | None = None

    def __post_init__(self) -> None:
        for name in ("n_devices", "n_nodes", "micro_pieces", "save_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it is at least 1")
        if self.n_devices > 1 and ":" in self.device:
            raise ValueError(
                f"device is {self.device}, which is one, and n_devices {self.n_devices}; for "
                "several processes it is cuda, and CUDA_VISIBLE_DEVICES tells which GPUs"
            )

    @property
    def micro(self) -> int:
        """Pieces in memory at a time, to begin with."""
        return self.micro_pieces or (8 if self.device == "cpu" else 64)

    @property
    def save_every(self) -> int:
        """Steps from one saving to the next."""
        return self.save_every_steps or (25 if self.device == "cpu" else 200)


def share_of_steps(all_steps: int, steps_scale: float | None, max_steps: int | None) -> float:
    """The share of a training's steps that is made; warm-up and total shrink by it alike.

    Raises `ValueError` for a scale that is not above 0 and finite, or fewer steps than 1.
    """
    scale = 1.0 if steps_scale is None else steps_scale
    if not 0 < scale < math.inf:
        raise ValueError(f"--steps-scale is {scale}; it is finite and above 0 (1: all steps)")
    if max_steps is None:
        return scale
    if max_steps < 1:
        raise ValueError(f"--max-steps is {max_steps}; it is at least 1")
    return min(scale, max_steps / all_steps)
