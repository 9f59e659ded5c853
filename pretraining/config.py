"""All settings of a pre-training run, and what follows from them: steps, plan, settings as text."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from hear_pretrainedsed.registry import SEQUENCE_MODELS, STAGES, unknown
from hear_pretrainedsed.training.augmentation import Augmentation
from hear_pretrainedsed.training.plan import Plan, share_of_steps
from pretraining.objectives import OBJECTIVES
from pretraining.sampling import WEIGHTS

HEADS = ("linear", "multihead")
PSEUDO = ("file", "teacher")


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is made; what is learned from and where it runs are told beside it.

    name, reproduces, published: what it is, in words; the number that was published for it.

    The model. stage: of the result. start: checkpoint that it starts from unless another one or a
    backbone is given. sequence_model: as in a checkpoint's name (`gru-2048`); None: as the start
    has it. n_layers: of the sequence model; None: its usual number. head: "linear", or PSLA's
    "multihead". n_classes: for a plan without a corpus. norm_momentum: of batch norms' statistics;
    None: as the network has it, which may be 0.01: a run of a few hundred steps from a random start
    then ends with statistics that are still the start's, and scores nothing.

    What is learned. objective, weak_objective: names of `objectives.OBJECTIVES`, the second for the
    second corpus. distillation_weight: of the loss
    against a teacher's scores, 0 to 1. pseudo: where these come from, "file" or "teacher"; None:
    there are none. teacher: its checkpoint. onset_weight: of the loss of onsets and offsets beside
    the main one; None: not learned. weak_batch: clips of a second corpus, without events, beside
    each `batch`; None: there is none.
    strong_weight, weak_weight: of the two streams' losses in their sum.

    The order. sampling, weak_sampling: of the two corpora, "uniform" or a rule of
    `sampling.WEIGHTS`. replacement: a clip may
    come twice in an epoch. epoch_clips: length of an epoch; None: the corpus'.

    The batches. batch: clips whose gradients are taken at a time, in batch norms together;
    accumulation: so many of them a step. augmentation, weak_augmentation: of the two streams.

    The steps: see `training.plan.Plan`. n_epochs, valid_every_epochs, halve_from_epoch,
    halve_every_epochs: in epochs; n_warmup_steps: a number of steps, or, if None, `warmup_share` of
    all. keep_from_epoch: weights of every validation from here on
    are kept, averaged, and make an ensemble; None: of none. average_first_twice: as PSLA's script.
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
        counts = ("batch", "accumulation", "n_epochs", "valid_every_epochs", "epoch_clips")
        for name in (*counts, "n_layers", "weak_batch", "keep_from_epoch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it is at least 1")
        if self.norm_momentum is not None and not 0 < self.norm_momentum <= 1:
            raise ValueError(f"norm_momentum is {self.norm_momentum}; it is above 0, at most 1")
        if not 0 <= self.distillation_weight <= 1:
            raise ValueError(
                f"distillation_weight is {self.distillation_weight}; it is from 0 to 1"
            )
        if self.sequence_model is not None:
            sequence_of(self.sequence_model)

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


def with_settings(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """A recipe with other values, given as FIELD=VALUE.

    Fields of an augmentation are `augmentation.mixup` and `weak_augmentation.mixup`. Values are
    numbers, None, True, False, tuples, or text.

    Raises `ValueError` for a field that there is not (the nearest is named) or a wrong value.
    """
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting!r}: wanted FIELD=VALUE")
        part, dot, inner = name.strip().partition(".")
        if part not in _settable():
            raise ValueError(unknown("field", name, _settable()))
        if not dot:
            recipe = _replaced(recipe, part, _value(text))
            continue
        value = getattr(recipe, part)
        names = [one.name for one in fields(value)] if isinstance(value, Augmentation) else []
        if inner not in names:
            raise ValueError(unknown("field", name, [f"{part}.{one}" for one in names] or [part]))
        recipe = _replaced(recipe, part, _replaced(value, inner, _value(text)))
    return recipe


def _settable() -> list[str]:
    return [one.name for one in fields(Recipe) if one.name not in ("name", "reproduces")]


def _replaced(record: Any, name: str, value: object) -> Any:
    try:
        new = replace(record, **{name: value})
    except TypeError:
        new = None
    old = getattr(record, name)
    kinds = {int: int | float, float: int | float}.get(type(old), type(old))
    wrong = old is not None and value is not None and not isinstance(value, kinds)
    if new is None or wrong or (value is None and _required(record, name)):
        raise ValueError(f"{name} is {value!r}; it was {old!r}, and has to be of that kind")
    return new


def _required(record: Any, name: str) -> bool:
    kind = next(one.type for one in fields(record) if one.name == name)
    return "None" not in str(kind)


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()
