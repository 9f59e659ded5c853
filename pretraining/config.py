"""All settings of a pre-training run, and what follows from them: steps and plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hear_pretrainedsed.events import GRID
from hear_pretrainedsed.registry import SEQUENCE_MODELS, unknown
from hear_pretrainedsed.training.augmentation import Augmentation
from hear_pretrainedsed.training.plan import Plan, share_of_steps
from pretraining.objectives import OBJECTIVES
from pretraining.sampling import WEIGHTS

WINDOW_S = GRID.window_samples / GRID.sample_rate
LONGEST_CLIP_S = 600  # as `clips` decodes
STAGES = ("weak", "strong")  # that are learned with labels, as all here
HEADS = ("linear", "multihead")
PSEUDO = ("file", "teacher")
LEARNED = {
    ("strong", "linear"): ("strong", "distillation"),
    ("weak", "linear"): ("weak",),
    ("weak", "multihead"): ("psla",),
}
"""Objectives by stage and head: losses of logits and of scores, of frames and of clips."""

_OF_FRAMES = {"distillation_weight": 0, "pseudo": None, "onset_weight": None, "weak_batch": None}
_RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (
        ("batch", "accumulation", "n_epochs", "valid_every_epochs", "epoch_clips", "n_layers")
        + ("n_classes", "weak_batch", "keep_from_epoch", "average_from_epoch")
        + ("halve_from_epoch", "halve_every_epochs"),
        lambda value: value >= 1,
        "at least 1",
    ),
    (
        ("lr", "backbone_lr", "sequence_lr", "gradient_clip"),
        lambda value: 0 < value < math.inf,
        "above 0",
    ),
    (
        ("weight_decay", "vector_decay", "onset_weight", "strong_weight", "weak_weight")
        + ("n_warmup_steps",),
        lambda value: 0 <= value < math.inf,
        "0 or more",
    ),
    (("distillation_weight", "warmup_share"), lambda value: 0 <= value <= 1, "from 0 to 1"),
    (("norm_momentum", "layer_decay"), lambda value: 0 < value <= 1, "above 0, at most 1"),
    (("ema_decay",), lambda value: 0 <= value < 1, "from 0 on, below 1"),
)


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is made; what is learned from and where it runs are told beside it.

    name, reproduces, published: what it is, in words; the number that was published for it.

    Raises `ValueError` for values out of range, and objectives, heads and stages that do not go
    together (`LEARNED`).

    The model. stage: of the result, "weak" or "strong". start: checkpoint that it starts from
    unless another one or a backbone is given. sequence_model: as in a checkpoint's name
    (`gru-2048`); None: as the start has it. n_layers: of the sequence model; None: its usual
    number. head: "linear", or PSLA's "multihead". n_classes: for a plan without a corpus.
    norm_momentum: of batch norms' statistics; None: as the network has it, which may be 0.01: a run
    of a few hundred steps from a random start then ends with statistics that are still the start's,
    and scores nothing.

    What is learned. objective, weak_objective: names of `objectives.OBJECTIVES`, the second for the
    second corpus. distillation_weight: of the loss
    against a teacher's scores, 0 to 1. pseudo: where these come from, "file" or "teacher"; None:
    there are none. teacher: its checkpoint. onset_weight: of the loss of onsets and offsets beside
    the main one; None: not learned. weak_batch: clips of a second corpus, without events, beside
    each `batch`; None: there is none.
    strong_weight, weak_weight: of the two streams' losses in their sum.

    The clips. clip_s: seconds of a clip that are learned from at a time; of longer ones a part,
    shorter ones are filled up. Other than 10 s for what pools a clip's tokens alone.

    The order. sampling, weak_sampling: of the two corpora, "uniform" or a rule of
    `sampling.WEIGHTS`. replacement: a clip may
    come twice in an epoch. epoch_clips: length of an epoch; None: the corpus'.

    The batches. batch: clips whose gradients are taken at a time, in batch norms together;
    accumulation: so many of them a step. augmentation, weak_augmentation: of the two streams.

    The steps: see `training.plan.Plan`. n_epochs, valid_every_epochs, halve_from_epoch,
    halve_every_epochs: in epochs; n_warmup_steps: a number of steps, or, if None, `warmup_share` of
    all. keep_from_epoch: weights of every validation from here on
    are kept and make an ensemble, also where there is nothing to validate on; None: of none.
    average_from_epoch: the first of these that is averaged; None: all are. average_first_twice: as
    PSLA's script.
    """

    name: str
    reproduces: str
    published: str = "none"
    stage: str = "strong"
    start: str | None = None
    sequence_model: str | None = None
    n_layers: int | None = None
    head: str = "linear"
    n_classes: int = 447
    norm_momentum: float | None = None
    objective: str = "strong"
    weak_objective: str = "distillation"
    distillation_weight: float = 0.0
    pseudo: str | None = None
    teacher: str | None = None
    onset_weight: float | None = None
    weak_batch: int | None = None
    strong_weight: float = 1.0
    weak_weight: float = 1.0
    clip_s: float = WINDOW_S
    sampling: str = "uniform"
    weak_sampling: str = "weak"
    replacement: bool = False
    epoch_clips: int | None = 100_000
    batch: int = 256
    accumulation: int = 1
    augmentation: Augmentation = field(default_factory=Augmentation)
    weak_augmentation: Augmentation = field(default_factory=Augmentation)
    n_epochs: int = 120
    n_warmup_steps: int | None = None
    warmup_share: float = 0.0
    valid_every_epochs: int = 5
    keep_from_epoch: int | None = None
    average_from_epoch: int | None = None
    average_first_twice: bool = False
    optimizer: str = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    lr: float = 1e-4
    backbone_lr: float | None = None
    sequence_lr: float | None = None
    weight_decay: float = 0.0
    vector_decay: float = 0.0
    layer_decay: float = 1.0
    decay_last: bool = True
    schedule: str = "cosine"
    halve_from_epoch: int | None = None
    halve_every_epochs: int | None = None
    gradient_clip: float | None = None
    ema_decay: float | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        _check_one_of("stage", self.stage, STAGES)
        _check_one_of("head", self.head, HEADS)
        _check_one_of("sampling", self.sampling, ("uniform", *WEIGHTS))
        _check_one_of("weak_sampling", self.weak_sampling, ("uniform", *WEIGHTS))
        _check_one_of("objective", self.objective, OBJECTIVES)
        _check_one_of("weak_objective", self.weak_objective, OBJECTIVES)
        if self.pseudo is not None:
            _check_one_of("pseudo", self.pseudo, PSEUDO)
        for names, inside, words in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not inside(value):
                    raise ValueError(f"{name} is {value}; it is {words}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {self.betas}; each is from 0 on, below 1")
        if self.sequence_model is not None:
            sequence_of(self.sequence_model)
        elif self.n_layers is not None:
            raise ValueError(
                f"n_layers is {self.n_layers}; it is of a sequence_model, which is None"
            )
        self._check_epochs()
        self._check_clip()
        self._check_learned()

    def _check_epochs(self) -> None:
        """What is averaged is kept, and what is kept comes to be."""
        keep, average = self.keep_from_epoch, self.average_from_epoch
        if keep is not None and keep > self.n_epochs:
            raise ValueError(
                f"keep_from_epoch is {keep}, and n_epochs {self.n_epochs}: no "
                "weights would be kept; it is at most n_epochs, or None"
            )
        if average is not None and (keep is None or not keep <= average <= self.n_epochs):
            raise ValueError(
                f"average_from_epoch is {average}, with keep_from_epoch {keep} and n_epochs "
                f"{self.n_epochs}: it is from the one to the other, or None (all that are kept)"
            )

    def _check_learned(self) -> None:
        """What is learned, what it is learned from and the head belong together."""
        objectives = LEARNED.get((self.stage, self.head), ())
        if self.objective not in objectives:
            all_told = (
                f"{stage}, {head}: {' or '.join(o)}" for (stage, head), o in LEARNED.items()
            )
            raise ValueError(
                f"objective {self.objective!r} does not go with stage {self.stage} and head "
                f"{self.head}; what does is {'; '.join(all_told)}"
            )
        for name, off in _OF_FRAMES.items():
            if self.stage == "weak" and (value := getattr(self, name)) != off:
                raise ValueError(f"{name} is {value}; it is of frames, and {off} at stage weak")
        second = None if self.weak_batch is None else self.weak_objective
        if second not in (None, *objectives):
            raise ValueError(
                f"weak_objective {second!r} does not go with stage {self.stage} and head "
                f"{self.head}; what does is {' or '.join(objectives)}"
            )
        if self.pseudo is None and (self.objective == "distillation" or self.distillation_weight):
            raise ValueError(
                f"distillation_weight is {self.distillation_weight}, objective {self.objective}: "
                f"what is distilled from is missing, pseudo is None (one of: {', '.join(PSEUDO)})"
            )
        if second == "distillation" and self.pseudo != "teacher":
            raise ValueError(
                f"pseudo is {self.pseudo}; the second corpus is distilled from a teacher: set "
                "pseudo=teacher, or weak_batch=None"
            )

    def _check_clip(self) -> None:
        if not 1 <= self.clip_s <= LONGEST_CLIP_S:
            raise ValueError(f"clip_s is {self.clip_s}; it is from 1 to {LONGEST_CLIP_S} seconds")
        wanted = {"stage": "weak", "head": "multihead", "sequence_model": None, "pseudo": None}
        apart = [f"{k} {getattr(self, k)}" for k, v in wanted.items() if getattr(self, k) != v]
        if self.clip_s != WINDOW_S and apart:
            raise ValueError(
                f"clip_s is {self.clip_s:g} with {', '.join(apart)}: frames, events and pseudo "
                f"labels are of {WINDOW_S:g} s; other lengths are for stage weak with head "
                "multihead alone"
            )

    @property
    def clip_samples(self) -> int:
        """Samples of a clip that are learned from at a time."""
        return round(self.clip_s * GRID.sample_rate)

    @property
    def batch_pieces(self) -> int:
        """Clips of the main stream in a step."""
        return self.batch * self.accumulation

    @property
    def weak_pieces(self) -> int | None:
        """Clips of the second stream in a step."""
        return None if self.weak_batch is None else self.weak_batch * self.accumulation

    def epoch_of(self, n_clips: int) -> int:
        """Clips in an epoch of a corpus with `n_clips`: no more than it has, unless repeated."""
        wanted = n_clips if self.epoch_clips is None else self.epoch_clips
        return wanted if self.replacement else min(wanted, n_clips)

    def steps_per_epoch(self, n_clips: int) -> int:
        """Steps in an epoch, of which the last may have fewer clips."""
        return -(-self.epoch_of(n_clips) // self.batch_pieces)

    def clips_in(self, n_steps: int, n_clips: int, pieces: int | None = None) -> int:
        """Clips that so many steps see of a corpus with `n_clips`: an epoch's last may have fewer.

        pieces: of a step, where it is not the main stream's.
        """
        epoch, pieces = self.epoch_of(n_clips), pieces or self.batch_pieces
        whole, rest = divmod(n_steps, -(-epoch // pieces))
        return whole * epoch + min(rest * pieces, epoch)

    def plan(self, n_clips: int, *, steps_scale: float = 1.0, max_steps: int | None = None) -> Plan:
        """How a training on `n_clips` goes; all that is counted in steps shrinks alike."""
        epoch = self.steps_per_epoch(n_clips)
        all_steps = self.n_epochs * epoch
        scale = share_of_steps(all_steps, steps_scale, max_steps)
        n_steps = max(1, round(scale * all_steps))
        n_warmup = self.n_warmup_steps
        if n_warmup is None:
            n_warmup = self.warmup_share * all_steps
        return Plan(
            n_steps=n_steps,
            n_warmup_steps=round(scale * n_warmup),
            batch_pieces=self.batch_pieces,
            lr=self.lr,
            backbone_lr=self.backbone_lr,
            sequence_lr=self.sequence_lr,
            weight_decay=self.weight_decay,
            vector_decay=self.vector_decay,
            layer_decay=self.layer_decay,
            decay_last=self.decay_last,
            optimizer=self.optimizer,
            betas=self.betas,
            gradient_clip=self.gradient_clip,
            schedule=self.schedule,
            halve_from_step=_steps(self.halve_from_epoch, epoch, scale),
            halve_every_steps=_steps(self.halve_every_epochs, epoch, scale),
            ema_decay=self.ema_decay,
            valid_every_steps=_steps(self.valid_every_epochs, epoch, scale),
            precision=self.precision,
        )

    def keep_from_step(self, plan: Plan) -> int | None:
        """The first step whose weights are kept; None: of none are.

        Of a plan that is shorter, validations are not just as many as of the whole one, because
        steps are whole. So many are kept of its last ones as of the whole plan's.
        """
        return self._step_of(self.keep_from_epoch, plan)

    def average_from_step(self, plan: Plan) -> int | None:
        """The first step whose weights are averaged, of as many as of the whole plan; None: all."""
        return self._step_of(self.average_from_epoch, plan)

    def _step_of(self, first: int | None, plan: Plan) -> int | None:
        every = plan.valid_every_steps
        if first is None or every is None:
            return None
        between = range(self.valid_every_epochs, self.n_epochs, self.valid_every_epochs)
        n_kept = sum(epoch >= first for epoch in (*between, self.n_epochs))
        steps = [*range(every, plan.n_steps, every), plan.n_steps]
        return steps[-min(n_kept, len(steps))]


def _steps(epochs: int | None, steps_per_epoch: int, scale: float) -> int | None:
    return None if epochs is None else max(1, round(epochs * steps_per_epoch * scale))


def _check_one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise ValueError(unknown(name, value, allowed))


def sequence_of(text: str) -> tuple[str, int]:
    """`gru-2048` -> ("gru", 2048)."""
    name, _, dim = text.rpartition("-")
    if name not in SEQUENCE_MODELS:
        raise ValueError(unknown("sequence model", name or text, SEQUENCE_MODELS))
    if not dim.isdigit() or int(dim) < 1:
        raise ValueError(f"sequence_model is {text!r}; it is NAME-WIDTH, as gru-2048")
    return name, int(dim)
