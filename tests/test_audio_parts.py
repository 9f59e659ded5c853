"""read_part: a part of a file is that part of the whole, at the part's price."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hear_pretrainedsed import audio as audio_module
from hear_pretrainedsed.audio import AudioError, read_audio, read_part
from tests.test_audio import LOSSLESS, LOSSY, noise, write

SECONDS = 6.0


def file_of(folder: Path, kind: tuple[str, str, str], rate: int, n_channels: int = 1) -> Path:
    samples = noise(round(SECONDS * rate), n_channels)
    return write(folder / f"a.{kind[2]}", samples, rate, *kind[:2])


@pytest.mark.parametrize("kind", LOSSLESS, ids=lambda kind: "-".join(kind[:2]))
def test_lossless_parts_are_bit_equal(tmp_path, kind) -> None:
    path = file_of(tmp_path, kind, 16_000, 2)
    whole = read_audio(path)
    for start in (0, 1, 640, 33_333, len(whole) - 5):
        part = read_part(path, start, 20_000)
        assert part.equal(whole[start : start + 20_000])


@pytest.mark.parametrize("kind", LOSSY, ids=lambda kind: kind[1])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_lossy_parts_are_those_of_the_whole(tmp_path, kind, rate) -> None:
    path = file_of(tmp_path, kind, rate)
    whole = read_audio(path)
    for start in (0, 640, 40_000, 64_000):
        part = read_part(path, start, 16_000)
        assert len(part) == 16_000
        assert (part - whole[start : start + 16_000]).abs().max() < 2e-3


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rate=st.sampled_from([8000, 11_025, 22_050, 32_000, 44_100, 48_000]),
    start=st.integers(0, 90_000),
    n=st.integers(1, 30_000),
)
def test_resampled_parts_are_those_of_the_whole(tmp_path, rate, start, n) -> None:
    path = tmp_path / f"{rate}.wav"
    if not path.exists():
        write(path, noise(round(SECONDS * rate)), rate, "WAV", "FLOAT")
    whole = read_audio(path)
    part = read_part(path, start, n)
    wanted = whole[start : start + n]
    assert part.shape == wanted.shape
    assert (part - wanted).abs().max() < 1e-4


def test_a_stream_without_a_length_is_read_up_to_the_part(tmp_path) -> None:
    path = file_of(tmp_path, ("FLAC", "PCM_16", "flac"), 16_000)
    content = bytearray(path.read_bytes())
    content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])  # STREAMINFO's count of samples
    path.write_bytes(content)
    whole = read_audio(path)
    assert read_part(path, 50_000, 9000).equal(whole[50_000:59_000])


def test_an_hour_costs_what_its_part_does(tmp_path, monkeypatch) -> None:
    path = tmp_path / "hour.wav"
    second = noise(16_000)
    with soundfile.SoundFile(path, "w", 16_000, 1, subtype="PCM_16") as file:
        for _ in range(3600):
            file.write(second)
    n_decoded = []
    plain = audio_module._mono
    monkeypatch.setattr(
        audio_module, "_mono", lambda *a: (n_decoded.append(len(a[1])), plain(*a))[1]
    )
    start = time.perf_counter()
    part = read_part(path, 3000 * 16_000, 160_000)
    assert sum(n_decoded) < 200_000
    assert time.perf_counter() - start < 0.5
    assert np.abs(part[:16_000].numpy() - second[:, 0]).max() < 1e-4


def test_parts_that_are_not_there_are_refused(tmp_path) -> None:
    path = file_of(tmp_path, ("WAV", "PCM_16", "wav"), 16_000)
    with pytest.raises(ValueError, match="no sample 96000 at 16000 Hz: it ends before"):
        read_part(path, 96_000, 10)
    for start, n in ((-1, 10), (0, 0)):
        with pytest.raises(ValueError, match="is no part"):
            read_part(path, start, n)
    with pytest.raises(AudioError, match="no such file"):
        read_part(tmp_path / "b.wav", 0, 10)
    (tmp_path / "c.wav").write_text("text, and no audio at all")
    with pytest.raises(AudioError, match="not audio"):
        read_part(tmp_path / "c.wav", 0, 10)


def test_nan_in_a_part_is_refused_and_elsewhere_not_seen(tmp_path) -> None:
    samples = noise(96_000)
    samples[50_000] = np.nan
    path = write(tmp_path / "a.wav", samples, 16_000, "WAV", "FLOAT")
    with pytest.raises(AudioError, match="NaN at sample 50000"):
        read_part(path, 45_000, 16_000)
    read_part(path, 0, 16_000)
