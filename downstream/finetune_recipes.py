"""Recipes of fine-tuning, one a protocol.

`paper` is the released DCASE 2016 script (Schmid et al., arXiv 2409.09546), read for other tasks
with their own metric and smoothing: a linear layer on the 250 frames of random 10 s pieces, AdamW
(its decay reaches biases and norms too), wavmix and mixup, 300 epochs of batches of 256, half a
cosine after 4000 steps of warm-up, the last epoch tested; *logits* above 0.5. The release gives one
maximum lr and says that a grid was searched; ours lies around it.

`best` is ours: lower blocks learn slower, an average of weights is validated and kept, training
ends when frame mAP on valid has stopped growing, and each class gets its threshold and median
there. Batch norms keep their statistics: batches are too small to make new ones. Half of the
pieces are drawn class by class (`training.pieces.Order`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

from downstream.protocols.base import Settings
from hear_pretrainedsed.frames import WINDOWINGS
from hear_pretrainedsed.registry import unknown
from hear_pretrainedsed.training.augmentation import Augmentation
from hear_pretrainedsed.training.pieces import Order
from hear_pretrainedsed.training.plan import Plan, share_of_steps

_DECAY_BLOCKS = 12
_RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("n_epochs", "batch_pieces", "n_checks", "patience"), lambda x: x >= 1, "at least 1"),
    (
        ("weight_decay", "vector_decay", "n_warmup_steps"),
        lambda x: 0 <= x < math.inf,
        "0 or more",
    ),
    (("head_factor",), lambda x: 0 < x < math.inf, "above 0"),
    (("warmup_share", "balanced"), lambda x: 0 <= x <= 1, "from 0 to 1"),
    (("layer_decay",), lambda x: 0 < x <= 1, "above 0, at most 1"),
    (("ema_decay",), lambda x: 0 <= x < 1, "from 0 on, below 1"),
)


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is fine-tuned; what is not told here is as in `training.plan.Plan`.

    Raises `ValueError` for values out of range.

    lrs: maximum lrs of the backbone, of which one is chosen on the first rotation's valid.
    head_factor: the head's and the sequence model's lr in these.
    n_epochs, steps_from_to: epochs, unless they have fewer or more steps than that.
    n_warmup_steps: or, if None, `warmup_share` of all. wavmix, mixup, draw_mel_edges: as in
        `training.augmentation.Augmentation`.
    n_checks: validations in a run; 1: at its end.
    windowing: of clips that are validated and tested.
    layer_decay: of a transformer's 12 blocks; other backbones' first blocks get the same share.
    calibrated: scores are decoded class by class as is best on valid; else as in `paper`.
    """

    lrs: tuple[float, ...]
    n_epochs: int
    batch_pieces: int
    weight_decay: float
    vector_decay: float
    head_factor: float = 1.0
    steps_from_to: tuple[int, int] = (1, 10**9)
    n_warmup_steps: int | None = None
    warmup_share: float = 0.0
    layer_decay: float = 1.0
    wavmix: float | None = None
    mixup: float | None = None
    balanced: float | None = None
    ema_decay: float | None = None
    freeze_norms: bool = False
    draw_mel_edges: bool = False
    n_checks: int = 1
    patience: int | None = None
    windowing: str = "reference"
    calibrated: bool = False

    def __post_init__(self) -> None:
        for names, inside, words in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not inside(value):
                    raise ValueError(f"{name} is {value}; it is {words}")
        if not (self.lrs and all(0 < lr < math.inf for lr in self.lrs)):
            raise ValueError(f"lrs is {self.lrs}; it is one number above 0, or several")
        if len({f"{lr:g}" for lr in self.lrs}) < len(self.lrs):
            raise ValueError(f"lrs is {self.lrs}; one is there twice")
        low, high = self.steps_from_to
        if not 1 <= low <= high:
            raise ValueError(f"steps_from_to is {low, high}; it is (fewest, most), at least 1")
        if self.n_warmup_steps is not None and self.warmup_share:
            raise ValueError(
                f"n_warmup_steps is {self.n_warmup_steps} and warmup_share {self.warmup_share}; "
                "set the first to None or the second to 0"
            )
        if self.windowing not in WINDOWINGS:
            raise ValueError(unknown("windowing", self.windowing, WINDOWINGS))
        _ = self.augmentation  # refuses what it cannot do

    def all_steps(self, order: Order) -> int:
        """Steps of a training that nothing shrinks."""
        low, high = self.steps_from_to
        return min(max(self.n_epochs * order.steps_per_epoch, low), high)

    def scale(self, order: Order, settings: Settings) -> float:
        """Share of all steps that is made."""
        steps = self.all_steps(order)
        return share_of_steps(steps, settings.steps_scale, settings.max_steps)

    @property
    def augmentation(self) -> Augmentation:
        """How its batches are changed."""
        return Augmentation(
            wavmix=self.wavmix, mixup=self.mixup, draw_mel_edges=self.draw_mel_edges
        )

    def plan(self, order: Order, lr: float, settings: Settings, n_blocks: int) -> Plan:
        """How a training of a backbone goes; `scale` shrinks warm-up and total alike."""
        scale, all_steps = self.scale(order, settings), self.all_steps(order)
        n_steps = max(1, round(scale * all_steps))
        n_warmup = self.n_warmup_steps
        if n_warmup is None:
            n_warmup = self.warmup_share * all_steps
        return Plan(
            n_steps=n_steps,
            n_warmup_steps=round(scale * n_warmup),
            batch_pieces=self.batch_pieces,
            lr=self.head_factor * lr,
            backbone_lr=lr,
            weight_decay=self.weight_decay,
            vector_decay=self.vector_decay,
            layer_decay=self.layer_decay ** (_DECAY_BLOCKS / n_blocks),
            balanced=self.balanced,
            ema_decay=self.ema_decay,
            freeze_norms=self.freeze_norms,
            valid_every_steps=None if self.n_checks == 1 else max(1, n_steps // self.n_checks),
            patience=self.patience,
            precision=settings.precision,
        )


PAPER = Recipe(
    lrs=(3.5e-5, 1.06e-4, 3.2e-4),
    n_epochs=300,
    batch_pieces=256,
    weight_decay=1e-3,
    vector_decay=1e-3,
    n_warmup_steps=4000,
    wavmix=0.5,
    mixup=0.5,
    draw_mel_edges=True,
)
BEST = Recipe(
    lrs=(1e-4, 5e-4),
    n_epochs=40,
    batch_pieces=32,
    weight_decay=0.01,
    vector_decay=0.0,
    head_factor=10.0,
    steps_from_to=(500, 8000),
    warmup_share=0.1,
    layer_decay=0.75,
    wavmix=0.5,
    mixup=0.5,
    balanced=0.5,
    ema_decay=0.999,
    freeze_norms=True,
    n_checks=20,
    patience=6,
    windowing="overlap",
    calibrated=True,
)
RECIPES = {"paper": PAPER, "best": BEST}


def changes(recipe: Recipe, protocol: str) -> str:
    """In what a recipe departs from its protocol's, as "ema_decay=0.99 n_epochs=5"; "": nothing."""
    usual = RECIPES[protocol]
    values = ((one.name, getattr(recipe, one.name)) for one in fields(Recipe))
    return " ".join(f"{n}={v!r}" for n, v in values if v != getattr(usual, n)).replace(", ", ",")
