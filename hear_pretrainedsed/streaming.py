"""Live detection: audio in chunks -> frame scores and events, while the sound goes on.

A backbone sees windows of 10 s, so the last 10 s are looked at every `hop_s`: windows start at 0,
hop_s, 2 hop_s, ... What a window says about its edges is left to its neighbours. With
`hop_s=5.0` the frames are those of offline "overlap" windowing, from the first to the last one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hear_pretrainedsed.audio import AudioError, resampled_length
from hear_pretrainedsed.decoding import decoding_for
from hear_pretrainedsed.event_tracker import EventTracker
from hear_pretrainedsed.events import Event, frame_times
from hear_pretrainedsed.frames import FrameGrid
from hear_pretrainedsed.model import SEDModel

_GRID = FrameGrid()
_BLOCK_SAMPLES = 1 << 16  # of a long chunk, resampled at a time
_HELD_SAMPLES = 1000  # what soxr's HQ filter holds back, of input up to 8 kHz; less above


class Update(NamedTuple):
    """What has become known: scores (frames, classes) from `first_frame` on; events that closed."""

    first_frame: int
    scores: np.ndarray
    events: list[Event]

    @property
    def centres_s(self) -> np.ndarray:
        """Centres of the frames (frames,), in seconds since the stream's start."""
        first = self.first_frame
        return frame_times(np.arange(first, first + len(self.scores)) + 0.5)


class StreamingDetector:
    """Scores and events of one live stream, in memory that does not grow with it.

    Args:
        model: one with a trained head and known class names.
        hop_s: seconds from window to window, a multiple of 0.04 up to 10. Each window costs the
            same, so the work per second of audio is inversely proportional to it.
        sample_rate: of the chunks, Hz; None: the model's. Resampled inside, statefully.
        context_s: how much of the sound after a frame its window has heard at least, a multiple
            of 0.04 up to 10 - hop_s. None: (10 - hop_s) / 2, as much as before it: both windows
            of an overlap drop their outer half. Less is faster and less accurate.
        threshold, median_frames: as in `hear_pretrainedsed.detect`.
        min_duration_s: as in `scores_to_events`.

    Every frame is given once and in order, at most `latency_s` after its centre was heard, but for
    the first ones: those come when the first 10 s are full. On top comes the time to compute a
    window. With a resampler, `latency_s` includes what that holds back:

        latency_s = hop_s + context_s [+ 1000 / min(sample_rate, 8000)]

    So 7.5 s by default, 5.5 s for hop_s=1, 1.52 s for hop_s=1 and context_s=0.52.

    Events come out when they have ended, in the order of their ends; a run of frames that crosses
    windows is one event. A median filter looks ahead: with it events (not scores) come half its
    length later, `event_latency_s` after their end. Its edges are the stream's start and end, as
    offline, so that the events are the offline ones as well.

    A window of silence is computed at once, so that a model that cannot detect is refused before
    the stream starts: `NoHeadError` without a trained head, `ValueError` without class names.
    """

    def __init__(
        self,
        model: SEDModel,
        hop_s: float = 5.0,
        *,
        sample_rate: int | None = None,
        context_s: float | None = None,
        threshold: float | Sequence[float] | None = None,
        median_frames: int | Sequence[int] | None = None,
        min_duration_s: float | None = None,
    ) -> None:
        grid = model.grid
        self.sample_rate = _checked_rate(model.sample_rate if sample_rate is None else sample_rate)
        window_s = grid.window_frames * grid.hop_s
        hop_frames, context_frames = window_rule(hop_s, context_s, grid)
        self.latency_s = hop_s + ((window_s - hop_s) / 2 if context_s is None else context_s)
        self._resampler = _resampler(self.sample_rate, grid.sample_rate)
        if self._resampler is not None:
            self.latency_s += _HELD_SAMPLES / min(self.sample_rate, 8000)
        if model.head is not None and model.labels is None:
            raise ValueError("events need the names of the model's classes: give it a vocabulary")
        compute = _window_scores(model)
        self._n_classes = compute(np.zeros(grid.window_samples, np.float32)).shape[1]
        decoding = decoding_for(model, model.labels, threshold, median_frames)
        self._events = EventTracker(model.labels, **decoding, min_duration_s=min_duration_s)
        self.event_latency_s = self.latency_s + self._events.ahead_frames * grid.hop_s
        self._windows = _Windows(compute, grid, hop_frames, context_frames)
        self._n_samples = 0  # at the stream's rate
        self._n_resampled = 0
        self._closed = False

    def feed(self, chunk: np.ndarray | Tensor) -> Update:
        """Take a chunk (samples,), mono floating point in [-1, 1], of any size, also none.

        A chunk with NaN or Inf, of another dtype or with more axes is an `AudioError`, and leaves
        the stream as it was. After `close` it is a `ValueError`.
        """
        if self._closed:
            raise ValueError("the stream is closed: a new one needs a new StreamingDetector")
        samples = _checked_chunk(chunk, self._n_samples)
        self._n_samples += len(samples)
        return self._update(
            rows
            for i in range(0, len(samples), _BLOCK_SAMPLES)
            for rows in self._windows.feed(self._resampled(samples[i : i + _BLOCK_SAMPLES]))
        )

    def close(self) -> Update:
        """End the stream: the frames that were waiting for what follows, and all open events."""
        if self._closed or self._n_samples == 0:
            self._closed = True
            return self._update(())
        self._closed = True
        update = self._update(self._rest())
        update.events.extend(self._events.close(self._n_samples / self.sample_rate))
        return update

    def _rest(self) -> Iterator[np.ndarray]:
        if self._resampler is not None:
            rate = self._windows.grid.sample_rate
            missing = resampled_length(self._n_samples, self.sample_rate, rate) - self._n_resampled
            tail = self._resampler.resample_chunk(np.empty(0, np.float32), last=True)[:missing]
            yield from self._windows.feed(tail)
            yield from self._windows.feed(np.zeros(missing - len(tail), np.float32))
        yield from self._windows.close()

    def _resampled(self, samples: np.ndarray) -> np.ndarray:
        if self._resampler is None:
            return samples
        samples = self._resampler.resample_chunk(samples)
        self._n_resampled += len(samples)
        return samples

    def _update(self, parts: Iterator[np.ndarray] | tuple[()]) -> Update:
        first_frame = self._windows.n_frames
        found, events = [np.empty((0, self._n_classes), np.float32)], []
        for rows in parts:
            found.append(rows)
            events += self._events.feed(rows)
        return Update(first_frame, np.concatenate(found), events)


class _Windows:
    """16 kHz audio -> rows of scores (frames, classes), once no later audio can change them.

    Where a stream ends is not known before it does, and offline the last window starts where it
    just reaches the end: it may take over from the one before anywhere in that one's second half.
    Frames are therefore given up to where it would take over if the stream ended now.
    """

    def __init__(
        self,
        compute: Callable[[np.ndarray], np.ndarray],
        grid: FrameGrid,
        hop_frames: int,
        context_frames: int | None,
    ) -> None:
        self.grid = grid
        self.n_frames = 0  # given so far
        self._compute = compute
        self._hop_frames = hop_frames
        self._context_frames = context_frames
        self._buffer = np.zeros(2 * grid.window_samples, np.float32)  # its second half is slack
        self._n_buffered = 0
        self._n_samples = 0
        self._next_start = 0  # of the next window, in frames, like all that follow
        self._start = 0
        self._scores: np.ndarray | None = None  # of the last window, (250, classes)

    def feed(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        grid = self.grid
        while len(samples):
            end = self._next_start * grid.hop_samples + grid.window_samples
            n_missing = end - self._n_samples
            part, samples = samples[:n_missing], samples[n_missing:]
            self._keep(part)
            if len(part) == n_missing:
                yield from self._turn_to(self._next_start)
                self._next_start += self._hop_frames
            if self._scores is not None:
                yield self._give(self._takeover(max(self._start, self._last_start())))

    def close(self) -> Iterator[np.ndarray]:
        if self._n_samples == 0:
            return
        if self._scores is None or self._last_start() > self._start:
            yield from self._turn_to(self._last_start())
        yield self._give(self.grid.n_frames(self._n_samples))

    def _keep(self, part: np.ndarray) -> None:
        """Append at most a window of samples; the last 10 s before them stay."""
        if self._n_buffered + len(part) > len(self._buffer):
            size = self.grid.window_samples
            self._buffer[:size] = self._buffer[self._n_buffered - size : self._n_buffered]
            self._n_buffered = size
        self._buffer[self._n_buffered : self._n_buffered + len(part)] = part
        self._n_buffered += len(part)
        self._n_samples += len(part)

    def _turn_to(self, start: int) -> Iterator[np.ndarray]:
        """Give what the last window still has to say, then compute the one from `start` on."""
        if self._scores is not None:
            yield self._give(self._takeover(start))
        first_sample = self._n_samples - self._n_buffered
        part = self._buffer[start * self.grid.hop_samples - first_sample : self._n_buffered]
        window = np.zeros(self.grid.window_samples, np.float32)
        window[: len(part)] = part
        self._start, self._scores = start, self._compute(window)

    def _give(self, end_frame: int) -> np.ndarray:
        first, self.n_frames = self.n_frames, end_frame
        return self._scores[first - self._start : end_frame - self._start]

    def _takeover(self, start: int) -> int:
        """The first frame that a window from `start` on has instead of the last one."""
        end = self._start + self.grid.window_frames
        return (end + start) // 2 if self._context_frames is None else end - self._context_frames

    def _last_start(self) -> int:
        """Where the last window starts if the stream ends here."""
        return max(0, -(-(self._n_samples - self.grid.window_samples) // self.grid.hop_samples))


def _window_scores(model: SEDModel) -> Callable[[np.ndarray], np.ndarray]:
    """A function: one window (160000,) at 16 kHz -> scores (250, classes)."""
    model = copy.copy(model)  # shares the weights; the options below are not the user's
    model.options = replace(model.options, sample_rate=model.grid.sample_rate)

    def compute(window: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model.scores(torch.from_numpy(window)[None])[0].float().cpu().numpy()

    return compute


def _resampler(from_rate: int, to_rate: int) -> object | None:
    if from_rate == to_rate:
        return None
    import soxr  # here: most streams need no resampling

    return soxr.ResampleStream(from_rate, to_rate, 1, "float32", "HQ")


def _checked_rate(rate: int) -> int:
    if isinstance(rate, bool) or rate != int(rate) or rate < 1:
        raise AudioError(f"a sample rate is a positive whole number of Hz, got {rate}")
    return int(rate)


def window_rule(
    hop_s: float, context_s: float | None = None, grid: FrameGrid = _GRID
) -> tuple[int, int | None]:
    """`hop_s` and `context_s` of `StreamingDetector` in frames.

    Raises `ValueError` with the nearest time for one that is not allowed.
    """
    hop_frames = _whole_frames("hop_s", hop_s, 1, grid.window_frames, grid)
    if context_s is None:
        return hop_frames, None
    most = grid.window_frames - hop_frames
    return hop_frames, _whole_frames("context_s", context_s, 0, most, grid)


def _whole_frames(name: str, given_s: float, least: int, most: int, grid: FrameGrid) -> int:
    frames = given_s / grid.hop_s
    nearest = least if math.isnan(frames) else round(min(max(frames, least), most))
    if math.isnan(frames) or abs(frames - nearest) > 1e-6:
        raise ValueError(
            f"{name} is {given_s}; allowed: multiples of {grid.hop_s} from {least * grid.hop_s:g} "
            f"to {most * grid.hop_s:g}; the nearest is {nearest * grid.hop_s:g}"
        )
    return nearest


def _checked_chunk(chunk: np.ndarray | Tensor, n_before: int) -> np.ndarray:
    """The chunk as (samples,) float32; `AudioError` for what is no audio."""
    if isinstance(chunk, Tensor):
        chunk = (chunk.float() if chunk.is_floating_point() else chunk).detach().cpu().numpy()
    if not isinstance(chunk, np.ndarray):
        raise AudioError(f"a chunk is a NumPy array or a tensor, got {type(chunk).__name__}")
    if not np.issubdtype(chunk.dtype, np.floating):
        raise AudioError(
            f"a chunk is floating point in [-1, 1], got {chunk.dtype}; "
            "divide 16-bit samples by 32768"
        )
    if chunk.ndim != 1:
        raise AudioError(
            f"a chunk has the axis (samples,), got {chunk.shape}; average channels before"
        )
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes Inf, and is named
        samples = chunk.astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(samples))
    if len(bad):
        name = "NaN" if np.isnan(samples[bad[0]]) else "Inf"
        raise AudioError(f"{name} at sample {n_before + bad[0]} of the stream")
    return samples
