"""tokens -> frames, and long audio -> windows -> one sequence of frames.

`FrameGrid` is the only place that knows hops, centres and edges. A backbone sees one window of
160 000 samples (10 s); everything about longer and shorter audio happens here, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WINDOWINGS = ("reference", "overlap")


@dataclass(frozen=True)
class Piece:
    """One window and the frames of the clip that are taken from it."""

    start_samples: int
    first_frame: int  # in the clip
    end_frame: int  # in the clip, excluded


@dataclass(frozen=True)
class FrameGrid:
    """The 40 ms grid: frame i of a clip covers [640 i, 640 (i + 1)) samples at 16 kHz.

    token_span_samples: what the tokens of one window span where that is not the window itself
        (PSLA: 10.56 s; ATST-SED: 156 steps of 64 ms); None: they share the window evenly.
    first_token_samples: centre of the first token within that span; None: half a step.
    """

    hop_samples: int = 640
    window_samples: int = 160_000
    sample_rate: int = 16_000
    token_span_samples: int | None = None
    first_token_samples: int | None = None

    @property
    def hop_s(self) -> float:
        """Seconds from frame to frame: 0.04."""
        return self.hop_samples / self.sample_rate

    @property
    def window_frames(self) -> int:
        """Frames in one window: 250."""
        return self.window_samples // self.hop_samples

    @property
    def span_samples(self) -> int:
        """What the tokens of one window span: the window, or `token_span_samples`."""
        return self.token_span_samples or self.window_samples

    @property
    def spec_samples(self) -> int:
        """What the spec of one window spans: the window, or more where tokens reach beyond it."""
        return max(self.window_samples, self.span_samples)

    def n_frames(self, n_samples: int) -> int:
        """Frames of a clip: those whose centre lies before its end, and at least one."""
        return max(1, (n_samples + self.hop_samples // 2 - 1) // self.hop_samples)

    def timestamps_ms(self, n_frames: int) -> Tensor:
        """Frame centres (n_frames,) in ms, float32; exact, since they are multiples of 20 ms."""
        hop_ms = 1000 * self.hop_samples // self.sample_rate
        return (torch.arange(n_frames) * hop_ms + hop_ms // 2).float()

    def to_frames(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, tokens, dim) of one window -> frames (batch, 250, dim).

        More tokens than frames are averaged (output i over tokens floor(iL/250) to
        ceil((i+1)L/250) - 1), fewer are interpolated linearly at half-pixel centres
        (PretrainedSED's wrapper). Tokens with a span of their own are placed at their true times.
        """
        n_tokens, n_frames = tokens.shape[1], self.window_frames
        if self.token_span_samples is not None:
            weights = self.token_weights(n_tokens).to(tokens.device, tokens.dtype)
            return weights @ tokens
        if n_tokens == n_frames:
            return tokens
        x = tokens.transpose(1, 2)
        if n_tokens > n_frames:
            x = nn.functional.adaptive_avg_pool1d(x, n_frames)
        else:
            x = nn.functional.interpolate(x, n_frames, mode="linear", align_corners=False)
        return x.transpose(1, 2)

    def token_weights(self, n_tokens: int) -> Tensor:
        """Share of each token in each frame (250, n_tokens), by the times of their centres.

        Steps longer than a frame: linear interpolation between the two centres around the frame's,
        and the outermost token beyond them. Shorter ones: the mean of those centred in the frame.
        What lies after the window's end has no share in it, but for interpolation.
        """
        step = self.span_samples / n_tokens
        first = step / 2 if self.first_token_samples is None else self.first_token_samples
        token = torch.arange(n_tokens, dtype=torch.float64)
        frame = torch.arange(self.window_frames, dtype=torch.float64)[:, None]
        if step < self.hop_samples:
            inside = ((first + step * token) // self.hop_samples == frame).float()
            return inside / inside.sum(dim=1, keepdim=True)
        place = ((frame + 0.5) * self.hop_samples - first) / step  # in tokens
        distance = (place.clamp(0, n_tokens - 1) - token).abs()
        return (1 - distance).clamp(min=0).float()

    def pool_spec(self, spec: Tensor, first_centre_samples: int, hop_samples: int = 160) -> Tensor:
        """Spec (batch, 1, mels, spec_frames) of one window -> its mean in each frame.

        A spec frame belongs to the frame that holds its centre; those that reach beyond the
        window's end (PSLA's filling) belong to none. Returns (batch, 250, mels).
        """
        x = spec[:, 0].transpose(1, 2)
        centres = first_centre_samples + hop_samples * torch.arange(x.shape[1], device=x.device)
        inside = centres < self.window_samples - first_centre_samples
        x, frame = x[:, inside], (centres // self.hop_samples)[inside]
        sums = x.new_zeros(len(x), self.window_frames, x.shape[2]).index_add_(1, frame, x)
        return sums / torch.bincount(frame, minlength=self.window_frames)[:, None]

    def plan(self, n_samples: int, windowing: str) -> list[Piece]:
        """How a clip of `n_samples` is cut into windows.

        reference: windows follow each other, as the originals do. overlap: a window every 5 s, the
        last one at the first multiple of 640 samples from which it reaches the end; where two
        windows overlap, each gives the half that is further from its own edge (a frame exactly in
        the middle is the later window's).
        """
        n_frames, size = self.n_frames(n_samples), self.window_frames
        if windowing == "reference" or n_samples <= self.window_samples:
            starts = list(range(0, n_frames, size))
        else:
            last = -(-(n_samples - self.window_samples) // self.hop_samples)
            starts = [*range(0, last, size // 2), last]
        cuts = [(a + size + b) // 2 for a, b in zip(starts, starts[1:], strict=False)]
        return [
            Piece(start * self.hop_samples, first, end)
            for start, first, end in zip(starts, [0, *cuts], [*cuts, n_frames], strict=True)
        ]

    def windows(
        self, audio: Tensor, windowing: str, batch_size: int
    ) -> Iterator[tuple[Tensor, list[tuple[int, Piece]]]]:
        """Cut audio (batch, samples) into chunks of at most `batch_size` windows.

        Yields windows (n, 160000), zero-padded at the clip's end, with (clip, piece) of each.
        """
        plan = self.plan(audio.shape[1], windowing)
        places = [(clip, piece) for clip in range(len(audio)) for piece in plan]
        for i in range(0, len(places), batch_size):
            chunk = places[i : i + batch_size]
            windows = audio.new_zeros(len(chunk), self.window_samples)
            for row, (clip, piece) in zip(windows, chunk, strict=True):
                part = audio[clip, piece.start_samples :][: self.window_samples]
                row[: len(part)] = part
            yield windows, chunk

    def join(self, frames: Tensor, chunk: list[tuple[int, Piece]], out: Tensor) -> None:
        """Write frames (n, 250, dim) of a chunk of windows to their places in `out`.

        `out` is (batch, frames, dim); frames in padding and outer halves of overlaps are dropped.
        """
        for row, (clip, piece) in zip(frames, chunk, strict=True):
            offset = piece.start_samples // self.hop_samples
            out[clip, piece.first_frame : piece.end_frame] = row[
                piece.first_frame - offset : piece.end_frame - offset
            ]
