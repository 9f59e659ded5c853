"""The frame grid: counts, centres, pooling, windows and their joining."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.memory import forget_peak, peak_gb
from hear_pretrainedsed.backbones.base import Backbone
from hear_pretrainedsed.frames import WINDOWINGS, FrameGrid
from hear_pretrainedsed.frontends import FrontEnd
from hear_pretrainedsed.model import Options, SEDModel

GRID = FrameGrid()
HOP = GRID.hop_samples


class Ramp(Backbone):
    """A backbone whose frame is the mean of its 640 samples, then the frame's place in the window.

    Makes visible which samples and which place of a window a frame of the clip came from.
    """

    embed_dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Parameter(torch.ones(1))

    @staticmethod
    def build_frontend() -> FrontEnd:
        return nn.Identity()

    def forward(self, windows: Tensor) -> Tensor:
        means = windows.unflatten(1, (-1, HOP)).mean(2)
        place = torch.arange(250.0).expand(len(windows), -1)
        return torch.stack([means, place], dim=2) * self.unit


def ramp(windowing: str, **options: object) -> SEDModel:
    return SEDModel(Ramp(), options=Options(windowing=windowing, **options)).eval()


@given(st.integers(1, 10**9))
def test_a_frame_for_every_centre_before_the_end(n: int) -> None:
    count = GRID.n_frames(n)
    centres_before_end = -(-(n - HOP // 2) // HOP)  # smallest i with 640 i + 320 >= n
    assert count == max(1, centres_before_end)


@pytest.mark.parametrize(
    ("n", "count"),
    [(1, 1), (320, 1), (960, 1), (961, 2), (160_000, 250), (160_320, 250), (160_321, 251)],
)
def test_known_counts(n: int, count: int) -> None:
    assert GRID.n_frames(n) == count


def test_timestamps_are_exact_over_an_hour() -> None:
    found = GRID.timestamps_ms(90_000)
    assert found.dtype == torch.float32
    assert found.double().tolist() == [40 * i + 20 for i in range(90_000)]


@settings(max_examples=200)
@given(st.integers(1, 3_000_000), st.sampled_from(WINDOWINGS))
def test_a_plan_covers_every_frame_once(n: int, windowing: str) -> None:
    plan = GRID.plan(n, windowing)
    assert plan[0].first_frame == 0 and plan[-1].end_frame == GRID.n_frames(n)
    for a, b in zip(plan, plan[1:], strict=False):
        assert a.end_frame == b.first_frame and a.start_samples < b.start_samples
    for piece in plan:
        start = piece.start_samples // HOP
        assert piece.start_samples == start * HOP
        assert start <= piece.first_frame < piece.end_frame <= start + 250
    if windowing == "overlap":
        last = plan[-1].start_samples
        assert last + 160_000 >= n
        assert last == 0 or last - HOP + 160_000 < n, "an earlier start would reach the end too"


@settings(max_examples=200)
@given(st.integers(160_001, 3_000_000))
def test_overlapping_windows_give_up_their_outer_parts(n: int) -> None:
    plan = GRID.plan(n, "overlap")
    for i, piece in enumerate(plan):
        start = piece.start_samples // HOP
        if i > 0:
            assert piece.first_frame - start >= 62
        if i < len(plan) - 1:
            assert start + 250 - piece.end_frame >= 62
    regular = [p.start_samples for p in plan[:-1]]
    assert regular == [80_000 * i for i in range(len(regular))]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 700_000),
    st.sampled_from(WINDOWINGS),
    st.integers(1, 3),
    st.sampled_from([1, 2, 5, 64]),
)
def test_joined_frames_are_the_frames_of_the_clip(
    n: int, windowing: str, batch: int, batch_size: int
) -> None:
    audio = torch.rand(batch, n)
    found = ramp(windowing, batch_size=batch_size).frames(audio)[..., 0]
    n_frames = GRID.n_frames(n)
    padded = nn.functional.pad(audio, (0, max(0, n_frames * HOP - n)))[:, : n_frames * HOP]
    torch.testing.assert_close(found, padded.unflatten(1, (-1, HOP)).mean(2))


def test_overlap_takes_frames_from_the_middle_of_windows() -> None:
    places = ramp("overlap").frames(torch.zeros(1, 16_000 * 35))[0, :, 1]
    inner = places[63:-63]
    assert inner.min() >= 62 and inner.max() <= 187


def test_an_exact_multiple_needs_no_extra_window() -> None:
    assert len(GRID.plan(320_000, "reference")) == 2
    assert len(GRID.plan(160_000, "overlap")) == 1


@pytest.mark.parametrize("n_tokens", [33, 62, 156, 250, 496, 497, 1000])
def test_to_frames_against_the_written_rule(n_tokens: int) -> None:
    tokens = torch.randn(2, n_tokens, 3, dtype=torch.float64)
    found = GRID.to_frames(tokens)
    assert found.shape == (2, 250, 3)
    for i in (0, 1, 124, 248, 249):
        if n_tokens >= 250:
            low, high = i * n_tokens // 250, -(-(i + 1) * n_tokens // 250)
            wanted = tokens[:, low:high].mean(1)
        else:
            at = min(max((i + 0.5) * n_tokens / 250 - 0.5, 0), n_tokens - 1)
            low = int(at)
            high = min(low + 1, n_tokens - 1)
            wanted = tokens[:, low] * (1 - (at - low)) + tokens[:, high] * (at - low)
        torch.testing.assert_close(found[:, i], wanted)


@pytest.mark.parametrize(("n_spec", "centre"), [(1000, 0), (1001, 0), (998, 200)])
def test_pool_spec_against_a_loop(n_spec: int, centre: int) -> None:
    spec = torch.randn(1, 1, 5, n_spec, dtype=torch.float64)
    found = GRID.pool_spec(spec, centre)[0]
    for i in range(250):
        inside = [j for j in range(n_spec) if i * 640 <= centre + 160 * j < (i + 1) * 640]
        torch.testing.assert_close(found[i], spec[0, 0, :, inside].mean(1))


@pytest.mark.parametrize("windowing", WINDOWINGS)
def test_an_hour_in_bounded_memory(windowing: str) -> None:
    model = ramp(windowing)
    audio = torch.zeros(1, 16_000 * 3600)
    forget_peak()
    before = peak_gb()
    frames = model.frames(audio)
    grown_mb = 1024 * (peak_gb() - before)
    assert frames.shape == (1, 90_000, 2)
    assert grown_mb < 300
