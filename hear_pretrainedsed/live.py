"""The command `hear-pretrainedsed detect -`: raw PCM on standard input -> events, JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Annotated, BinaryIO

import numpy as np
import typer

from hear_pretrainedsed import events as ev
from hear_pretrainedsed.audio import AudioError
from hear_pretrainedsed.cli_options import (
    CheckpointName,
    Device,
    Labels,
    MedianS,
    MinDurationS,
    Option,
    Precision,
    Threshold,
    Vocabulary,
    Weights,
    check_decoding,
    check_fetched,
    check_head,
    load,
    median_frames_of,
    say,
)
from hear_pretrainedsed.registry import get_checkpoint
from hear_pretrainedsed.streaming import StreamingDetector, window_rule

NAME = "detect -"
_READ_BYTES = 1 << 16  # at most at a time; less is taken as it arrives


class Encoding(StrEnum):
    """How a sample is written: the names are ffmpeg's."""

    s16le = "s16le"
    f32le = "f32le"


Rate = Annotated[int, Option(min=1, help="Sample rate in Hz.")]
Channels = Annotated[int, Option(min=1, help="Channels, interleaved; they are averaged.")]
Format = Annotated[Encoding, Option("--format", help="Of the samples, as ffmpeg names it.")]
HopS = Annotated[float, Option(help="Seconds between looks at the last 10 s.")]
ContextS = Annotated[
    float | None, Option(help="Sound heard after a frame; less is faster, and less accurate.")
]


class _Interrupted(KeyboardInterrupt):
    """Ctrl-C while nothing was being computed."""


def command_line(arguments: Sequence[str] | None) -> list[str]:
    """Arguments (None: the process's) with `detect ... -` made the one command that it is."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["detect"] and "-" in words:
        words.remove("-")
        words[0] = NAME
    return words


def detect_live(
    checkpoint: CheckpointName,
    rate: Rate = 16_000,
    channels: Channels = 1,
    encoding: Format = Encoding.s16le,
    hop_s: HopS = 5.0,
    context_s: ContextS = None,
    threshold: Threshold = None,
    median_s: MedianS = None,
    min_duration_s: MinDurationS = None,
    labels: Labels = None,
    vocabulary: Vocabulary = None,
    weights: Weights = None,
    precision: Precision = "fp32",
    device: Device = "auto",
) -> None:
    """Print the events in raw audio from standard input, a JSON line each, as they close.

    An event is printed at most hop + context after its end, by default 5 + 2.5 s. A context not
    given is (10 - hop) / 2 s.
    """
    known = get_checkpoint(checkpoint)
    if weights is None:
        check_fetched(known, labels)
    frames = median_frames_of(median_s)
    decoding = dict(threshold=threshold, median_frames=frames, min_duration_s=min_duration_s)
    check_decoding(**decoding)
    window_rule(hop_s, context_s)  # refuse wrong values before a file is fetched
    if sys.stdin is None or sys.stdin.isatty():
        what = "closed" if sys.stdin is None else "a terminal"
        raise ValueError(f"detect - takes raw audio from a pipe, and standard input is {what}")
    model = load(checkpoint, weights, device, None, vocabulary=vocabulary, precision=precision)
    check_head(model, checkpoint, labels)
    detector = StreamingDetector(model, hop_s, context_s=context_s, sample_rate=rate, **decoding)
    try:
        chunks = pcm_chunks(sys.stdin.buffer, channels, encoding)
        listen(chunks, detector, lambda events: _print(events, labels))
    except AudioError as error:
        say(f"standard input: {error}")
        raise typer.Exit(1) from None


def pcm_chunks(source: BinaryIO, n_channels: int, encoding: Encoding) -> Iterator[np.ndarray]:
    """Raw interleaved PCM -> mono chunks (samples,) float32 as they arrive, channels averaged.

    Raises `AudioError` when the stream ends within a sample, after all that came before.
    """
    dtype = np.dtype("<i2" if encoding == Encoding.s16le else "<f4")
    full_scale = 32768 if encoding == Encoding.s16le else 1
    n_bytes = dtype.itemsize * n_channels
    n_samples, rest = 0, b""
    while data := _read(source):
        data = rest + data
        n_whole = len(data) // n_bytes
        rest = data[n_whole * n_bytes :]
        n_samples += n_whole
        samples = np.frombuffer(data, dtype, n_whole * n_channels).reshape(-1, n_channels)
        with np.errstate(invalid="ignore", over="ignore"):  # the detector names NaN and Inf
            mono = samples.mean(axis=1, dtype=np.float32)
        yield mono / np.float32(full_scale)
    if rest:
        of = f"{n_channels} channel{'s' * (n_channels > 1)} of {encoding}"
        raise AudioError(
            f"it ends within a sample: after {n_samples} whole ones there are {len(rest)} bytes, "
            f"and {of} take {n_bytes}"
        )


def _read(source: BinaryIO) -> bytes:
    try:
        return source.read1(_READ_BYTES)
    except KeyboardInterrupt:
        raise _Interrupted from None


def listen(
    chunks: Iterable[np.ndarray],
    detector: StreamingDetector,
    tell: Callable[[list[ev.Event]], None],
) -> None:
    """Tell events as they close, to the end of a stream; what breaks it off closes the last ones.

    Ctrl-C is how a live stream usually ends: while one waits for audio it ends as with its last
    sample. In the middle of a computation it ends at once.
    """
    try:
        for chunk in chunks:
            tell(detector.feed(chunk).events)
    except (AudioError, _Interrupted):
        tell(detector.close().events)
        raise
    tell(detector.close().events)


def _print(events: list[ev.Event], labels: list[str] | None) -> None:
    """One JSON object a line, at once."""
    for event in events:
        if labels is None or event.label in labels:
            onset_s, offset_s, score = (round(x, 6) for x in (event[0], event[1], event.score))
            row = ev.Event(onset_s, offset_s, event.label, score)._asdict()
            sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()
