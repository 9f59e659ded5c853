"""audio -> spec: the log-mel front ends of the published models, batched and on any device.

Every front end takes audio (batch, samples) at 16 kHz and gives spec (batch, 1, mels, spec_frames).
Windows and filter banks are built once and kept as buffers that are not saved; the
computation itself is float32 whatever autocast says, because a log of small powers does not
survive half precision. Facts: Chen et al. 2023 (BEATs), Li et al. 2023 (ATST-Frame), Koutini et
al. 2022 (PaSST), Niizumi et al. 2023 (M2D), Atito et al. 2022 (ASiT), Schmid et al. 2023
(EfficientAT), as used by PretrainedSED (arXiv 2409.09546).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

SAMPLE_RATE = 16_000
HOP_SAMPLES = 160
FLT_EPSILON = 1.1920929e-07


def _triangles(points: Tensor, edges: Tensor) -> Tensor:
    """Triangles over `edges` (mels + 2,) evaluated at `points` (bins,) -> (mels, bins)."""
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (points - left) / (centre - left), (right - points) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0)


def kaldi_filters(n_mels: int, low_hz: float, high_hz: float, n_fft: int = 512) -> Tensor:
    """Kaldi's mel filters (n_mels, n_fft // 2 + 1): triangles linear in mel, Nyquist bin zero.

    Evaluated in float32, as the originals do: narrow filters keep only a few digits of the
    differences of mel values, and the loss shows in the spec.
    """
    low, high = (1127 * math.log(1 + f / 700) for f in (low_hz, high_hz))
    step = (high - low) / (n_mels + 1)
    bands = torch.arange(n_mels)[:, None]
    left, centre, right = low + bands * step, low + (bands + 1) * step, low + (bands + 2) * step
    bins = 1127 * (1 + torch.arange(n_fft // 2) * (SAMPLE_RATE / n_fft) / 700).log()
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return nn.functional.pad(torch.minimum(rising, falling).clamp(min=0), (0, 1))


def htk_filters(n_mels: int, low_hz: float, high_hz: float, n_fft: int) -> Tensor:
    """HTK mel scale, triangles linear in Hz with peak 1 (n_mels, n_fft // 2 + 1)."""
    low, high = (2595 * math.log10(1 + f / 700) for f in (low_hz, high_hz))
    mels = torch.linspace(low, high, n_mels + 2, dtype=torch.float64)
    return _triangles(_bins_hz(n_fft), 700 * (10 ** (mels / 2595) - 1))


def slaney_filters(n_mels: int, low_hz: float, high_hz: float, n_fft: int) -> Tensor:
    """Slaney mel scale, triangles linear in Hz with unit area (n_mels, n_fft // 2 + 1)."""
    step = math.log(6.4) / 27

    def mel(f: float) -> float:
        return f * 3 / 200 if f < 1000 else 15 + math.log(f / 1000) / step

    mels = torch.linspace(mel(low_hz), mel(high_hz), n_mels + 2, dtype=torch.float64)
    edges = torch.where(mels < 15, mels * 200 / 3, 1000 * torch.exp((mels - 15) * step))
    area = 2 / (edges[2:] - edges[:-2])
    return _triangles(_bins_hz(n_fft), edges) * area[:, None]


def _bins_hz(n_fft: int) -> Tensor:
    return torch.arange(n_fft // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / n_fft


def _blocks(filters: Tensor) -> list[tuple[slice, slice]]:
    """Quarters of the filters, each with the bins that it covers."""
    size = len(filters) // 4
    return [_block(filters, i, size) for i in range(0, len(filters), size)]


def _block(filters: Tensor, first: int, size: int) -> tuple[slice, slice]:
    """`size` filters from `first` on, and the bins that they cover."""
    used = filters[first : first + size].any(dim=0).nonzero()
    return slice(first, first + size), slice(int(used.min()), int(used.max()) + 1)


class FrontEnd(nn.Module):
    """Base of the front ends: `forward` guards precision, `compute` is the front end proper."""

    window: Tensor
    filters: Tensor
    #: centre of the first spec frame, in samples; the others follow every 160
    first_centre_samples: int = 0

    def __init__(self, window: Tensor, filters: Tensor, n_fft: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.n_mels = filters.shape[0]
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer("filters", filters.float(), persistent=False)
        self.blocks = _blocks(filters)

    def with_drawn_edges(self, generator: torch.Generator) -> FrontEnd:
        """What training sees, where it draws the range of the mel scale for each batch."""
        return self

    def forward(self, audio: Tensor) -> Tensor:
        """Audio (batch, samples) -> spec (batch, 1, mels, spec_frames), float32."""
        # A clip's intermediates fit a CPU's cache, a batch's do not: clip by clip is twice as fast.
        # A traced graph has no loop over clips: there the batch stays whole, of any size.
        one_by_one = audio.device.type == "cpu" and not torch.compiler.is_exporting()
        parts = audio.float().split(1) if one_by_one else (audio.float(),)
        with torch.autocast(audio.device.type, enabled=False):
            return torch.cat([self.compute(part) for part in parts]).transpose(1, 2).unsqueeze(1)

    def compute(self, audio: Tensor) -> Tensor:
        """Audio (batch, samples) -> (batch, spec_frames, mels)."""
        raise NotImplementedError

    def clip(self, audio: Tensor, span_samples: int) -> Tensor:
        """Audio (batch, samples up to the span) -> spec of the whole span; silence fills it up."""
        return self(nn.functional.pad(audio, (0, span_samples - audio.shape[1])))

    def clips(self, audio: Tensor, n_samples: Tensor, span_samples: int) -> Tensor:
        """`clip` of each of some clips that end at `n_samples` (batch,) and are silent from there.

        Audio (batch, samples up to the span) -> spec of the whole span.
        """
        return self.clip(audio, span_samples)

    def parts(self, spec: Tensor) -> list[tuple[Tensor, int, int]]:
        """The mels of each rate in a spec.

        Returns:
            (part (batch, 1, its mels, its spec_frames), centre of its first spec frame in samples,
            samples from one to the next) of each; together they have all of the spec's mels.
        """
        return [(spec, self.first_centre_samples, HOP_SAMPLES)]

    def mel_power(self, frames: Tensor, *, magnitude: bool = False) -> Tensor:
        """Windowed frames (batch, spec_frames, window) -> mel power (batch, spec_frames, mels).

        `magnitude`: the filters sum magnitudes instead.
        """
        re, im = torch.view_as_real(torch.fft.rfft(frames, n=self.n_fft)).unbind(-1)
        power = re.square() + im.square()
        if magnitude:
            power = power.clamp(min=1e-30).sqrt()  # a root has no slope at zero
        # Filters are narrow: each quarter of them needs its own stretch of bins only.
        parts = [power[..., bins] @ self.filters[bands, bins].T for bands, bins in self.blocks]
        return torch.cat(parts, dim=-1)


class KaldiMel(FrontEnd):
    """Kaldi filter bank with DC removal and pre-emphasis inside each frame (BEATs, ASiT).

    25 ms frames every 10 ms without padding: 998 of them in 160 000 samples.
    """

    first_centre_samples = 200

    def __init__(
        self,
        *,
        mean: float,
        std: float,
        scale: float = 1.0,
        window_power: float = 1.0,
        centre_clip: bool = False,
    ) -> None:
        window = torch.hann_window(400, periodic=False) ** window_power
        super().__init__(window, kaldi_filters(128, 20, 8000), n_fft=512)
        self.mean, self.std = mean, std
        self.scale, self.centre_clip = scale, centre_clip

    def compute(self, audio: Tensor) -> Tensor:
        """Audio (batch, samples) -> (batch, spec_frames, 128).

        Step for step as the originals: where a frame is near silence, its upper bands hold nothing
        but the rounding of these operations, and BEATs listens to it.
        """
        if self.centre_clip:
            audio = audio - audio.mean(dim=1, keepdim=True)
        frames = (audio * self.scale).unfold(1, 400, HOP_SAMPLES)
        frames = frames - frames.mean(dim=2, keepdim=True)
        previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
        mel = self.mel_power((frames - 0.97 * previous) * self.window)
        return (mel.clamp(min=FLT_EPSILON).log() - self.mean) / self.std


class StftMel(FrontEnd):
    """Centred, reflect-padded STFT, mel filters, then `compress` (ATST, M2D and below)."""

    def __init__(
        self,
        window: Tensor,
        filters: Tensor,
        *,
        n_fft: int,
        compress: Callable[[Tensor], Tensor],
        hop_samples: int = HOP_SAMPLES,
        magnitude: bool = False,
        pre_emphasis: bool = False,
    ) -> None:
        # A window shorter than the FFT sits in the middle of it.
        margin = (n_fft - len(window)) // 2
        super().__init__(nn.functional.pad(window, (margin, margin)), filters, n_fft)
        self.compress = compress
        self.hop_samples = hop_samples
        self.magnitude = magnitude
        self.pre_emphasis = pre_emphasis

    def compute(self, audio: Tensor) -> Tensor:
        """Audio (batch, samples) -> (batch, spec_frames, mels)."""
        return self.compress(self.linear(audio))

    def linear(self, audio: Tensor) -> Tensor:
        """Audio (batch, samples) -> mel power or magnitude (batch, spec_frames, mels)."""
        if self.pre_emphasis:
            audio = audio[:, 1:] - 0.97 * audio[:, :-1]
        margin = self.n_fft // 2
        padded = nn.functional.pad(audio[:, None], (margin, margin), mode="reflect")[:, 0]
        frames = padded.unfold(1, self.n_fft, self.hop_samples) * self.window
        return self.mel_power(frames, magnitude=self.magnitude)


class PreemphasisMel(StftMel):
    """Kaldi bands of the clip after pre-emphasis, in natural logarithms.

    The upper edge of 7000 Hz is the centre of the range that training draws from.
    """

    def __init__(self, *, periodic: bool) -> None:
        super().__init__(
            torch.hann_window(400, periodic=periodic),
            kaldi_filters(128, 0, 7000),
            n_fft=512,
            compress=lambda mel: (mel.clamp(min=1e-7).log() + 4.5) / 5,
            pre_emphasis=True,
        )

    def with_drawn_edges(self, generator: torch.Generator) -> PreemphasisMel:
        """One whose mel scale begins at 0..9 Hz and ends at 6001..8000 Hz, whole numbers."""
        low = int(torch.randint(10, (), generator=generator))
        high = 8000 - int(torch.randint(2000, (), generator=generator))
        other = copy.deepcopy(self)
        filters = kaldi_filters(self.n_mels, low, high)
        other.filters, other.blocks = filters.to(self.filters.device), _blocks(filters)
        return other


def preemphasis_mel(*, periodic: bool) -> StftMel:
    """Front end of fPaSST (periodic window) and of the frame MobileNets (symmetric window)."""
    return PreemphasisMel(periodic=periodic)


def atst_mel() -> StftMel:
    """Front end of ATST-Frame: 64 HTK bands in dB, at most 80 dB below the clip's maximum.

    The floor is taken clip by clip. The original takes it over the whole batch, which lets a loud
    clip change its neighbour; for a batch of one both are the same.
    """
    low, high = -79.6482, 50.6842

    def compress(mel: Tensor) -> Tensor:
        decibel = 10 * mel.clamp(min=1e-10).log10()
        floor = decibel.amax(dim=(1, 2), keepdim=True) - 80
        decibel = torch.maximum(decibel, floor).clamp(-50, 80)
        return (decibel - low) / (high - low) * 2 - 1

    filters = htk_filters(64, 60, 7800, n_fft=1024)
    return StftMel(torch.hann_window(1024), filters, n_fft=1024, compress=compress)


def m2d_mel() -> StftMel:
    """Front end of M2D: 80 Slaney bands; the normalisation is fixed, not read from a file."""

    def compress(mel: Tensor) -> Tensor:
        return ((mel + FLT_EPSILON).log() + 7.1) / 4.2

    filters = slaney_filters(80, 50, 8000, n_fft=400)
    return StftMel(torch.hann_window(400), filters, n_fft=400, compress=compress)
