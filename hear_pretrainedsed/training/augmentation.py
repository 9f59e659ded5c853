"""What is done to a batch in training, and in which order."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from hear_pretrainedsed.training.augment import mixup, wav_mixup, wavmix
from hear_pretrainedsed.training.augment_spec import (
    MIN_TIME_MASK,
    filter_augment,
    frame_shift,
    freq_warp,
    mixstyle,
    spec_mask,
    time_mask,
)
from hear_pretrainedsed.training.batch import Batch

_PROBABILITIES = ("wavmix", "wav_mixup", "mixup", "mixstyle", "filter_augment", "freq_warp")


@dataclass(frozen=True)
class Augmentation:
    """Which augmentations a batch goes through; None: not done.

    The probabilities of `wavmix` and `wav_mixup` are of each clip, those of the others of a batch.

    wavmix: probability of mixing audio, the larger share the clip's own (PretrainedSED).
    wav_mixup: the same with shares about a half (PSLA).
    frame_shift: deviation of the roll in time, as a share of the clip.
    mixup: probability of mixing specs. mixup_beta: parameters of what a share is drawn from;
        EfficientSED has (0.3, 0.2) for the strong half in online distillation and (0.3, 0.3) for
        the weak one. mixup_larger_share: the larger share is the clip's own, as in PretrainedSED
        and in the weak half; elsewhere in EfficientSED it is not.
    mixstyle: probability of mixing statistics.
    time_mask: what the masked share of the clip stays below; it is 0.05 at least.
    filter_augment, freq_warp: probabilities.
    spec_mask: what the widths of PSLA's masks stay below, (mels, spec frames). spec_mask_value:
        what these hold, in normalised units; None: what the front end makes of a zero, as PSLA.
    repaired_time_mask: a teacher's scores are masked with the audio; the originals never do that.
    draw_mel_edges: front ends whose mel range was drawn in their own training get another one a
        step. The trainer does that, between audio and specs.
    """

    wavmix: float | None = None
    wav_mixup: float | None = None
    frame_shift: float | None = None
    mixup: float | None = None
    mixup_beta: tuple[float, float] = (0.2, 0.2)
    mixup_larger_share: bool = True
    mixstyle: float | None = None
    time_mask: float | None = None
    filter_augment: float | None = None
    freq_warp: float | None = None
    spec_mask: tuple[int, int] | None = None
    spec_mask_value: float | None = None
    repaired_time_mask: bool = False
    draw_mel_edges: bool = False

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            _check_range(name, getattr(self, name), 0)
        _check_range("frame_shift", self.frame_shift, 0)
        _check_range("time_mask", self.time_mask, MIN_TIME_MASK)
        if self.wavmix is not None and self.wav_mixup is not None:
            raise ValueError(
                f"wavmix {self.wavmix} and wav_mixup {self.wav_mixup} both mix audio; take one"
            )
        if len(self.mixup_beta) != 2 or not all(0 < x < math.inf for x in self.mixup_beta):
            raise ValueError(f"mixup_beta is {self.mixup_beta}; it is two finite numbers above 0")
        sizes = self.spec_mask
        if sizes is not None and (len(sizes) != 2 or min(sizes) < 1):
            raise ValueError(f"spec_mask is {sizes}; it is (mels, spec frames), each at least 1")
        if self.spec_mask_value is not None and not math.isfinite(self.spec_mask_value):
            raise ValueError(f"spec_mask_value is {self.spec_mask_value}; it is a finite number")

    def with_mask_value(self, value: float) -> Augmentation:
        """The same, masks holding `value` unless another one is set."""
        return self if self.spec_mask_value is not None else replace(self, spec_mask_value=value)

    def on_audio(self, batch: Batch, generator: torch.Generator) -> Batch:
        """What is done before the front end; all that is drawn comes from `generator` (CPU)."""
        if self.wavmix is not None:
            batch = wavmix(batch, generator, self.wavmix)
        if self.wav_mixup is not None:
            batch = wav_mixup(batch, generator, self.wav_mixup)
        return batch

    def on_spec(self, batch: Batch, generator: torch.Generator) -> Batch:
        """What is done after the front end, in the originals' order; PSLA's masks come last."""
        if self.frame_shift is not None:
            batch = frame_shift(batch, generator, self.frame_shift)
        if self.mixup is not None:
            batch = mixup(
                batch, generator, self.mixup, self.mixup_beta, larger=self.mixup_larger_share
            )
        if self.mixstyle is not None:
            batch = mixstyle(batch, generator, self.mixstyle)
        if self.time_mask is not None:
            batch = time_mask(batch, generator, self.time_mask, pseudo=self.repaired_time_mask)
        if self.filter_augment is not None:
            batch = filter_augment(batch, generator, self.filter_augment)
        if self.freq_warp is not None:
            batch = freq_warp(batch, generator, self.freq_warp)
        if self.spec_mask is not None:
            assert self.spec_mask_value is not None, "with_mask_value comes first"
            batch = spec_mask(batch, generator, self.spec_mask, self.spec_mask_value)
        return batch


def _check_range(name: str, value: float | None, low: float) -> None:
    if value is not None and not low < value <= 1:
        raise ValueError(f"{name} is {value}; it is above {low} and at most 1 (None: not done)")
