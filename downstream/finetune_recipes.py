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

from dataclasses import dataclass

from downstream.protocols.base import Settings
from hear_pretrainedsed.training.augmentation import Augmentation
from hear_pretrainedsed.training.pieces import Order
from hear_pretrainedsed.training.plan import Plan, share_of_steps

_DECAY_BLOCKS = 12


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is fine-tuned; what is not told here is as in `training.plan.Plan`.

    lrs: maximum lrs of the backbone, of which one is chosen on the first rotation's valid.
    head_factor: the head's and the sequence model's lr in these.
    n_epochs, steps_from_to: epochs, unless they have fewer or more steps than that.
    n_warmup_steps: or, if None, `warmup_share` of all.
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
