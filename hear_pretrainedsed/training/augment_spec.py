"""Changing the specs of a batch: in time, in frequency and in loudness.

Frame shift, time mask, FilterAugment (Nam et al., ICASSP 2022), MixStyle over time per band (Zhou
et al., ICLR 2021) and frequency warping (Niizumi et al., BYOL-A) as PretrainedSED sets them (Schmid
et al., arXiv 2409.09546, section 3), and PSLA's masks (Gong et al., TASLP 2021, section III).

Each is a core that takes what was drawn, and a function of (batch, generator) that draws it. A
teacher's spec is changed as the student's is; where it has other bands, at the same share of them.
A frame has 4 spec frames of 10 ms, or as many as a front end of one's own gives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hear_pretrainedsed.training.augment import beta_shares
from hear_pretrainedsed.training.batch import Batch

_RATE = 4  # spec frames a frame, where nothing tells
MIN_TIME_MASK = 0.05  # of the clip
MASK_VALUE = (0 + 4.6476) / 4.5699
"""What PSLA's masks hold: a zero of its log mel, taken before the normalisation."""

_SURE = 0.2  # how far a number of spec frames a frame is from a half: PSLA has 4.22, padding in it

_MIXSTYLE_BETA = (0.4, 0.4)
_MIXSTYLE_EPS = 1e-6
_FILTER_DB = (-6.0, 6.0)
_FILTER_BANDS = (3, 6)  # from, and below
_FILTER_MIN_MELS = 6
_WARP_MIN_SHARE = 0.6


# ---- drawing ----


def frame_shift(batch: Batch, generator: torch.Generator, share: float) -> Batch:
    """Roll each clip in time, by a normal draw whose deviation is `share` of the clip.

    The draw is cut to whole spec frames, towards zero.
    """
    deviation = int(_spec(batch).shape[-1] * share)
    draws = torch.randn(len(batch), generator=generator, dtype=torch.float64) * deviation
    return shift(batch, draws.trunc().long())


def time_mask(batch: Batch, generator: torch.Generator, largest: float, *, pseudo: bool) -> Batch:
    """Silence one stretch of time in all clips, of 0.05 up to `largest` (excluded) of their length.

    `pseudo`: a teacher's scores are silenced too; the originals leave them as they are.
    """
    n_frames = _n_frames(batch)
    low = int(n_frames * MIN_TIME_MASK)
    width = _randint(low, max(int(n_frames * largest), low + 1), generator)
    start = _randint(0, max(n_frames - width, 1), generator)
    return mask_time(batch, start, width, pseudo=pseudo)


def mixstyle(batch: Batch, generator: torch.Generator, probability: float) -> Batch:
    """Give, with `probability`, each clip of a batch a mixture of its and another's statistics.

    The share of its own is max(l, 1 - l), l from Beta(0.4, 0.4), drawn for each clip.
    """
    if not _happens(probability, generator):
        return batch
    partner = torch.randperm(len(batch), generator=generator)
    shares = beta_shares(len(batch), _MIXSTYLE_BETA, generator, larger=True)
    return mix_style(batch, partner, shares)


def filter_augment(batch: Batch, generator: torch.Generator, probability: float) -> Batch:
    """Colour, with `probability`, each clip of a batch by a filter of 3 to 5 bands.

    The bands are the batch's, of 6 mels at least (fewer where there are not as many); the gains at
    their edges, from -6 to 6 dB, are each clip's.
    """
    if not _happens(probability, generator):
        return batch
    n_mels = _spec(batch).shape[2]
    n_bands = _randint(*_FILTER_BANDS, generator)
    narrowest = min(_FILTER_MIN_MELS, n_mels // n_bands)
    room = n_mels - n_bands * narrowest + 1
    inner = torch.randint(room, (n_bands - 1,), generator=generator).sort().values
    inner = inner + narrowest * torch.arange(1, n_bands)
    low, high = _FILTER_DB
    gains_db = torch.rand(len(batch), n_bands + 1, generator=generator) * (high - low) + low
    return filter_bands(batch, [0, *inner.tolist(), n_mels], gains_db)


def freq_warp(batch: Batch, generator: torch.Generator, probability: float) -> Batch:
    """Stretch, with `probability`, a stretch of a batch's mels, 0.6 to all of them, over all."""
    if not _happens(probability, generator):
        return batch
    n_mels = _spec(batch).shape[2]
    share = _WARP_MIN_SHARE + (1 - _WARP_MIN_SHARE) * torch.rand((), generator=generator).item()
    height = min(max(int(share * n_mels), 1), n_mels)
    return warp(batch, _randint(0, n_mels - height + 1, generator), height)


def spec_mask(
    batch: Batch,
    generator: torch.Generator,
    sizes: tuple[int, int],
    value: float = MASK_VALUE,
) -> Batch:
    """Mask a stretch of mels and one of spec frames in each clip (PSLA's SpecAugment).

    `sizes`: what the widths of the two (mels, spec frames) stay below. Targets are left as they
    are.
    """
    spec = _spec(batch)
    draws = torch.rand(len(batch), 4, generator=generator)
    mels = stretches(draws[:, :2], sizes[0], spec.shape[2])
    times = stretches(draws[:, 2:], sizes[1], spec.shape[3])
    return mask_spec(batch, mels, times, value)


# ---- cores ----


def shift(batch: Batch, spec_frames: Tensor) -> Batch:
    """Roll each clip later by so many spec frames (batch,), whole numbers; targets with it.

    Targets move by a quarter of that, rounded half to even. What a front end adds to fill up a
    longer spec than the targets' stays where it is.
    """
    rate = _rate(batch)
    frames = (spec_frames.double() / rate).round().long()
    n_targets = _n_frames(batch) * rate

    def later(spec: Tensor) -> Tensor:
        n = spec.shape[-1] if abs(spec.shape[-1] - n_targets) <= rate else n_targets
        moved = _rolled(spec[..., :n], spec_frames, 2)
        return torch.cat([moved, spec[..., n:]], dim=-1) if n < spec.shape[-1] else moved

    changed = _on_specs(batch, later)
    return _on_frames(changed, lambda values: _rolled(values, frames, 0))


def mask_time(batch: Batch, start: int, width: int, *, pseudo: bool = False) -> Batch:
    """Zero `width` frames from frame `start` on, in specs and targets (and a teacher's scores)."""
    rate = _rate(batch)
    stretch = slice(start, start + width)
    columns = slice(start * rate, (start + width) * rate)

    def silent(spec: Tensor) -> Tensor:
        spec = spec.clone()
        spec[..., columns] = 0
        return spec

    def none(values: Tensor) -> Tensor:
        values = values.clone()
        values[:, stretch] = 0
        return values

    return _on_frames(_on_specs(batch, silent), none, pseudo=pseudo)


def mix_style(batch: Batch, partner: Tensor, shares: Tensor) -> Batch:
    """MixStyle with what was drawn: mean and deviation over time, per band, of two clips mixed.

    `partner` (batch,) are indices, `shares` (batch,) those of the clip itself.
    """

    def mixed(spec: Tensor) -> Tensor:
        mean = spec.mean(dim=-1, keepdim=True)
        deviation = (spec.var(dim=-1, keepdim=True) + _MIXSTYLE_EPS).sqrt()
        share = shares.to(spec.device, spec.dtype).view(-1, 1, 1, 1)
        other = partner.to(spec.device)
        new_deviation = share * deviation + (1 - share) * deviation[other]
        new_mean = share * mean + (1 - share) * mean[other]
        return (spec - mean) / deviation * new_deviation + new_mean

    return _on_specs(batch, mixed)


def filter_bands(batch: Batch, edges: Sequence[int], gains_db: Tensor) -> Batch:
    """FilterAugment with what was drawn: a gain in straight lines of decibels from edge to edge.

    `edges` (bands + 1,) are mels from 0 to their number, `gains_db` (batch, bands + 1) the gains at
    these. A band reaches both of its gains, so that a filter has two equal mels at an inner edge.
    The gain multiplies the normalised log mel, as it does in the original.
    """
    n_mels = _spec(batch).shape[2]
    assert edges[0] == 0 and edges[-1] == n_mels, f"{edges} are no edges of {n_mels} mels"

    def coloured(spec: Tensor) -> Tensor:
        own = [_scaled(edge, n_mels, spec.shape[2]) for edge in edges]
        parts = [
            left[:, None] + (right - left)[:, None] * torch.linspace(0, 1, high - low)
            for (low, high), (left, right) in zip(
                itertools.pairwise(own), itertools.pairwise(gains_db.unbind(1)), strict=True
            )
        ]
        gains = 10 ** (torch.cat(parts, dim=1) / 20)
        return spec * gains.to(spec.device, spec.dtype)[:, None, :, None]

    return _on_specs(batch, coloured)


def warp(batch: Batch, first: int, height: int) -> Batch:
    """Frequency warp with what was drawn: `height` mels from `first` on become all mels."""
    n_mels = _spec(batch).shape[2]

    def warped(spec: Tensor) -> Tensor:
        n = spec.shape[2]
        low = min(_scaled(first, n_mels, n), n - 1)
        rows = min(max(_scaled(height, n_mels, n), 1), n - low)
        return resize_crop(spec, (low, rows), (0, spec.shape[3]))

    return _on_specs(batch, warped)


def resize_crop(
    spec: Tensor,
    rows: tuple[int, int],
    columns: tuple[int, int],
    canvas: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """A part of a spec (batch, 1, mels, spec_frames) at the size of the whole, bicubic.

    `rows`, `columns`: the first and the number of them. `canvas`: the spec lies in the middle of
    zeros of so many times its size, and the part is one of these. Nothing here draws a part in
    time: targets would come apart from it.
    """
    n_mels, n_frames = spec.shape[2:]
    if canvas != (1.0, 1.0):
        height, width = int(n_mels * canvas[0]), int(n_frames * canvas[1])
        top, left = (height - n_mels) // 2, (width - n_frames) // 2
        spec = F.pad(spec, (left, width - n_frames - left, top, height - n_mels - top))
    part = spec[:, :, rows[0] : sum(rows), columns[0] : sum(columns)]
    return F.interpolate(part, size=(n_mels, n_frames), mode="bicubic", align_corners=True)


def stretches(draws: Tensor, size: int, n: int) -> Tensor:
    """Uniform draws (batch, 2) -> first and end (excluded) of a stretch of `n` things (batch, 2).

    The width is the first draw's share of `size`, the start the second's share of what the width
    leaves before it is cut to whole numbers.
    """
    widths = draws[:, 0] * min(size, n)
    starts = (draws[:, 1] * (n - widths)).long()
    return torch.stack([starts, starts + widths.long()], dim=1)


def mask_spec(batch: Batch, mels: Tensor, times: Tensor, value: float = MASK_VALUE) -> Batch:
    """PSLA's masks with what was drawn: first and end of mels, and of spec frames, (batch, 2)."""
    n_mels = _spec(batch).shape[2]

    def masked(spec: Tensor) -> Tensor:
        own = [[_scaled(edge, n_mels, spec.shape[2]) for edge in row] for row in mels.tolist()]
        rows = _inside(torch.tensor(own), spec.shape[2])[:, None, :, None]
        columns = _inside(times, spec.shape[3])[:, None, None, :]
        return torch.where((rows | columns).to(spec.device), value, spec)

    return _on_specs(batch, masked)


# ---- a batch's parts ----


def _spec(batch: Batch) -> Tensor:
    assert batch.spec is not None, "this is of specs: the front end comes first"
    return batch.spec


def _on_specs(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    teacher = batch.teacher_spec
    return replace(
        batch,
        spec=change(_spec(batch)),
        teacher_spec=None if teacher is None else change(teacher),
    )


def _on_frames(batch: Batch, change: Callable[[Tensor], Tensor], *, pseudo: bool = True) -> Batch:
    """Targets changed, and a teacher's scores, where there are any."""
    targets, scores = batch.targets, batch.pseudo
    if targets is not None:
        targets = change(targets)
    if scores is not None and pseudo:
        scores = change(scores)
    return replace(batch, targets=targets, pseudo=scores)


def _n_frames(batch: Batch) -> int:
    """Frames of what is learned, or as many as a spec of this length has."""
    for values in (batch.targets, batch.pseudo):
        if values is not None:
            return values.shape[1]
    return max(1, round(_spec(batch).shape[-1] / _RATE))


def _rate(batch: Batch) -> int:
    """Spec frames a frame; specs without a whole number of them would come apart from targets."""
    n_frames = _n_frames(batch)
    specs = [spec for spec in (_spec(batch), batch.teacher_spec) if spec is not None]
    rates = {round(spec.shape[-1] / n_frames) for spec in specs}
    unsure = min(abs(spec.shape[-1] / n_frames % 1 - 0.5) for spec in specs)
    if len(rates) > 1 or 0 in rates or unsure < _SURE:
        lengths = " and ".join(str(spec.shape[-1]) for spec in specs)
        raise ValueError(
            f"specs of {lengths} spec frames cannot be moved or masked in time along with "
            f"{n_frames} frames; a frame has one whole number of them, as {_RATE}"
        )
    return rates.pop()


def _rolled(values: Tensor, steps: Tensor, dim: int) -> Tensor:
    """Each row (batch, ...) rolled by its own number of steps along `dim` of the row."""
    pairs = zip(values, steps.tolist(), strict=True)
    return torch.stack([row.roll(step, dim) for row, step in pairs])


def _scaled(edge: int, n: int, other: int) -> int:
    """Where an edge among `n` mels lies among another number of them."""
    return edge if n == other else round(edge * other / n)


def _inside(edges: Tensor, n: int) -> Tensor:
    """First and end (batch, 2) -> which of `n` places lie between (batch, n)."""
    place = torch.arange(n)
    return (place >= edges[:, :1]) & (place < edges[:, 1:])


def _happens(probability: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < probability)


def _randint(low: int, end: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, end, (), generator=generator))
