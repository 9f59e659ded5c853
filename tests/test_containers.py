"""Lengths that MP3 files do not state, and streams that follow each other in one file."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from downstream.tasks.sources import duration_s
from hear_pretrainedsed import containers
from hear_pretrainedsed.audio import AudioError, read_audio, read_part

RATE = 16_000
FRAME_SAMPLES = 576  # of MPEG 2, layer III


def mp3(path: Path, samples: np.ndarray, mode: str = "VARIABLE") -> bytes:
    """An MP3 file whose first frame holds a Xing or Info tag; its bytes."""
    with soundfile.SoundFile(
        path, "w", RATE, 1, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode=mode
    ) as file:
        file.write(samples)
    return path.read_bytes()


def untagged(data: bytes) -> bytes:
    """The same frames without the first one."""
    return data[data.index(data[:2], 4) :]


def noise_and_silence(order: int) -> np.ndarray:
    noise = 0.3 * np.random.default_rng(0).standard_normal(6 * RATE)
    return np.concatenate([noise, np.zeros(6 * RATE)][::order]).astype(np.float32)


def id3v2(n: int) -> bytes:
    return b"ID3\x03\0\0" + bytes((n >> shift) & 0x7F for shift in (21, 14, 7, 0)) + bytes(n)


@pytest.mark.parametrize("order", [1, -1], ids=["guessed-too-short", "guessed-too-long"])
def test_an_mp3_without_a_length_is_read_whole(tmp_path, order: int) -> None:
    tagged, path = tmp_path / "tagged.mp3", tmp_path / "a.mp3"
    samples = noise_and_silence(order)
    path.write_bytes(untagged(mp3(tagged, samples)))
    assert abs(soundfile.info(path).frames - len(samples)) > RATE  # what libsndfile guesses
    audio, whole = read_audio(path), read_audio(tagged)
    assert len(samples) <= len(audio) <= len(samples) + 5 * FRAME_SAMPLES
    delay = len(audio) - len(whole)  # of encoder and decoder: a tag tells it
    shifts = range(delay + 1)
    best = min(float((audio[i : i + RATE] - whole[:RATE]).abs().max()) for i in shifts)
    assert best < 0.02
    assert duration_s(path) == len(audio) / RATE
    part = read_part(path, len(audio) - RATE, 2 * RATE)
    assert part.equal(audio[-RATE:])


@pytest.mark.parametrize("place", ["before", "after"])
def test_tags_of_players_are_no_audio(tmp_path, place: str) -> None:
    frames = untagged(mp3(tmp_path / "b.mp3", noise_and_silence(1)[: 2 * RATE], "CONSTANT"))
    (tmp_path / "plain.mp3").write_bytes(frames)
    head = b"APETAGEX" + b"".join(x.to_bytes(4, "little") for x in (2000, 50_032, 1, 0, 0, 0))
    data = id3v2(50_000) + frames if place == "before" else frames + head + bytes(50_000) + head
    (tmp_path / "a.mp3").write_bytes(data)
    assert read_audio(tmp_path / "a.mp3").equal(read_audio(tmp_path / "plain.mp3"))


def test_a_reader_that_stops_early_leaves_nothing_open(tmp_path) -> None:
    data = untagged(mp3(tmp_path / "a.mp3", np.tile(noise_and_silence(1), 10), "CONSTANT"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with containers.streamed(io.BytesIO(data)) as end:
            assert os.read(end, 2) == data[:2]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("between", [b"", id3v2(300), b"TAG" + bytes(125)])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_joined_mp3_files_are_refused(tmp_path, mode: str, between: bytes) -> None:
    path = tmp_path / "a.mp3"
    data = mp3(path, noise_and_silence(1)[:RATE], mode)
    assert len(read_audio(path)) == RATE
    path.write_bytes(id3v2(100) + data + between)
    assert len(read_audio(path)) == RATE
    path.write_bytes(id3v2(100) + data + between + data)
    for read in (read_audio, lambda path: read_part(path, 0, 10)):
        with pytest.raises(AudioError, match="a.mp3: several MP3 streams, one after the other"):
            read(path)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_streams_are_refused(tmp_path, subtype: str) -> None:
    parts = []
    for i in (1, 2):
        path = tmp_path / f"{i}.ogg"
        soundfile.write(path, noise_and_silence(1)[: i * RATE], RATE, format="OGG", subtype=subtype)
        assert len(read_audio(path)) == i * RATE
        parts.append(path.read_bytes())
    (tmp_path / "a.ogg").write_bytes(b"".join(parts))
    with pytest.raises(AudioError, match="a.ogg: several OGG streams, one after the other"):
        read_audio(tmp_path / "a.ogg")


def test_a_file_that_is_anything_has_no_tag_and_no_streams() -> None:
    generator = np.random.default_rng(0)
    starts = (b"", b"ID3", b"ID3\x03\0\0\0\0\0\0", b"\xff\xfb\x90\x64", b"OggS\0\x02", b"OggS\0\0")
    for start in starts:
        for n in (0, 1, 9, 30, 300):
            file = io.BytesIO(start + generator.bytes(n))
            assert containers.estimates_length(file)
            assert not containers.is_joined_mp3(file)
            containers.is_chained_ogg(file)
