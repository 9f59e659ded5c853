"""audio.py: whatever libsndfile can write is read back, whatever is broken is named."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hear_pretrainedsed import audio as audio_module
from hear_pretrainedsed.audio import (
    EXTENSIONS,
    AudioError,
    audio_files,
    check_audio,
    read_audio,
    resample,
    resampled_length,
)

LOSSLESS = [  # (format, subtype, file ending)
    ("WAV", "PCM_U8", "wav"),
    ("WAV", "PCM_16", "wav"),
    ("WAV", "PCM_24", "wav"),
    ("WAV", "PCM_32", "wav"),
    ("WAV", "FLOAT", "wav"),
    ("WAV", "DOUBLE", "wav"),
    ("WAV", "ULAW", "wav"),
    ("WAV", "ALAW", "wav"),
    ("WAV", "IMA_ADPCM", "wav"),
    ("WAV", "MS_ADPCM", "wav"),
    ("WAVEX", "PCM_24", "wav"),
    ("W64", "PCM_16", "w64"),
    ("RF64", "PCM_16", "rf64"),
    ("AIFF", "PCM_16", "aiff"),
    ("AU", "PCM_16", "au"),
    ("CAF", "ALAC_16", "caf"),
    ("FLAC", "PCM_16", "flac"),
    ("FLAC", "PCM_24", "flac"),
]
LOSSY = [
    ("OGG", "VORBIS", "ogg"),
    ("OGG", "OPUS", "opus"),
    ("MP3", "MPEG_LAYER_III", "mp3"),
]
MONO_ONLY = [("WAV", "GSM610", "wav"), ("WAV", "G721_32", "wav"), ("AU", "G723_24", "au")]


def noise(n: int, n_channels: int = 1, seed: int = 0) -> np.ndarray:
    """Smoothed noise (samples, channels) within [-0.9, 0.9]."""
    white = np.random.default_rng(seed).standard_normal((n + 3, n_channels))
    smooth = sum(white[i : i + n] for i in range(4)) / 4
    return (0.3 * smooth).clip(-0.9, 0.9).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int, kind: str, subtype: str) -> Path:
    """Write in short pieces: libvorbis overflows its stack on long ones."""
    with soundfile.SoundFile(
        path, "w", rate, samples.shape[1], format=kind, subtype=subtype
    ) as file:
        for start in range(0, len(samples), 5000):
            file.write(samples[start : start + 5000])
    return path


def plain_read(path: Path) -> np.ndarray:
    """The whole file in one call, mixed."""
    samples, _ = soundfile.read(path, frames=10**7, dtype="float32", always_2d=True)
    return samples.mean(axis=1)


# ---- reading


@pytest.mark.parametrize("kind", LOSSLESS + LOSSY, ids=lambda kind: "-".join(kind[:2]))
@pytest.mark.parametrize("n_channels", [1, 2])
def test_every_format_equals_a_plain_read(tmp_path, kind, n_channels) -> None:
    path = write(tmp_path / f"a.{kind[2]}", noise(24_000, n_channels), 16_000, *kind[:2])
    audio = read_audio(path)
    assert audio.dtype == torch.float32
    assert audio.shape == (len(plain_read(path)),)
    np.testing.assert_allclose(audio.numpy(), plain_read(path), atol=1e-7)
    assert read_audio(str(path)).equal(audio)


@pytest.mark.parametrize("kind", MONO_ONLY, ids=lambda kind: "-".join(kind[:2]))
def test_formats_without_seeking(tmp_path, kind) -> None:
    path = write(tmp_path / f"a.{kind[2]}", noise(16_000), 8_000, *kind[:2])
    audio = read_audio(path, 8_000)
    np.testing.assert_allclose(audio.numpy(), plain_read(path), atol=1e-7)


@pytest.mark.parametrize("kind", [*LOSSY, ("FLAC", "PCM_16", "flac")], ids=lambda k: k[1])
def test_blocks_join_without_a_seam(tmp_path, kind, monkeypatch) -> None:
    """MP3 loses samples at some block's start if the reader seeks in between."""
    monkeypatch.setattr(audio_module, "_BLOCK_SAMPLES", 10_000)
    rate = 16_000 if kind[1] != "OPUS" else 48_000
    loud = (0.3 * np.random.default_rng(0).standard_normal((400_000, 1))).clip(-0.9, 0.9)
    path = write(tmp_path / f"a.{kind[2]}", loud.astype(np.float32), rate, *kind[:2])
    np.testing.assert_allclose(read_audio(path, rate).numpy(), plain_read(path), atol=1e-6)


@given(
    kind=st.sampled_from(LOSSLESS[:8] + LOSSLESS[-2:]),
    rate=st.sampled_from([1000, 8000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000]),
    to_rate=st.sampled_from([16_000, 16_000, 32_000]),
    n=st.integers(1, 5000) | st.integers(1, 60_000),
    n_channels=st.sampled_from([1, 2, 3, 8]),
    seed=st.integers(0, 9),
)
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_wav_rate_and_channels(tmp_path, kind, rate, to_rate, n, n_channels, seed) -> None:
    path = write(tmp_path / f"a.{kind[2]}", noise(n, n_channels, seed), rate, *kind[:2])
    audio = read_audio(path, to_rate)
    mono = plain_read(path)
    assert audio.shape == (resampled_length(n, rate, to_rate),)
    expected = mono if rate == to_rate else soxr.resample(mono, rate, to_rate, "HQ")
    expected = np.pad(expected, (0, len(audio) - len(expected)))
    np.testing.assert_allclose(audio.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("n_channels", [5, 16, 300])
def test_many_channels_are_averaged(tmp_path, n_channels) -> None:
    samples = noise(4000, n_channels)
    path = write(tmp_path / "a.wav", samples, 16_000, "WAV", "FLOAT")
    np.testing.assert_allclose(read_audio(path).numpy(), samples.mean(axis=1), atol=1e-6)


def test_blocks_of_many_channels_are_resampled_as_one_signal(tmp_path) -> None:
    samples = noise(200_000, 8)  # four blocks
    path = write(tmp_path / "a.wav", samples, 44_100, "WAV", "FLOAT")
    whole = soxr.resample(samples.mean(axis=1), 44_100, 16_000, "HQ")
    np.testing.assert_allclose(read_audio(path).numpy(), whole, atol=1e-6)


def test_file_names_need_not_be_utf8(tmp_path) -> None:
    written = write(tmp_path / "a.wav", noise(500), 16_000, "WAV", "PCM_16")
    path = written.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff caf\xe9.wav"))
    assert len(read_audio(path)) == 500
    path.write_bytes(b"RIFF")
    with pytest.raises(AudioError, match=": not audio"):
        read_audio(path)
    assert audio_files([tmp_path]) == [path]


def test_float_files_keep_values_beyond_one(tmp_path) -> None:
    path = write(tmp_path / "a.wav", np.float32([[3.0], [-7.5], [0.0]]), 16_000, "WAV", "FLOAT")
    assert read_audio(path).tolist() == [3.0, -7.5, 0.0]


def test_a_tone_survives_the_way_from_48_khz(tmp_path) -> None:
    seconds = np.arange(48_000) / 48_000
    tone = np.sin(2 * np.pi * 1000 * seconds)[:, None] * 0.5
    path = write(tmp_path / "a.wav", tone, 48_000, "WAV", "FLOAT")
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    assert np.abs(read_audio(path).numpy() - expected)[400:-400].max() < 1e-4  # in phase as well


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_F000])
def test_streamed_wav_without_a_length_is_whole(tmp_path, size) -> None:
    path = write(tmp_path / "a.wav", noise(5000), 16_000, "WAV", "PCM_16")
    expected = plain_read(path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.find(b"data") + 4, size)
    struct.pack_into("<I", data, 4, size)
    path.write_bytes(data)
    assert np.array_equal(read_audio(path).numpy(), expected)


def test_streamed_flac_without_a_length_is_whole(tmp_path) -> None:
    path = write(tmp_path / "a.flac", noise(700_000), 16_000, "FLAC", "PCM_16")
    expected = plain_read(path)
    data = bytearray(path.read_bytes())
    info = int.from_bytes(data[18:26], "big")  # rate, channels, bits, 36 bits of total samples
    assert info & (1 << 36) - 1 == 700_000
    data[18:26] = (info >> 36 << 36).to_bytes(8, "big")
    path.write_bytes(data)
    assert np.array_equal(read_audio(path).numpy(), expected)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory in /proc")
def test_memory_stays_bounded(tmp_path) -> None:
    """20 minutes of 48 kHz stereo: 77 MB of result, 460 MB if it were decoded whole."""
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 48_000, 2, format="FLAC", subtype="PCM_16") as file:
        for _ in range(120):
            file.write(np.zeros((480_000, 2), np.int16))
    code = (
        "import sys, re; from hear_pretrainedsed.audio import read_audio\n"
        "import soxr\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = peak(); n = len(read_audio(sys.argv[1])); print(n, peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    n_samples, grown_kib = map(int, done.stdout.split())
    assert n_samples == 20 * 60 * 16_000
    assert grown_kib < n_samples * 4 / 1024 + 40_000


# ---- broken files


@pytest.mark.parametrize(
    "kind",
    LOSSLESS + LOSSY + MONO_ONLY,
    ids=lambda kind: "-".join(kind[:2]),
)
@pytest.mark.parametrize("share", [0.97, 0.7, 0.3, 0.02])
def test_truncated_files_are_refused(tmp_path, kind, share) -> None:
    path = write(tmp_path / f"a.{kind[2]}", noise(40_000, 1), 16_000, *kind[:2])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(AudioError, match=rf"a\.{kind[2]}: ") as caught:
        read_audio(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_truncation_is_called_by_its_name(tmp_path, kind) -> None:
    path = write(tmp_path / f"a.{kind}", noise(40_000), 16_000, kind.upper(), None)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(AudioError, match="truncated"):
        read_audio(path)


@given(st.integers(1, 10_000), st.sampled_from(["ogg", "opus"]))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_ogg_cut_anywhere_is_refused_or_ends_with_a_page(tmp_path, cut, kind) -> None:
    whole = tmp_path / f"whole.{kind}"
    if not whole.exists():
        write(whole, noise(60_000), 16_000, "OGG", "VORBIS" if kind == "ogg" else "OPUS")
    data = whole.read_bytes()
    data = data[: max(1, len(data) - cut)]
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(data)
    try:
        read_audio(path)
    except AudioError:
        return
    assert whole.read_bytes()[len(data) :].startswith(b"OggS")


def test_harmless_oddities_are_read(tmp_path) -> None:
    path = write(tmp_path / "a.wav", noise(1001), 16_000, "WAV", "PCM_U8")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 4, len(data))  # a writer that counted RIFF's own 8 bytes
    path.write_bytes(data + b"trailing bytes of an editor")
    assert len(read_audio(path)) == 1001
    path.write_bytes(data[:-1])  # without the pad byte behind an odd number of bytes
    assert len(read_audio(path)) == 1001


def broken_file(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.wav"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("<!DOCTYPE html><html>404</html>" * 100)
    elif kind == "random":
        path.write_bytes(np.random.default_rng(0).bytes(50_000))
    elif kind == "header":
        write(path, np.zeros((0, 1)), 16_000, "WAV", "PCM_16")
    elif kind == "mp3_text":
        path = folder / "text.mp3"
        path.write_text("<html>not music</html>" * 1000)
    elif kind == "raw":
        path = folder / "a.raw"
        path.write_bytes(bytes(1000))
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "damaged":
        path = write(folder / "a.flac", noise(100_000), 16_000, "FLAC", "PCM_16")
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("folder", "a folder, not an audio file"),
        ("empty", "empty file"),
        ("text", "not audio in a format"),
        ("random", "not audio in a format"),
        ("mp3_text", "not audio|damaged"),
        ("header", "no samples"),
        ("raw", "headerless"),
        ("fifo", "not a regular file"),
        ("damaged", "damaged"),
    ],
)
def test_broken_files_are_named_in_one_line(tmp_path, kind, message) -> None:
    path = broken_file(tmp_path, kind)
    with pytest.raises(AudioError, match=f": .*({message})") as caught:
        read_audio(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 1234, 700_000])
def test_nan_and_inf_in_files_are_refused(tmp_path, bad, at) -> None:
    samples = np.zeros((700_001, 2), np.float32)
    samples[at:, 1] = bad
    path = write(tmp_path / "a.wav", samples, 48_000, "WAV", "FLOAT")
    name = "NaN" if np.isnan(bad) else "Inf"
    with pytest.raises(AudioError, match=rf"a\.wav: {name} at sample {at}$"):
        read_audio(path)


def test_a_header_that_claims_hours_costs_nothing(tmp_path) -> None:
    path = write(tmp_path / "a.flac", noise(5000), 16_000, "FLAC", "PCM_16")
    data = bytearray(path.read_bytes())
    data[18:26] = (int.from_bytes(data[18:26], "big") | (1 << 36) - 1).to_bytes(8, "big")
    path.write_bytes(data)
    with pytest.raises(AudioError, match="truncated: it states 68719476735 samples"):
        read_audio(path)


# ---- resampling


@given(
    n=st.integers(1, 3000),
    batch=st.integers(1, 3),
    rates=st.tuples(
        st.sampled_from([8000, 16_000, 22_050, 44_100, 48_000, 12_345]),
        st.sampled_from([8000, 16_000, 32_000, 48_000, 44_100]),
    ),
)
@settings(max_examples=100, deadline=None)
def test_resampled_length_holds_for_any_length(n, batch, rates) -> None:
    audio = torch.from_numpy(noise(n, batch).T.copy())
    out = resample(audio, *rates)
    length = int(np.floor(n * rates[1] / rates[0] + 0.5)) or 1
    assert out.shape == (batch, length) == (batch, resampled_length(n, *rates))
    assert out.dtype == torch.float32
    for row, clip in zip(out, audio, strict=True):
        assert resample(clip[None], *rates)[0].equal(row)


def test_resample_keeps_dtype_and_content() -> None:
    audio = torch.sin(torch.arange(4800) * 0.05)[None]
    expected = torch.sin(torch.arange(1600) * 0.15)
    for dtype, tolerance in (
        (torch.float64, 1e-4),
        (torch.float32, 1e-4),
        (torch.bfloat16, 1e-2),
        (torch.float16, 1e-3),
    ):
        out = resample(audio.to(dtype), 48_000, 16_000)
        assert out.dtype == dtype
        assert (out[0].float() - expected)[200:-200].abs().max() < tolerance
    assert resample(audio, 16_000, 16_000) is audio
    assert resample(audio.requires_grad_(), 48_000, 16_000).shape == (1, 1600)


def test_files_and_tensors_are_resampled_alike(tmp_path) -> None:
    samples = noise(600_000)
    path = write(tmp_path / "a.wav", samples, 44_100, "WAV", "FLOAT")
    audio = resample(torch.from_numpy(samples.T.copy()), 44_100, 16_000)[0]
    np.testing.assert_allclose(read_audio(path).numpy(), audio.numpy(), atol=1e-6)


@pytest.mark.parametrize("rate", [0, -1, 0.5, 16_000.5])
def test_wrong_rates_are_refused(rate) -> None:
    with pytest.raises(AudioError, match="positive whole number of Hz"):
        resample(torch.zeros(1, 5), rate, 16_000)


# ---- checking


@pytest.mark.parametrize(
    "audio",
    [
        torch.zeros(1, 1),
        torch.zeros(3, 100),
        torch.full((2, 50), 0.5),  # DC
        torch.tensor([[2.0, -9.0, 1e30]]),
        torch.full((1, 8), 3e38),  # the sum is beyond float32, no sample is
        torch.full((1, 8), 60_000.0).half(),
        torch.zeros(2, 5, dtype=torch.float64),
    ],
)
def test_audio_is_accepted(audio) -> None:
    check_audio(audio)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros((1, 5), np.float32), "got ndarray; torch.from_numpy"),
        ([[0.0]], "got list"),
        (torch.zeros(1, 5, dtype=torch.int16), r"floating point in \[-1, 1\], got torch.int16"),
        (torch.zeros(5), r"\(batch, samples\), got 1 axes \(5,\)"),
        (torch.zeros(1, 1, 5), r"got 3 axes \(1, 1, 5\)"),
        (torch.zeros(2, 0), r"empty audio: \(batch, samples\) is \(2, 0\)"),
        (torch.zeros(0, 5), "empty audio"),
    ],
)
def test_what_is_not_audio_is_refused(audio, message) -> None:
    with pytest.raises(AudioError, match=message):
        check_audio(audio)


@given(
    st.integers(1, 4),
    st.integers(1, 300),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 299)), min_size=1, max_size=4),
    st.sampled_from([float("nan"), float("inf"), -float("inf")]),
)
@settings(max_examples=100, deadline=None)
def test_the_first_bad_sample_is_named(batch, n, places, bad) -> None:
    audio = torch.zeros(batch, n)
    places = [(clip % batch, sample % n) for clip, sample in places]
    for clip, sample in places:
        audio[clip, sample] = bad
    clip, sample = min(places)
    name = "NaN" if bad != bad else "Inf"
    with pytest.raises(AudioError, match=f"{name} .*batch index {clip}, sample {sample}$"):
        check_audio(audio)


def test_infinities_that_cancel_are_found() -> None:
    with pytest.raises(AudioError, match="Inf .*batch index 0, sample 1"):
        check_audio(torch.tensor([[0.0, float("inf"), -float("inf")]]))


# ---- finding files


def test_audio_files_in_folders(tmp_path) -> None:
    names = ["b.wav", "a.FLAC", "sub/c.mp3", "sub/deep/d.ogg", ".hidden.wav", ".git/e.wav"]
    names += ["notes.txt", "noending", "sub/.d.wav"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = audio_files([tmp_path])
    assert found == [tmp_path / name for name in ("a.FLAC", "b.wav", "sub/c.mp3", "sub/deep/d.ogg")]
    named = audio_files([tmp_path / "notes.txt", str(tmp_path / "missing.wav")])
    assert named == [tmp_path / "notes.txt", tmp_path / "missing.wav"]
    twice = audio_files([tmp_path / "b.wav", tmp_path, tmp_path / "sub" / ".." / "b.wav"])
    assert twice == [tmp_path / "b.wav", *[path for path in found if path.name != "b.wav"]]
    assert audio_files([]) == []


def test_a_folder_without_audio_is_named(tmp_path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(AudioError, match=r"no audio files in this folder \(.*\.wav"):
        audio_files([tmp_path])


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.wav").touch()
    scan = os.scandir

    def refuse(path: object) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="closed"):
        audio_files([tmp_path])


def test_a_link_to_a_folder_above_does_not_loop(tmp_path) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert audio_files([tmp_path]) == [tmp_path / "a.wav"]


@pytest.mark.parametrize("kind", LOSSLESS + LOSSY, ids=lambda kind: "-".join(kind[:2]))
def test_extensions_cover_what_is_tested(kind) -> None:
    assert f".{kind[2]}" in EXTENSIONS
