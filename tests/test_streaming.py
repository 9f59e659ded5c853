"""The live detector: offline's frames and events, promptly, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hear_pretrainedsed as hps
from hear_pretrainedsed.events import Event
from hear_pretrainedsed.frames import FrameGrid, Piece
from hear_pretrainedsed.model import Options, SEDModel
from hear_pretrainedsed.streaming import StreamingDetector
from tests.reference import reference_model, signal

GRID = FrameGrid()
HOP = GRID.hop_samples


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    """The work is small: threads would wait for each other longer than it takes."""
    torch.set_num_threads(1)


class Ramp(nn.Module):
    """A backbone whose frame is the mean of its 640 samples, then the frame's place in the window.

    With `Plain` as the head, scores say which samples and which place of a window they come from.
    """

    embed_dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Parameter(torch.ones(1))
        self.n_windows = 0

    @staticmethod
    def build_frontend() -> nn.Module:
        return nn.Identity()

    def for_inference(self, dtype: torch.dtype) -> nn.Module:
        return self

    def forward(self, windows: Tensor) -> Tensor:
        self.n_windows += len(windows)
        means = windows.unflatten(1, (-1, HOP)).mean(2)
        place = torch.arange(250.0).expand(len(windows), -1)
        return torch.stack([means, place], dim=2) * self.unit


class Plain(nn.Module):
    """Frames are the scores."""

    emits: ClassVar[str] = "probabilities"
    pools: ClassVar[str] = "frames"

    def forward(self, frames: Tensor) -> Tensor:
        return frames


def ramp(labels: tuple[str, ...] | None = ("mean", "place"), **options: object) -> SEDModel:
    options = {"windowing": "overlap", **options}
    return SEDModel(Ramp(), head=Plain(), labels=labels, options=Options(**options)).eval()


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, n).astype(np.float32)


def pieces(audio: np.ndarray, seed: int, typical: int) -> Iterator[np.ndarray]:
    """Chunks of random sizes, some of them empty."""
    rng = np.random.default_rng(seed)
    at = 0
    while at < len(audio):
        size = int(rng.exponential(typical))
        yield audio[at : at + size]
        at += size


def stream(
    detector: StreamingDetector, chunks: Iterator[np.ndarray]
) -> tuple[np.ndarray, list[Event]]:
    """All scores and events; checks that frames follow each other."""
    updates = [detector.feed(chunk) for chunk in chunks]
    updates.append(detector.close())
    n_frames = 0
    for update in updates:
        assert update.first_frame == n_frames
        n_frames += len(update.scores)
    scores = np.concatenate([update.scores for update in updates])
    return scores, [event for update in updates for event in update.events]


def planned(model: SEDModel, audio: np.ndarray, plan: list[Piece]) -> np.ndarray:
    """Scores (frames, classes) from the windows of a plan, one after the other."""
    rows = []
    for piece in plan:
        part = audio[piece.start_samples :][: GRID.window_samples]
        window = np.pad(part, (0, GRID.window_samples - len(part)))
        scores = model.scores(torch.from_numpy(window)[None])[0].detach().numpy()
        offset = piece.start_samples // HOP
        rows.append(scores[piece.first_frame - offset : piece.end_frame - offset])
    return np.concatenate(rows)


def wanted_plan(n: int, hop: int, context: int | None) -> list[Piece]:
    """The rule for any hop (frames), written down a second time."""
    starts = [0]
    while starts[-1] * HOP + GRID.window_samples < n:
        just_reaches = -(-(n - GRID.window_samples) // HOP)
        starts.append(min(starts[-1] + hop, just_reaches))
    cuts = [0]
    for a, b in zip(starts, starts[1:], strict=False):
        overlap = a + 250 - b
        cuts.append(b + overlap // 2 if context is None else a + 250 - context)
    cuts.append(GRID.n_frames(n))
    return [Piece(s * HOP, a, b) for s, a, b in zip(starts, cuts, cuts[1:], strict=False)]


LENGTHS = st.one_of(
    st.integers(1, 330_000),
    st.integers(1, 700),  # less than a frame or two
    st.builds(lambda k, d: 160_000 + 640 * k + d, st.integers(0, 260), st.integers(-2, 2)),
    st.builds(lambda k, d: 160_320 + 640 * k + d, st.integers(0, 260), st.integers(-2, 2)),
)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(0, 99), st.sampled_from([500, 7000, 90_000, 10**7]))
@example(160_000, 0, 7000)
@example(240_000, 0, 7000)  # the second window ends the stream exactly
@example(198_400, 0, 7000)  # the last window starts between two regular ones
def test_equals_offline_overlap_windowing(n: int, seed: int, typical: int) -> None:
    model, audio = ramp(), noise(n, seed)
    found, _ = stream(StreamingDetector(model, 5.0), pieces(audio, seed, typical))
    wanted = model.scores(torch.from_numpy(audio)[None])[0].detach().numpy()
    assert found.dtype == np.float32
    assert np.array_equal(found[:, 1], wanted[:, 1]), "frames from other places of the windows"
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 250), st.data())
def test_any_hop_and_context_against_the_written_rule(
    n: int, hop: int, data: st.DataObject
) -> None:
    n, hop = min(n, 160_000 + 640 * 30 * hop), hop  # few windows
    context = data.draw(st.none() | st.integers(0, 250 - hop))
    model, audio = ramp(), noise(n)
    context_s = None if context is None else context * 0.04
    detector = StreamingDetector(model, hop * 0.04, context_s=context_s)
    found, _ = stream(detector, pieces(audio, 0, 30_000))
    wanted = planned(model, audio, wanted_plan(n, hop, context))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@settings(max_examples=200)
@given(LENGTHS)
def test_the_written_rule_is_the_overlap_rule_for_5_s(n: int) -> None:
    assert wanted_plan(n, 125, None) == GRID.plan(n, "overlap")


def test_each_window_is_computed_once() -> None:
    model = ramp()
    detector = StreamingDetector(model, 2.0)
    assert model.backbone.n_windows == 1  # of silence
    stream(detector, pieces(noise(16_000 * 30), 0, 20_000))
    assert model.backbone.n_windows == 1 + 11
    detector = StreamingDetector(model, 10.0)
    stream(detector, pieces(noise(16_000 * 25), 0, 20_000))
    assert model.backbone.n_windows == 13 + 3


@pytest.mark.parametrize(("hop_s", "context_s", "latency_s"), [
    (5.0, None, 7.5), (10.0, None, 10.0), (0.08, None, 5.04), (1.0, 0.52, 1.52), (0.04, 0.0, 0.04),
])  # fmt: skip
def test_latency_is_kept_and_needed(
    hop_s: float, context_s: float | None, latency_s: float
) -> None:
    detector = StreamingDetector(ramp(), hop_s, context_s=context_s)
    assert detector.latency_s == pytest.approx(latency_s)
    assert detector.event_latency_s == detector.latency_s
    worst_s = late_by(detector, n_chunks=2600 if hop_s > 0.1 else 1200, size=160)
    assert latency_s - 0.05 <= worst_s <= latency_s + 0.01  # a chunk is 0.01 s


def late_by(detector: StreamingDetector, n_chunks: int, size: int) -> float:
    """How long after its centre the latest frame came, in seconds of audio fed, after the start."""
    rate, worst_s, n_frames = detector.sample_rate, 0.0, 0
    audio = np.zeros(size, np.float32)
    for i in range(1, n_chunks + 1):
        now_s = i * size / rate
        update = detector.feed(audio)
        if n_frames and len(update.scores):
            worst_s = max(worst_s, now_s - update.centres_s[0])
        n_frames += len(update.scores)
        if n_frames:
            waiting_s = now_s - (n_frames + 0.5) * 0.04
            assert waiting_s <= detector.latency_s + 1e-9
        else:
            assert now_s <= 10 + detector.latency_s - detector_latency_at_16k(detector)
    return worst_s


def detector_latency_at_16k(detector: StreamingDetector) -> float:
    """What of the latency is not the resampler's."""
    held_s = 1000 / min(detector.sample_rate, 8000)
    return detector.latency_s - (held_s if detector.sample_rate != 16_000 else 0)


@pytest.mark.parametrize("rate", [4000, 8000, 11_025, 44_100, 48_000, 192_000])
def test_latency_with_resampling(rate: int) -> None:
    detector = StreamingDetector(ramp(), 0.4, sample_rate=rate, context_s=0.4)
    assert 0.8 < detector.latency_s <= 1.05
    late_by(detector, n_chunks=1300, size=rate // 100)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 25 * 8000),
    st.sampled_from([4000, 8000, 16_001, 22_050, 44_100]),
    st.sampled_from([300, 5000, 10**7]),
)
@example(1, 44_100, 300)  # less than a sample at 16 kHz is one
def test_other_rates_equal_offline(n: int, rate: int, typical: int) -> None:
    model, audio = ramp(sample_rate=rate), noise(n)
    detector = StreamingDetector(model)
    assert detector.sample_rate == rate
    found, _ = stream(detector, pieces(audio, 1, typical))
    wanted = model.scores(torch.from_numpy(audio)[None])[0].detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 400_000), st.sampled_from([None, 1, 4, 7]), st.sampled_from([None, 0.12]))
def test_events_equal_offline(n: int, median: int | None, shortest_s: float | None) -> None:
    """Runs that cross windows and all; the mean of 640 samples is above 0.004 half of the time."""
    model, audio = ramp(), noise(n) + np.repeat(noise(n // 5000 + 1), 5000)[:n] / 20
    decoding = dict(threshold=(0.004, 100.0), median_frames=median, min_duration_s=shortest_s)
    detector = StreamingDetector(model, **decoding)
    assert detector.event_latency_s == pytest.approx(
        7.5 + {None: 0, 1: 0, 4: 0.04, 7: 0.12}[median]
    )
    _, found = stream(detector, pieces(audio, 2, 20_000))
    wanted = hps.detect(torch.from_numpy(audio), model, **decoding)
    assert [event[:3] for event in sorted(found)] == [event[:3] for event in sorted(wanted)]
    assert [event.offset_s for event in found] == sorted(event.offset_s for event in found)
    scores = [[event.score for event in sorted(events)] for events in (found, wanted)]
    np.testing.assert_allclose(*scores, rtol=1e-4)


def test_an_event_comes_when_it_has_ended() -> None:
    """Sound from 3 to 27 s, over five windows: one event, within the latency after its end."""
    audio = np.zeros(16_000 * 60, np.float32)
    audio[16_000 * 3 : 16_000 * 27] = 0.8
    detector = StreamingDetector(ramp(), threshold=(0.5, 1000.0), median_frames=5)
    for i in range(600):
        if found := detector.feed(audio[i * 1600 : (i + 1) * 1600]).events:
            break
    (event,) = found
    assert event == (3.0, 27.0, "mean", pytest.approx(0.8))
    assert 27 < (i + 1) / 10 <= 27 + detector.event_latency_s + 0.12
    assert detector.close().events == []


@pytest.mark.slow
def test_a_frame_mobilenet_gives_offlines_scores() -> None:
    model = reference_model("frame_mn06")
    audio = signal(16_000 * 23 + 77)
    model.options = Options(windowing="overlap")
    try:
        wanted = model.scores(audio[None])[0].numpy()
    finally:
        model.options = Options()
    found, events = stream(StreamingDetector(model), pieces(audio.numpy(), 3, 9000))
    assert found.shape == wanted.shape == (GRID.n_frames(len(audio)), 447)
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert len(events) > 100
