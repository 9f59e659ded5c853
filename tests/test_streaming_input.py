"""What the live detector takes, what it refuses, and how much it holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from hear_pretrainedsed.audio import AudioError
from hear_pretrainedsed.heads import LinearHead, NoHeadError
from hear_pretrainedsed.streaming import StreamingDetector, Update
from tests.test_streaming import GRID, noise, pieces, ramp, stream


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "tensor", "bfloat16", "strided"])
def test_kinds_of_chunks(kind: str) -> None:
    audio = np.repeat(noise(300).astype(np.float16), 640)
    made = {
        "tensor": lambda x: torch.from_numpy(x).float().requires_grad_(),
        "bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
        "strided": lambda x: np.stack([x, x], axis=1).astype(np.float32)[:, 1],
    }.get(kind, lambda x: x.astype(kind))
    found, _ = stream(StreamingDetector(ramp()), map(made, pieces(audio, 0, 20_000)))
    np.testing.assert_allclose(found[:, 0], audio[::640].astype(np.float32), atol=4e-3)


def test_the_callers_array_is_neither_kept_nor_changed() -> None:
    detector, block = StreamingDetector(ramp()), np.empty(1600, np.float32)
    audio = noise(16_000 * 12)
    updates = []
    for part in audio.reshape(-1, 1600):
        block[:] = part
        updates.append(detector.feed(block))
        assert np.array_equal(block, part)
        block[:] = 1e9
    updates.append(detector.close())
    found = np.concatenate([update.scores for update in updates])
    np.testing.assert_allclose(found[:, 0], audio.reshape(-1, 640).mean(1), atol=1e-6)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.array([0, np.nan], np.float32), "NaN at sample 1001 of the stream"),
        (torch.tensor([0, 0, float("inf")]), "Inf at sample 1002 of the stream"),
        (np.array([1e300]), "Inf at sample 1000 of the stream"),
        (np.zeros(4, np.int16), "floating point in .-1, 1., got int16; divide 16-bit samples by"),
        (torch.zeros(4, dtype=torch.int32), "got int32"),
        (np.zeros((4, 2), np.float32), r"the axis \(samples,\), got \(4, 2\); average channels"),
        (np.float32(0), "a NumPy array or a tensor, got float32"),
        ([0.0, 1.0], "a NumPy array or a tensor, got list"),
    ],
)
def test_a_bad_chunk_is_refused_and_leaves_the_stream_as_it_was(
    chunk: object, message: str
) -> None:
    audio = noise(16_000 * 11)
    detector = StreamingDetector(ramp())
    updates = [detector.feed(audio[:1000])]
    with pytest.raises(AudioError, match=message):
        detector.feed(chunk)
    updates += [detector.feed(audio[1000:]), detector.close()]
    found = np.concatenate([update.scores for update in updates])
    np.testing.assert_allclose(found[:, 0], audio.reshape(-1, 640).mean(1), atol=1e-6)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_after_the_end(rate: int) -> None:
    detector = StreamingDetector(ramp(), sample_rate=rate, threshold=(-2.0, 1000.0))
    detector.feed(noise(rate // 10))
    end = detector.close()
    assert [event[:3] for event in end.events] == [(0.0, 0.08, "mean")]
    assert end.centres_s.tolist() == pytest.approx([0.02, 0.06])
    assert is_empty(detector.close())
    with pytest.raises(ValueError, match="the stream is closed"):
        detector.feed(noise(1600))


def test_a_stream_of_nothing() -> None:
    for rate in (16_000, 44_100):
        detector = StreamingDetector(ramp(), sample_rate=rate)
        assert is_empty(detector.feed(noise(0)))
        assert is_empty(detector.close())


def is_empty(update: Update) -> bool:
    return update.scores.shape == (0, 2) and update.events == [] and update.first_frame >= 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"hop_s": 0.05},
            "hop_s is 0.05; .* multiples of 0.04 from 0.04 to 10; the nearest is 0.0",
        ),
        ({"hop_s": 1.03}, "the nearest is 1.04$"),
        ({"hop_s": 1.0001}, "the nearest is 1$"),
        ({"hop_s": 0}, "the nearest is 0.04$"),
        ({"hop_s": -3.0}, "the nearest is 0.04$"),
        ({"hop_s": 12.0}, "the nearest is 10$"),
        ({"hop_s": float("nan")}, "hop_s is nan"),
        ({"hop_s": float("inf")}, "the nearest is 10$"),
        ({"hop_s": 5.0, "context_s": 6.0}, "context_s is 6.0; .* from 0 to 5; the nearest is 5$"),
        ({"context_s": -1.0}, "the nearest is 0$"),
        ({"sample_rate": 0}, "a sample rate is a positive whole number of Hz, got 0"),
        ({"sample_rate": 44_100.5}, "got 44100.5"),
        ({"threshold": float("nan")}, "threshold is NaN"),
        ({"threshold": (0.5, 0.5, 0.5)}, "one number or 2"),
        ({"median_frames": 0}, "median_frames is a whole number from 1 to 90000, got 0"),
        ({"min_duration_s": -1}, "min_duration_s is a time in seconds"),
    ],
    ids=str,
)
def test_wrong_settings(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamingDetector(ramp(), **given)


def test_models_that_cannot_detect() -> None:
    model = ramp(labels=None)
    with pytest.raises(ValueError, match="names of the model's classes: .* vocabulary"):
        StreamingDetector(model)
    model.head = None
    with pytest.raises(NoHeadError, match="`probe`.*`finetune`"):
        StreamingDetector(model)
    model = ramp()
    model.head = LinearHead(2, 2, strong=False)
    with pytest.raises(NoHeadError, match="no strong head"):
        StreamingDetector(model)


def test_the_users_model_is_left_as_it_is() -> None:
    model = ramp(labels=("a", "b"), sample_rate=8000, windowing="reference")
    options = model.options
    detector = StreamingDetector(model)
    stream(detector, [noise(8000 * 12)])
    assert model.options is options
    assert model.scores(torch.zeros(1, 8000 * 12)).shape == (1, 300, 2)


# ---- memory

HOUR = """
import json
import numpy as np
from hear_pretrainedsed.streaming import StreamingDetector
from benchmarks.memory import peak_gb
from tests.test_streaming import ramp

def sizes(x, depth=0):
    "Bytes of all arrays below an object, and lengths of its lists."
    if isinstance(x, np.ndarray):
        return x.nbytes if x.base is None else x.base.nbytes
    if isinstance(x, (list, tuple)):
        return len(x) + sum(sizes(y, depth + 1) for y in x)
    values = vars(x).values() if hasattr(x, "__dict__") and depth < 3 else ()
    return sum(sizes(y, depth + 1) for y in values)

rng = np.random.default_rng(0)
detector = StreamingDetector(
    ramp(), 5.0, sample_rate=44_100, threshold=(0.004, 200.0), median_frames=7
)
n_fed = n_frames = n_events = 0
facts = []
for minute in range(60):
    largest = 0
    while n_fed < 44_100 * 60 * (minute + 1):
        chunk = rng.uniform(-1, 1, int(rng.integers(1, 30_000))).astype(np.float32)
        update = detector.feed(chunk)
        n_fed += len(chunk)
        n_frames += len(update.scores)
        n_events += len(update.events)
        if n_events % 5 == 0:
            largest = max(largest, sizes(detector))
    facts.append((largest, 2**20 * peak_gb()))
n_frames += len(detector.close().scores)
print(json.dumps({"facts": facts, "n_fed": n_fed, "n_frames": n_frames, "n_events": n_events}))
"""


@pytest.mark.slow
def test_an_hour_in_bounded_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOUR],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    found = json.loads(done.stdout)
    assert found["n_frames"] == GRID.n_frames(-(-found["n_fed"] * 16_000 // 44_100))
    assert found["n_events"] > 5000
    held, peak_kb = np.array(found["facts"]).T
    assert held.max() < 1.6e6  # two windows of samples, one of scores
    assert held[2:].max() <= 1.1 * held[:2].max()
    assert peak_kb[-1] - peak_kb[1] < 8_000  # an hour of samples is 230 MB
