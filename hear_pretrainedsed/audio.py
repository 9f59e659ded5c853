"""files -> audio: any format libsndfile reads, any rate, any channel count.

Files are decoded and resampled block by block, so that an hour of 48 kHz stereo costs its 16 kHz
result and a few megabytes. What cannot be read whole and sound is an `AudioError`, one line that
names the file: nothing is padded, repaired or cut silently.

Resampling is soxr's HQ (band-limited, linear phase, delay compensated).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from hear_pretrainedsed import containers

SAMPLE_RATE = 16_000
EXTENSIONS = frozenset(
    (".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au")
    + (".snd", ".caf", ".w64", ".rf64")
)

_BLOCK_SAMPLES = 1 << 19  # decoded at a time, all channels together: 2 MiB
_FIRST_BUFFER_SAMPLES = 4000 * SAMPLE_RATE  # a header's claim of more is believed as it is read
_UNKNOWN_FRAMES = 1 << 62  # libsndfile reports 2^63 - 1 for a FLAC stream without a length
_UNKNOWN_BYTES = 0x7FFF_F000  # sizes from here on are what streaming writers leave in a header
_LEAD_SAMPLES = 1 << 14  # decoded before a part: MP3 and Ogg need what came before, a filter too
_OGG_PAGE_BYTES = 65_307  # the longest Ogg page (RFC 3533, section 6)

# libsndfile shortens such a file silently; its log keeps what the header had claimed.
_SHORT_DATA = re.compile(r"^\s*(?:data|Data Size|SSND|riff)\s*: (\d+) \(should be (\d+)\)", re.M)
_SHORT_DS64 = re.compile(r"frame count (\d+) does not match value from 'ds64' chunk of (\d+)")

_REASONS = {  # libsndfile's error numbers (sndfile.h); every other one comes from within the audio
    1: "not audio in a format that libsndfile reads",
    2: "cannot be read from the disk",
    4: "an encoding that libsndfile does not read",
}


class AudioError(ValueError):
    """Audio that cannot be used; the message is one line that names the file and the reason."""


class _Stream(soundfile.SoundFile):
    """A file that is only read onwards.

    soundfile seeks after every read of a seekable file: that damages MP3 at each block's start
    (the bit reservoir is lost) and fails at the end of a FLAC stream of unknown length.
    """

    def seekable(self) -> bool:
        return False


def read_audio(path: str | os.PathLike[str], sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Read a file as audio (samples,), float32 mono at `sample_rate` Hz.

    Channels are averaged; n samples at another rate become `resampled_length(n, ...)`. Integer
    formats are scaled to [-1, 1); float files keep their values, whatever they are.

    Raises `AudioError` for a file that is missing, empty, not audio, damaged, without samples,
    holding NaN or Inf, or truncated: cut below the length that its header states (a header that
    states none, as streaming writers leave it, is fine), or an Ogg file that ends within a page;
    for MP3 files or Ogg streams that follow each other in one file, of which one would be read.
    Not detectable: cuts of a raw MPEG stream without a Xing/Info header, or between Ogg pages.
    """
    path = Path(path)
    _check_readable(path)
    if path.suffix.lower() == ".raw":  # soundfile takes the name's word for it
        raise AudioError(f"{path}: headerless audio (.raw); convert it to WAV or FLAC")
    try:
        with _opened(path) as file:
            return torch.from_numpy(_read(path, file, sample_rate))
    except soundfile.LibsndfileError as error:
        reason = _REASONS.get(error.code, "damaged or truncated")
        raise AudioError(f"{path}: {reason}") from None


def read_part(
    path: str | os.PathLike[str],
    start_samples: int,
    n_samples: int,
    sample_rate: int = SAMPLE_RATE,
) -> Tensor:
    """Read `read_audio(path)[start_samples : start_samples + n_samples]`, and little else.

    The file is sought, so that a part of an hour costs what the part does (a stream that cannot be
    sought is decoded up to there, block by block). Equal to the last bit where the file is lossless
    and at `sample_rate`; MP3, Ogg and resampled files differ by rounding.

    Raises `AudioError` as `read_audio`, for what can be seen without decoding the rest, and
    `ValueError` for a part that begins after the file's end or has no samples.
    """
    if start_samples < 0 or n_samples < 1:
        raise ValueError(f"a part of {n_samples} samples from {start_samples} on is no part")
    path = Path(path)
    _check_readable(path)
    if path.suffix.lower() == ".raw":
        raise AudioError(f"{path}: headerless audio (.raw); convert it to WAV or FLAC")
    try:
        with _opened(path, soundfile.SoundFile) as file:
            return torch.from_numpy(_part(path, file, start_samples, n_samples, sample_rate))
    except soundfile.LibsndfileError as error:
        reason = _REASONS.get(error.code, "damaged or truncated")
        raise AudioError(f"{path}: {reason}") from None


def _part(
    path: Path, file: soundfile.SoundFile, start: int, n_samples: int, sample_rate: int
) -> np.ndarray:
    """The part (up to n_samples,) that begins at sample `start` of the result."""
    rate = file.samplerate
    common = math.gcd(rate, sample_rate)
    # Every so many samples one of the file and one of the result are at the same time.
    step, step_out = rate // common, sample_rate // common
    lead = -(-_LEAD_SAMPLES // step)
    first = max(0, start // step_out - lead)
    end = -(-(start + n_samples) // step_out) + lead
    mono = _mono_part(path, file, first * step, (end - first) * step)
    part = mono
    if rate != sample_rate:
        import soxr

        part = soxr.resample(mono, rate, sample_rate, "HQ") if len(mono) else mono
    length = resampled_length(len(mono), rate, sample_rate) if len(mono) else 0
    skipped = start - first * step_out
    if length <= skipped:
        raise ValueError(f"{path}: no sample {start} at {sample_rate} Hz: it ends before")
    out = np.zeros(min(length - skipped, n_samples), np.float32)
    found = part[skipped : skipped + len(out)]
    out[: len(found)] = found
    return out


def _mono_part(path: Path, file: soundfile.SoundFile, first: int, n: int) -> np.ndarray:
    """Up to `n` samples of a file from `first` on, the mean over channels."""
    if file.seekable() and file.frames < _UNKNOWN_FRAMES:
        file.seek(min(first, file.frames))
        blocks = [_mono(path, file.read(n, dtype="float32", always_2d=True), first)]
    else:
        blocks, place = [], 0
        with _opened(path) as stream:
            for block in _mono_blocks(path, stream):
                blocks.append(block[max(0, first - place) : first + n - place])
                place += len(block)
                if place >= first + n:
                    break
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise AudioError(f"{path}: a folder, not an audio file")
    if not path.exists():
        raise AudioError(f"{path}: no such file")
    if not path.is_file():
        raise AudioError(f"{path}: not a regular file")
    if not os.access(path, os.R_OK):
        raise AudioError(f"{path}: no permission to read it")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: empty file (0 bytes)")


@contextmanager
def _opened(path: Path, kind: type[soundfile.SoundFile] = _Stream) -> Iterator[soundfile.SoundFile]:
    """A whole file as `kind`, as a `_Stream` where its length is a guess; refuses joined ones."""
    with kind(os.fsencode(path)) as file:  # names need not be valid UTF-8
        _check_whole(path, file)
        if file.format not in ("MP3", "OGG"):
            yield file
            return
        with open(path, "rb") as content:
            if containers.holds_several(content, file.format):
                raise AudioError(
                    f"{path}: several {file.format} streams, one after the other, of which only "
                    "the first would be read; convert it to WAV or FLAC"
                )
            if file.format == "OGG" or not containers.estimates_length(content):
                yield file
                return
            with containers.streamed(content) as end, _Stream(end, closefd=False) as stream:
                yield stream


def _check_whole(path: Path, file: soundfile.SoundFile) -> None:
    """Raise where libsndfile has opened a cut file as if it were a shorter whole one."""
    for stated, held in _SHORT_DATA.findall(file.extra_info):
        if int(held) + 1 < int(stated) < _UNKNOWN_BYTES:  # + 1: a missing pad byte is harmless
            raise AudioError(
                f"{path}: truncated: its header states {stated} bytes of audio, it holds {held}"
            )
    for held, stated in _SHORT_DS64.findall(file.extra_info):
        if int(held) < int(stated):
            raise AudioError(
                f"{path}: truncated: its header states {stated} samples, it holds {held}"
            )
    if file.format == "OGG" and _ends_within_ogg_page(path):
        raise AudioError(f"{path}: truncated: it ends within an Ogg page")


def _ends_within_ogg_page(path: Path) -> bool:
    """Whether the last Ogg page of a file is incomplete (page layout: RFC 3533, section 6)."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * _OGG_PAGE_BYTES))
        tail = file.read()
    start = tail.rfind(b"OggS\0")
    if start < 0:
        return False
    page = tail[start:]
    table = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if len(page) < 27 or len(table) < page[26]:
        return True
    rest = page[27 + len(table) + sum(table) :]
    return len(page) < 27 + len(table) + sum(table) or (rest != b"" and b"OggS\0".startswith(rest))


def _read(path: Path, file: _Stream, sample_rate: int) -> np.ndarray:
    """The whole file, mixed and resampled, (samples,) float32."""
    n_stated = file.frames if file.frames < _UNKNOWN_FRAMES else None
    expected = resampled_length(n_stated or 1, file.samplerate, sample_rate)
    buffer = np.empty(min(expected, _FIRST_BUFFER_SAMPLES) + 64, np.float32)
    n_read = n_out = 0
    stream = None
    if file.samplerate != sample_rate:
        import soxr  # here: most corpora need no resampling

        stream = soxr.ResampleStream(file.samplerate, sample_rate, 1, "float32", "HQ")
    for block in _mono_blocks(path, file):
        n_read += len(block)
        out = block if stream is None else stream.resample_chunk(block)
        buffer, n_out = _append(buffer, n_out, out)
    if n_read == 0:
        raise AudioError(f"{path}: no samples in it")
    if n_stated is not None and n_read < n_stated:
        raise AudioError(f"{path}: truncated: it states {n_stated} samples and holds {n_read}")
    if stream is not None:
        tail = stream.resample_chunk(np.empty(0, np.float32), last=True)
        buffer, n_out = _append(buffer, n_out, tail)
    length = resampled_length(n_read, file.samplerate, sample_rate)
    if n_out < length:
        buffer, n_out = _append(buffer, n_out, np.zeros(length - n_out, np.float32))
    return buffer[:length]


def _mono_blocks(path: Path, file: _Stream) -> Iterator[np.ndarray]:
    """Blocks (samples,) float32, the mean over channels; NaN and Inf are refused."""
    n_block = max(1, _BLOCK_SAMPLES // file.channels)
    start = 0
    while len(block := file.read(n_block, dtype="float32", always_2d=True)):
        yield _mono(path, block, start)
        start += len(block)


def _mono(path: Path, block: np.ndarray, start: int) -> np.ndarray:
    """Mean over channels (samples,) of a block (samples, channels) that begins at `start`."""
    n_channels = block.shape[1]
    ones = np.ones(n_channels, np.float32)
    mono = block[:, 0].copy() if n_channels == 1 else (block @ ones) / n_channels
    bad = np.flatnonzero(~np.isfinite(mono))
    if len(bad):
        name = "NaN" if np.isnan(block[bad[0]]).any() else "Inf"
        raise AudioError(f"{path}: {name} at sample {start + bad[0]}")
    return mono


def _append(buffer: np.ndarray, n_used: int, block: np.ndarray) -> tuple[np.ndarray, int]:
    """Put a block behind the first `n_used` samples, in a buffer twice as long where needed."""
    end = n_used + len(block)
    if end > len(buffer):
        longer = np.empty(max(end, 2 * len(buffer)), np.float32)
        longer[:n_used] = buffer[:n_used]
        buffer = longer
    buffer[n_used:end] = block
    return buffer, end


def resampled_length(n_samples: int, from_rate: int, to_rate: int) -> int:
    """Samples after resampling: n * to / from rounded half up, and at least one."""
    return max(1, (2 * n_samples * to_rate + from_rate) // (2 * from_rate))


def resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Audio (batch, samples) at `from_rate` Hz -> (batch, `resampled_length(...)`) at `to_rate` Hz.

    Clips do not influence each other. Device and dtype stay (half precision is computed in
    float32); the work is done by soxr on the CPU, without gradient.
    """
    check_audio(audio)
    for rate in (from_rate, to_rate):
        if rate != int(rate) or rate < 1:
            raise AudioError(f"a sample rate is a positive whole number of Hz, got {rate}")
    if from_rate == to_rate:
        return audio
    import soxr

    dtype = audio.dtype if audio.dtype == torch.float64 else torch.float32
    samples = audio.detach().to("cpu", dtype).numpy()
    length = resampled_length(samples.shape[1], from_rate, to_rate)
    out = np.zeros((len(samples), length), samples.dtype)
    for row, clip in zip(out, samples, strict=True):
        resampled = soxr.resample(clip, from_rate, to_rate, "HQ")[:length]
        row[: len(resampled)] = resampled
    return torch.from_numpy(out).to(audio.device, audio.dtype)


def check_audio(audio: Tensor) -> None:
    """Refuse what is not audio (batch, samples): floating point, not empty, finite.

    Silence, DC and samples beyond [-1, 1] are audio. Raises `AudioError`; for NaN and Inf it names
    the first bad sample, in the order of clips and then of time.
    """
    if not isinstance(audio, Tensor):
        raise AudioError(
            f"audio is a torch.Tensor (batch, samples), got {type(audio).__name__}; "
            "torch.from_numpy makes one from an array, read_audio from a file"
        )
    if not audio.is_floating_point():
        raise AudioError(
            f"audio is floating point in [-1, 1], got {audio.dtype}; divide 16-bit samples by 32768"
        )
    if audio.ndim != 2:
        raise AudioError(
            f"audio has the axes (batch, samples), got {audio.ndim} axes {tuple(audio.shape)}"
        )
    if audio.numel() == 0:
        raise AudioError(f"empty audio: (batch, samples) is {tuple(audio.shape)}")
    if torch.isfinite(audio.sum()):  # a sum is finite only if each term is: one pass, no mask
        return
    for clip, samples in enumerate(audio):
        bad = (~torch.isfinite(samples)).nonzero()
        if len(bad):
            value = samples[bad[0, 0]]
            name = "NaN" if torch.isnan(value) else "Inf"
            raise AudioError(f"{name} in the audio at batch index {clip}, sample {int(bad[0, 0])}")


def audio_files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The audio files that `paths` name: files as they are, folders searched recursively.

    A path that is no folder is taken whatever its name (and whether it exists: `read_audio` says
    what is wrong with it). In folders, files with one of `EXTENSIONS` are taken, sorted by path;
    hidden files and folders are skipped, links to folders not followed. A file that is named twice
    is taken once. Raises `AudioError` for a folder without audio files, and `OSError` for one that
    cannot be read, also further down: its files would be missed.
    """
    found: dict[Path, Path] = {}
    for given in paths:
        path = Path(given)
        files = _files_below(path) if path.is_dir() else [path]
        if not files:
            raise AudioError(f"{path}: no audio files in this folder ({_named(EXTENSIONS)})")
        for file in files:
            found.setdefault(Path(os.path.realpath(file)), file)
    return list(found.values())


def _files_below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise error

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
        ]
    return sorted(files)


def _named(extensions: Iterable[str]) -> str:
    return ", ".join(sorted(extensions))
