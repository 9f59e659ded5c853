"""Front ends against torchaudio, against float64, and against the rules they promise."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hear_pretrainedsed.frontends import (
    FrontEnd,
    KaldiMel,
    atst_mel,
    htk_filters,
    kaldi_filters,
    m2d_mel,
    preemphasis_mel,
    slaney_filters,
)
from hear_pretrainedsed.registry import BACKBONES
from tests.reference import signal

FRONT_ENDS: dict[str, Callable[[], FrontEnd]] = {
    "beats": BACKBONES["beats"].build_frontend,
    "asit": BACKBONES["asit"].build_frontend,
    "fpasst": lambda: preemphasis_mel(periodic=True),
    "frame_mn": lambda: preemphasis_mel(periodic=False),
    "atst_f": atst_mel,
    "m2d": m2d_mel,
    "atst_sed": BACKBONES["atst_sed"].build_frontend,
}
FRAMES = {"beats": 998, "asit": 998, "fpasst": 1000, "frame_mn": 1000}
FRAMES |= {"atst_f": 1001, "m2d": 1001, "atst_sed": 1001}
BANDS = {"beats": 128, "asit": 128, "fpasst": 128, "frame_mn": 128}
BANDS |= {"atst_f": 64, "m2d": 80, "atst_sed": 192}


@pytest.fixture(params=FRONT_ENDS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return torch.stack([signal(seed=0), 0.01 * signal(seed=1).roll(33_333)])


def near(found: Tensor, wanted: Tensor) -> None:
    """The reference data's limits for a front end: mean 1e-5, maximum 5e-3."""
    difference = (found - wanted).abs()
    assert difference.mean() < 1e-5 and difference.max() < 5e-3, (
        f"mean {difference.mean():.1e}, maximum {difference.max():.1e}"
    )


def test_shape_and_type(name: str, clips: Tensor) -> None:
    spec = FRONT_ENDS[name]()(clips)
    assert spec.shape == (2, 1, BANDS[name], FRAMES[name]) and spec.dtype == torch.float32
    assert spec.isfinite().all()


def test_a_clip_does_not_see_its_neighbours(name: str, clips: Tensor) -> None:
    frontend = FRONT_ENDS[name]()
    together = frontend(torch.cat([clips, 0.9 * torch.ones(1, 160_000)]))
    torch.testing.assert_close(together[1:2], frontend(clips[1:]), rtol=0, atol=1e-5)


def test_autocast_has_no_effect(name: str, clips: Tensor) -> None:
    frontend = FRONT_ENDS[name]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = frontend(clips.bfloat16().float())
    torch.testing.assert_close(inside, frontend(clips.bfloat16().float()), rtol=0, atol=0)


def test_nothing_is_rebuilt_or_saved(name: str, clips: Tensor) -> None:
    frontend = FRONT_ENDS[name]()
    assert not frontend.state_dict()
    before = list(frontend.buffers())
    frontend(clips)
    assert before and all(a is b for a, b in zip(before, frontend.buffers(), strict=True))


def test_gradients_reach_the_audio(name: str) -> None:
    audio = signal()[None].requires_grad_()
    FRONT_ENDS[name]()(audio).sum().backward()
    assert audio.grad is not None and audio.grad.abs().sum() > 0 and audio.grad.isfinite().all()


@pytest.mark.parametrize(
    "audio",
    [torch.zeros(1, 160_000), torch.full((1, 160_000), 0.7), signal()[None].sign()],
    ids=["silence", "dc", "clipped"],
)
def test_degenerate_audio_is_finite(name: str, audio: Tensor) -> None:
    assert FRONT_ENDS[name]()(audio).isfinite().all()


def test_kaldi_against_torchaudio(clips: Tensor) -> None:
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    options = dict(num_mel_bins=128, sample_frequency=16_000, frame_length=25, frame_shift=10)
    for mean, std, extra, prepare in (
        (15.41663, 13.11164, {}, lambda x: x * 32768),
        (-4.2677393, 9.1379948, {"window_type": "hanning"}, lambda x: x - x.mean()),
    ):
        ours = FRONT_ENDS["asit" if extra else "beats"]()(clips)[:, 0]
        for clip, spec in zip(clips, ours, strict=True):
            wanted = kaldi.fbank(prepare(clip[None]), **options, **extra)
            near(spec, (wanted.T - mean) / std)


def test_atst_and_m2d_against_torchaudio(clips: Tensor) -> None:
    transforms = pytest.importorskip("torchaudio.transforms")
    common = dict(sample_rate=16_000, hop_length=160)
    for clip in clips:
        mel = transforms.MelSpectrogram(n_fft=1024, f_min=60, f_max=7800, n_mels=64, **common)(
            clip[None]
        )
        decibel = transforms.AmplitudeToDB(top_db=80)(mel).clamp(-50, 80)
        near(atst_mel()(clip[None])[0], (decibel + 79.6482) / (50.6842 + 79.6482) * 2 - 1)
        mel = transforms.MelSpectrogram(
            n_fft=400, f_min=50, f_max=8000, n_mels=80, mel_scale="slaney", norm="slaney", **common
        )(clip[None])
        near(m2d_mel()(clip[None])[0], ((mel + 1.1920929e-07).log() + 7.1) / 4.2)


def test_preemphasis_mel_against_float64(clips: Tensor) -> None:
    for periodic in (True, False):
        x = clips.double()
        x = x[:, 1:] - 0.97 * x[:, :-1]
        window = torch.hann_window(400, periodic=periodic, dtype=torch.float64)
        stft = torch.stft(x, 512, 160, 400, window, pad_mode="reflect", return_complex=True)
        mel = kaldi_filters(128, 0, 7000).double() @ stft.abs() ** 2
        wanted = (mel.clamp(min=1e-7).log() + 4.5) / 5
        near(preemphasis_mel(periodic=periodic)(clips)[:, 0].double(), wanted)


def test_filters_against_torchaudio() -> None:
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    functional = pytest.importorskip("torchaudio.functional")
    for low, high in ((20.0, 8000.0), (0.0, 7000.0)):
        wanted, _ = kaldi.get_mel_banks(128, 512, 16_000.0, low, high, 100.0, -500.0, 1.0)
        torch.testing.assert_close(kaldi_filters(128, low, high)[:, :-1], wanted, rtol=0, atol=2e-6)
        assert not kaldi_filters(128, low, high)[:, -1].any()
    wanted = functional.melscale_fbanks(513, 60.0, 7800.0, 64, 16_000, None, "htk").T
    torch.testing.assert_close(htk_filters(64, 60, 7800, 1024).float(), wanted, rtol=0, atol=2e-5)
    wanted = functional.melscale_fbanks(201, 50.0, 8000.0, 80, 16_000, "slaney", "slaney").T
    torch.testing.assert_close(slaney_filters(80, 50, 8000, 400).float(), wanted, rtol=0, atol=1e-6)


def test_atst_floor_is_eighty_decibel_below_the_clips_maximum() -> None:
    spec = atst_mel()(signal()[None])
    step = 2 / (50.6842 + 79.6482)
    assert math.isclose((spec.max() - spec.min()).item(), 80 * step, rel_tol=1e-4)


def test_the_window_of_kaldi_frames_needs_no_padding() -> None:
    frontend = KaldiMel(mean=0, std=1)
    assert frontend(torch.zeros(1, 400)).shape[-1] == 1
    assert frontend(torch.zeros(1, 559)).shape[-1] == 1
    assert frontend(torch.zeros(1, 560)).shape[-1] == 2
