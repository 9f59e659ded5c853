"""`detect -`: raw audio in, events out while it comes, and every way a stream can end."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch

import hear_pretrainedsed as hps
from hear_pretrainedsed import cli, live
from hear_pretrainedsed.audio import AudioError
from hear_pretrainedsed.live import Encoding, command_line, listen, pcm_chunks
from hear_pretrainedsed.records import record_sha256
from hear_pretrainedsed.registry import get_checkpoint
from hear_pretrainedsed.streaming import StreamingDetector
from tests.reference import signal as clip
from tests.test_streaming import noise, ramp

NAME = "frame_mn06.strong"
COMMAND = [sys.executable, "-m", "hear_pretrainedsed", "detect", "-", "-c", NAME]


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    """Threads of small work would wait for each other longer than it takes."""
    torch.set_num_threads(1)


@pytest.fixture
def weights(release_file: Callable[[str], Path], own_cache: Path) -> Path:
    """Stand-in weights under their published name in the cache folder."""
    path = own_cache / get_checkpoint(NAME).file
    path.symlink_to(release_file(NAME))
    with warnings.catch_warnings(action="ignore"):  # of the first load
        record_sha256(path)
    return path


class Trickle(io.RawIOBase):
    """A pipe that gives a few bytes at a time, then what `end` says."""

    def __init__(self, data: bytes, step: int, end: BaseException | None = None) -> None:
        self.data, self.step, self.end = data, step, end

    def read1(self, size: int) -> bytes:
        part, self.data = self.data[: self.step], self.data[self.step :]
        if not part and self.end:
            raise self.end
        return part


# ---- bytes -> samples


@pytest.mark.parametrize("step", [1, 3, 4, 7, 10_000])
@pytest.mark.parametrize("n_channels", [1, 2, 3])
@pytest.mark.parametrize("encoding", list(Encoding))
def test_samples_whatever_the_pipe_gives(step: int, n_channels: int, encoding: Encoding) -> None:
    values = noise(100 * n_channels).reshape(100, n_channels)
    values[0] = -1
    written = {"s16le": np.round(values * 32767).astype("<i2"), "f32le": values.astype("<f4")}
    chunks = list(pcm_chunks(Trickle(written[encoding].tobytes(), step), n_channels, encoding))
    assert {chunk.dtype for chunk in chunks} == {np.dtype(np.float32)}
    found = np.concatenate(chunks)
    np.testing.assert_allclose(found, values.mean(1), atol=5e-5 if encoding == "s16le" else 1e-6)


def test_full_scale_is_one() -> None:
    (chunk,) = pcm_chunks(io.BytesIO(b"\x00\x80\xff\x7f"), 1, Encoding.s16le)
    assert chunk.tolist() == [-1, 32767 / 32768]


@pytest.mark.parametrize(
    ("encoding", "n_channels", "n_bytes", "message"),
    [
        ("s16le", 1, 21, "after 10 whole ones there are 1 bytes, and 1 channel of s16le take 2"),
        ("s16le", 2, 22, "after 5 whole ones there are 2 bytes, and 2 channels of s16le take 4"),
        ("f32le", 1, 3, "after 0 whole ones there are 3 bytes, and 1 channel of f32le take 4"),
    ],
)
def test_a_stream_that_ends_within_a_sample(encoding, n_channels, n_bytes, message) -> None:
    chunks = pcm_chunks(Trickle(bytes(n_bytes), 5), n_channels, Encoding(encoding))
    got = []
    with pytest.raises(AudioError, match=message):
        for chunk in chunks:
            got.append(chunk)
    assert sum(map(len, got)) == n_bytes // ({"s16le": 2, "f32le": 4}[encoding] * n_channels)


# ---- how a stream ends


def loud(n: int) -> bytes:
    return np.full(n, 16_384, "<i2").tobytes()


def test_what_was_complete_is_told_before_an_error() -> None:
    told: list[hps.Event] = []
    detector = StreamingDetector(ramp(), threshold=(0.3, 1000.0))
    source = Trickle(loud(16_000) + b"\x00", 777)
    with pytest.raises(AudioError, match="within a sample"):
        listen(pcm_chunks(source, 1, Encoding.s16le), detector, told.extend)
    assert told == [(0.0, 1.0, "mean", 0.5)]


def test_nan_ends_the_stream_with_what_came_before() -> None:
    told: list[hps.Event] = []
    detector = StreamingDetector(ramp(), threshold=(0.3, 1000.0))
    samples = np.full(16_000, 0.5, "<f4")
    samples[12_345] = np.nan
    with pytest.raises(AudioError, match="NaN at sample 12345 of the stream"):
        listen(
            pcm_chunks(Trickle(samples.tobytes(), 2560), 1, Encoding.f32le), detector, told.extend
        )
    assert told == [(0.0, 0.76, "mean", 0.5)]


def test_ctrl_c_while_waiting_closes_the_last_events() -> None:
    told: list[hps.Event] = []
    detector = StreamingDetector(ramp(), threshold=(0.3, 1000.0))
    source = Trickle(loud(16_000), 2000, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        listen(pcm_chunks(source, 1, Encoding.s16le), detector, told.extend)
    assert told == [(0.0, 1.0, "mean", 0.5)]


def test_ctrl_c_in_a_computation_ends_at_once(monkeypatch) -> None:
    detector = StreamingDetector(ramp())
    monkeypatch.setattr(detector, "feed", lambda chunk: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(detector, "close", lambda: pytest.fail("its state is not known"))
    with pytest.raises(KeyboardInterrupt):
        listen(iter([noise(10)]), detector, lambda events: None)


# ---- the command


def test_command_line() -> None:
    assert command_line(["detect", "a.wav"]) == ["detect", "a.wav"]
    assert command_line(["detect", "-", "-c", "x"]) == ["detect -", "-c", "x"]
    assert command_line(["detect", "-c", "x", "-"]) == ["detect -", "-c", "x"]
    assert command_line(["embed", "-"]) == ["embed", "-"]
    assert command_line([]) == []


class Stdin:
    """Standard input as the command sees it."""

    def __init__(self, data: bytes, is_terminal: bool = False) -> None:
        self.buffer, self.isatty = io.BytesIO(data), lambda: is_terminal


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """`detect -` in this process on some bytes: (exit code, stdout, stderr)."""

    def call(data: bytes | Stdin | None, *arguments: object) -> tuple[int, str, str]:
        stdin = Stdin(data) if isinstance(data, bytes) else data
        monkeypatch.setattr(live.sys, "stdin", stdin)
        with pytest.raises(SystemExit) as stop:
            cli.main(["detect", "-", *map(str, arguments)])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


MISTAKES = [
    (["-c", "fmn4.strong"], "did you mean 'fmn04.strong'"),
    (["-c", "fmn04.weak"], "fmn04.weak has no trained head.*`probe`.*`finetune`"),
    (["-c", NAME, "a.wav"], r"extra argument"),
    (["-c", NAME, "--picture"], "No such option: --picture"),
    (["-c", NAME, "--hop-s", "0.5"], "hop_s is 0.5; .* the nearest is 0.48"),
    (["-c", NAME, "--context-s", "7"], "context_s is 7.0; .* the nearest is 5"),
    (["-c", NAME, "--rate", "0"], "--rate"),
    (["-c", NAME, "--channels", "0"], "--channels"),
    (["-c", NAME, "--format", "s24le"], "'s24le' is not one of 's16le', 'f32le'"),
    (["-c", NAME, "--labels", "Speach"], "the nearest is 'Speech'"),
    (["-c", NAME, "--threshold", "nan"], "threshold is NaN"),
    (["-c", NAME, "--median-s", "0"], "--median-s is a time"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda x: str(x)[:50])
def test_a_mistake_is_one_line_and_exit_2(run, monkeypatch, arguments, message) -> None:
    monkeypatch.setattr(live, "load", lambda *_, **__: pytest.fail("loaded, perhaps fetched"))
    code, out, err = run(b"", *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert re.search(message, err)


def test_a_terminal_or_nothing_as_standard_input(run, weights) -> None:
    code, _, err = run(Stdin(b"", is_terminal=True), "-c", NAME)
    assert (code, "standard input is a terminal" in err) == (2, True)
    code, _, err = run(None, "-c", NAME)
    assert (code, "standard input is closed" in err) == (2, True)


def test_help_names_its_own_options(run) -> None:
    code, out, _ = run(b"", "-h")
    assert code == 0
    for option in ("--rate", "--channels", "--format", "--hop-s", "--context-s"):
        assert option in out
    assert "--picture" not in out


def test_nothing_in_nothing_out(run, weights) -> None:
    assert run(b"", "-c", NAME) == (0, "", "")


def test_stereo_at_another_rate(run, weights) -> None:
    """The same events as offline in the mean of both channels; then only one class of them."""
    stereo = np.stack([clip(44_100, 1).numpy(), clip(44_100, 2).numpy()], axis=1)
    options = ["-c", NAME, "--rate", 44_100, "--channels", 2, "--format", "f32le"]
    options += ["--threshold", "0.5", "--median-s", "0.2", "--min-duration-s", "0.08"]
    code, out, err = run(stereo.astype("<f4").tobytes(), *options)
    assert (code, err) == (0, "")
    found = [hps.Event(**json.loads(line)) for line in out.splitlines()]
    model = hps.load_model(weights, sample_rate=44_100)
    decoding = dict(threshold=0.5, median_frames=5, min_duration_s=0.08)
    wanted = hps.detect(torch.from_numpy(stereo.mean(1)), model, **decoding)
    assert wanted
    assert [event[:3] for event in sorted(found)] == [event[:3] for event in sorted(wanted)]
    label = found[0].label
    _, out, _ = run(stereo.astype("<f4").tobytes(), *options, "--labels", label)
    kept = [hps.Event(**json.loads(line)) for line in out.splitlines()]
    assert kept == [event for event in found if event.label == label]


# ---- the process


def started(*arguments: str, stdout: int | IO[bytes] = subprocess.PIPE) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env=env,
        bufsize=0,  # `communicate` would not see what `readline` has read ahead
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_events_come_while_the_stream_is_open(weights) -> None:
    """Half a stream gives its first events; then the rest, cut within a sample."""
    samples = np.round(clip(16_000 * 21).numpy() * 32767).clip(-32768, 32767).astype("<i2")
    model = hps.load_model(weights, windowing="overlap")
    audio = torch.from_numpy(samples.astype(np.float32) / 32768)
    wanted = hps.detect(audio, model, threshold=0.5)
    labels = list(dict.fromkeys(event.label for event in wanted if event.offset_s < 4))[:2]
    wanted = [event for event in wanted if event.label in labels]
    half = 16_000 * 11
    process = started(*(word for label in labels for word in ("--labels", label)))
    process.stdin.write(samples[:half].tobytes())
    process.stdin.flush()
    first = process.stdout.readline()  # waits as long as it takes
    assert process.poll() is None
    assert json.loads(first)["offset_s"] < 4
    out, err = process.communicate(samples[half:].tobytes() + b"\x01")
    assert process.returncode == 1
    assert err.decode() == (
        "hear-pretrainedsed: standard input: it ends within a sample: after 336000 whole ones "
        "there are 1 bytes, and 1 channel of s16le take 2\n"
    )
    assert len(first) + len(out) < 8000, "so many events fill a buffer that nobody flushes"
    found = [hps.Event(**json.loads(line)) for line in [first, *out.splitlines()]]
    assert [event.offset_s for event in found] == sorted(event.offset_s for event in found)
    same = {event[:3] for event in found} & {event[:3] for event in wanted}
    assert len(same) >= max(len(found), len(wanted)) - 1  # a score may be 0.5 but for rounding


@pytest.mark.slow
def test_ctrl_c_on_a_live_stream(weights, tmp_path) -> None:
    """It ends as with its last sample: the events that are open then are printed."""
    printed = tmp_path / "events"
    with open(printed, "wb") as file:
        process = started("--threshold", "0.6", stdout=file)
    samples = clip(16_000 * 11).numpy()
    process.stdin.write(np.round(samples * 30_000).clip(-32768, 32767).astype("<i2").tobytes())
    process.stdin.flush()
    deadline = time.monotonic() + 120
    while printed.stat().st_size == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    wait_until_idle(process.pid)
    n_before = len(printed.read_text().splitlines())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, b"hear-pretrainedsed: interrupted\n")
    found = [json.loads(line) for line in printed.read_text().splitlines()]
    assert len(found) > n_before > 0
    assert max(event["offset_s"] for event in found) == 11.0


def wait_until_idle(pid: int) -> None:
    """Until a process has used no processor time for half a second."""
    used = [-1, -2]
    deadline = time.monotonic() + 120
    while used[-1] != used[-2] and time.monotonic() < deadline:
        time.sleep(0.5)
        used.append(sum(map(int, Path(f"/proc/{pid}/stat").read_text().split()[13:15])))


@pytest.mark.slow
def test_a_reader_that_stops_is_no_error(weights) -> None:
    process = started("--threshold", "0.01")
    process.stdout.close()
    process.stdin.write(noise(16_000).astype("<f4").tobytes())
    process.stdin.close()
    process.stdin = process.stdout = None
    _, err = process.communicate(timeout=120)
    assert (process.returncode in (1, 141), err) == (True, b"")  # 1 is typer's
