"""Real-time factor of live detection on one core: seconds of work per second of sound.

    python -m benchmarks.streaming [--backbones fmn04 fmn10 atst_f] [--hops 5 1] [--rounds 5]

The whole of `StreamingDetector.feed`: chunks of 0.1 s at 44.1 kHz (resampled inside), windows, 447
classes, events. Weights are stand-ins (a trained file has the same cost). Below 1 a stream is kept
up with; what is left over is how many streams one core carries. A window's time comes on top of the
stated latency. The rounds of all rows are interleaved, beside the core's matrix-product peak.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import interleaved, machine, peak_gflops, spread
from hear_pretrainedsed.model import SEDModel, build_model
from hear_pretrainedsed.registry import BACKBONES, read_labels
from hear_pretrainedsed.rule_weights import fill
from hear_pretrainedsed.streaming import StreamingDetector

RATE = 44_100
CHUNK_SAMPLES = RATE // 10
ROUND_S = 10
SMALL = ("fmn04", "fmn10", "atst_f")


def model_of(backbone: str) -> SEDModel:
    """A backbone with a linear head of 447 classes, at rule-made weights."""
    with torch.device("meta"):
        labels = read_labels("audioset_strong_train")
        model = build_model(backbone, head="linear", labels=labels)
    return fill(model).requires_grad_(False)


def sound(duration_s: int) -> np.ndarray:
    """Noise bursts of changing level (samples,), the same on every call."""
    rng = np.random.default_rng(0)
    level = np.repeat(rng.random(5 * duration_s), RATE // 5) ** 2
    return (0.2 * level * rng.standard_normal(len(level))).astype(np.float32)


def go_on(detector: StreamingDetector, chunks: np.ndarray) -> None:
    """Take a live stream further by some chunks."""
    for chunk in chunks:
        detector.feed(chunk)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=SMALL, choices=BACKBONES)
    parser.add_argument("--hops", nargs="+", type=float, default=(5.0, 1.0), metavar="S")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    peaks: list[float] = []
    jobs: dict[str, Callable[[], object]] = {
        "peak": lambda: peaks.append(peak_gflops(torch.float32))
    }
    chunks = sound(ROUND_S).reshape(-1, CHUNK_SAMPLES)
    latency_s = {}
    for backbone in arguments.backbones:
        model = model_of(backbone)
        for hop_s in arguments.hops:
            name = f"{backbone} {hop_s:g}"
            detector = StreamingDetector(model, hop_s, sample_rate=RATE)
            jobs[name] = partial(go_on, detector, chunks)
            latency_s[name] = detector.latency_s
    times = interleaved(jobs, arguments.rounds)  # its warm-up takes each past its first window
    columns = "backbone|hop s|real-time factor|streams a core|ms a window|latency s"
    table = Table(*columns.split("|"), title="median (range) of interleaved rounds, one core")
    for name in latency_s:
        backbone, hop = name.split()
        factors = [t / ROUND_S for t in times[name]]
        streams = spread([1 / x for x in factors], 0)
        ms = spread([1000 * x * float(hop) for x in factors], 0)
        cells = [spread(factors, 4), streams, ms, f"{latency_s[name]:.2f}"]
        table.add_row(backbone, hop, *cells)
    console = Console(width=120)
    console.print(table)
    console.print(f"{machine()}; peak {spread(peaks, 0)} fp32 GFLOP/s")


if __name__ == "__main__":
    main()
