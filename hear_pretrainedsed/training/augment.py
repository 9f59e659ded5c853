"""Mixing clips of a batch, as PretrainedSED, EfficientSED and PSLA do.

Schmid et al., arXiv 2409.09546, section 3; Morocutti et al., arXiv 2503.11373; Gong et al., TASLP
2021, section III. Each augmentation is a core that takes what was drawn, and a function of (batch,
generator) that draws it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hear_pretrainedsed.training.batch import Batch

_WAVMIX_BETA = (2.0, 2.0)
_MIXUP_BETA = (0.2, 0.2)
_WAV_MIXUP_BETA = (10.0, 10.0)


def wavmix(batch: Batch, generator: torch.Generator, probability: float) -> Batch:
    """Mix each clip's audio, with `probability`, with another one of the batch.

    The share of the clip itself is max(l, 1 - l), l from Beta(2, 2). A clip that is not mixed stays
    as it is. The original draws the partner from the whole training set.
    """
    return _mix_some(batch, generator, probability, _WAVMIX_BETA, larger=True)


def wav_mixup(batch: Batch, generator: torch.Generator, probability: float) -> Batch:
    """PSLA's mixup: as `wavmix`, but the clip's own share is from Beta(10, 10), often below half.

    Labels are mixed alike: one that both clips have stays 1.
    """
    return _mix_some(batch, generator, probability, _WAV_MIXUP_BETA, larger=False)


def mixup(
    batch: Batch,
    generator: torch.Generator,
    probability: float,
    beta: tuple[float, float] = _MIXUP_BETA,
    *,
    larger: bool = True,
) -> Batch:
    """Mix, with `probability`, the specs of a whole batch with those of its clips in another order.

    The share of the clip itself is drawn for each clip: c from Beta(*beta), or max(c, 1 - c) where
    the `larger` share is its own.
    """
    if torch.rand((), generator=generator) >= probability:
        return batch
    partner = torch.randperm(len(batch), generator=generator)
    return mix_spec(batch, partner, beta_shares(len(batch), beta, generator, larger=larger))


def mix_audio(batch: Batch, partner: Tensor, shares: Tensor, mixed: Tensor | None = None) -> Batch:
    """Wavmix with what was drawn: share * clip + (1 - share) * partner.

    Both waveforms are centred before and the sum after mixing. `partner` (batch,) are indices,
    `shares` (batch,) those of the clip itself, `mixed` (batch,) which clips are mixed at all
    (default: all). With the batch's `n_samples` a mixture ends where the clip itself does, and the
    partner is cut there (PSLA).
    """
    audio = _centred(_mix(_centred(batch.audio, batch.n_samples), partner, shares), batch.n_samples)
    if mixed is not None:
        audio = torch.where(mixed.to(audio.device)[:, None], audio, batch.audio)
    return replace(
        batch,
        audio=audio,
        **{name: _mix(value, partner, shares) for name, value in _labels(batch).items()},
    )


def _centred(audio: Tensor, n_samples: Tensor | None) -> Tensor:
    """Audio (batch, samples) without its mean; of clips that end at `n_samples`, silence after."""
    if n_samples is None:
        return audio - audio.mean(dim=1, keepdim=True)
    n_own = n_samples.to(audio.device)[:, None]
    own = torch.arange(audio.shape[1], device=audio.device) < n_own
    return (audio - (audio * own).sum(dim=1, keepdim=True) / n_own) * own


def mix_spec(batch: Batch, partner: Tensor, shares: Tensor) -> Batch:
    """Mixup with what was drawn: of specs, targets and pseudo targets, the latter in 0..1."""
    assert batch.spec is not None, "mixup is of specs: the front end comes first"
    labels = {name: _mix(x, partner, shares).clamp(0, 1) for name, x in _labels(batch).items()}
    teacher_spec = batch.teacher_spec
    if teacher_spec is not None:
        teacher_spec = _mix(teacher_spec, partner, shares)
    spec = _mix(batch.spec, partner, shares)
    return replace(batch, spec=spec, teacher_spec=teacher_spec, **labels)


def _labels(batch: Batch) -> dict[str, Tensor]:
    """What a batch has of targets, by field."""
    values = {"targets": batch.targets, "weak": batch.weak, "pseudo": batch.pseudo}
    return {name: value for name, value in values.items() if value is not None}


def _mix(x: Tensor, partner: Tensor, shares: Tensor) -> Tensor:
    share = shares.to(x.device, x.dtype).view(-1, *[1] * (x.ndim - 1))
    return share * x + (1 - share) * x[partner.to(x.device)]


def _mix_some(
    batch: Batch,
    generator: torch.Generator,
    probability: float,
    beta: tuple[float, float],
    *,
    larger: bool,
) -> Batch:
    """Mix the audio of clips that are chosen one by one, each with a partner of its own."""
    n = len(batch)
    mixed = torch.rand(n, generator=generator) < probability
    partner = torch.randint(n, (n,), generator=generator)
    shares = beta_shares(n, beta, generator, larger=larger)
    return mix_audio(batch, partner, torch.where(mixed, shares, 1.0), mixed)


def beta_shares(
    n: int, beta: tuple[float, float], generator: torch.Generator, *, larger: bool
) -> Tensor:
    """`n` draws b from Beta(*beta), (n,) float32; with `larger`, max(b, 1 - b) of each."""
    concentration = torch.tensor(beta, dtype=torch.float64)[:, None].repeat(1, n)
    gammas = torch._standard_gamma(concentration, generator=generator)  # b: a part of two gammas
    gammas = gammas.clamp(min=torch.finfo(torch.float64).tiny)
    part = gammas.max(dim=0).values if larger else gammas[0]
    return (part / gammas.sum(dim=0)).float()
