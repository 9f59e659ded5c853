"""Speed of every backbone as ratios in one run: clips/s, share of the peak, bf16, memory.

    python -m benchmarks.embed [--backbones beats atst_f ...] [--rounds 5] [--threads 2]

A clip is 10 s. Times are of `model.frames(audio)`, front end and all, at stand-in weights (a
trained file has the same cost). Each backbone runs in a process of its own, so that its peak memory
is its own. The share of the peak is (multiply-accumulates x 2, attention included) / time / (the
2048^3 product measured beside it). "plain" is the same network as a plain module: no folding, no
channels-last. The last table is the front end alone against torchaudio, clip by clip.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import interleaved, machine, peak_gflops, spread
from benchmarks.memory import forget_peak, peak_gb
from hear_pretrainedsed.complexity import count
from hear_pretrainedsed.model import SEDModel, build_model
from hear_pretrainedsed.options import Options
from hear_pretrainedsed.registry import BACKBONES
from hear_pretrainedsed.rule_weights import fill


def clips(n: int) -> Tensor:
    """Noise bursts (n, 160000) of changing level, the same on every call."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, 160_000, generator=generator)
    level = torch.rand(n, 50, generator=generator).repeat_interleave(3200, dim=1)
    return 0.2 * noise * level**2


def model_of(backbone: str, precision: str) -> SEDModel:
    """A backbone with rule-made weights; PSLA has no linear head, so heads are left out."""
    with torch.device("meta"):
        model = build_model(backbone, options=Options(precision=precision))
    return fill(model).requires_grad_(False)


def gflops_per_clip(backbone: str) -> float:
    """Floating-point operations of one clip's backbone, in 1e9."""
    with torch.device("meta"):
        model = build_model(backbone)
    cost = count(model)
    return 2 * (cost.backbone + cost.attention) / 1e9


def equal_decisions(fp32: SEDModel, bf16: SEDModel, audio: Tensor) -> float:
    """Share of frames x classes decided alike at score 0.5 by 447 random linear classes."""
    classes = torch.randn(fp32.frame_dim, 447, generator=torch.Generator().manual_seed(1))
    active = [model.frames(audio) @ classes > 0 for model in (fp32, bf16)]
    return (active[0] == active[1]).float().mean().item()


def measure(backbone: str, rounds: int) -> dict[str, object]:
    """All figures of one backbone; lists are one value a round."""
    forget_peak()
    before = peak_gb()
    fp32, bf16 = (model_of(backbone, precision) for precision in ("fp32", "bf16"))
    audio = clips(8)
    peaks: list[float] = []
    half_peaks: list[float] = []
    jobs: dict[str, Callable[[], object]] = {
        "peak": lambda: peaks.append(peak_gflops(torch.float32)),
        "bf16 peak": lambda: half_peaks.append(peak_gflops(torch.bfloat16)),
        "fp32 1": lambda: fp32.frames(audio[:1]),
        "fp32 8": lambda: fp32.frames(audio),
    }
    fp32.frames(audio)
    memory_gb = peak_gb() - before
    jobs |= {
        "plain 8": lambda: fp32(audio),
        "bf16 1": lambda: bf16.frames(audio[:1]),
        "bf16 8": lambda: bf16.frames(audio),
    }
    with torch.no_grad():
        times = interleaved(jobs, rounds)
    work, peak = gflops_per_clip(backbone), statistics.median(peaks)
    return {
        "backbone": backbone,
        "clips_per_s": {
            name: [int(name[-1]) / t for t in times[name]] for name in times if "peak" not in name
        },
        "share": {b: [b * work / t / peak for t in times[f"fp32 {b}"]] for b in (1, 8)},
        "bf16_gain": ratio(times["fp32 8"], times["bf16 8"]),
        "gain_on_plain": ratio(times["plain 8"], times["fp32 8"]),
        "equal": equal_decisions(fp32, bf16, audio[:2]),
        "peak": peak,
        "bf16_peak": statistics.median(half_peaks),
        "memory_gb": memory_gb,
    }


def ratio(slow: list[float], fast: list[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def measure_frontends(rounds: int) -> dict[str, list[float]]:
    """Gain of BEATs' and ASiT's front ends over torchaudio's fbank clip by clip, at batch 8."""
    from torchaudio.compliance import kaldi

    audio, gains = clips(8), {}
    common = {"num_mel_bins": 128, "sample_frequency": 16_000}
    for backbone, options in (("beats", {}), ("asit", {"window_type": "hanning"})):
        frontend = BACKBONES[backbone].build_frontend()
        jobs = {
            "ours": lambda f=frontend: f(audio),
            "torchaudio": lambda o=options: [kaldi.fbank(x[None], **common, **o) for x in audio],
        }
        times = interleaved(jobs, 3 * rounds)
        gains[backbone] = ratio(times["torchaudio"], times["ours"])
    return gains


def show(rows: list[dict], gains: dict[str, list[float]], console: Console) -> None:
    """The two tables."""
    columns = "backbone|clips/s fp32, batch 1|batch 8|share of peak, batch 1|batch 8|fp32 / plain"
    columns += "|bf16 clips/s, batch 8|bf16 / fp32|decisions equal|peak memory GB"
    table = Table(*columns.split("|"), title="median (range) of interleaved rounds")
    for row in rows:
        rate, share = row["clips_per_s"], row["share"]
        cells = [rate["fp32 1"], rate["fp32 8"], share["1"], share["8"], row["gain_on_plain"]]
        cells += [rate["bf16 8"], row["bf16_gain"]]
        texts = [spread(values) for values in cells]
        table.add_row(
            row["backbone"], *texts, f"{100 * row['equal']:.2f} %", f"{row['memory_gb']:.2f}"
        )
    console.print(table)
    peaks = [row["peak"] for row in rows], [row["bf16_peak"] for row in rows]
    console.print(
        f"{machine()}; peak {spread(peaks[0], 0)} fp32, {spread(peaks[1], 0)} bf16 GFLOP/s"
    )
    for backbone, values in gains.items():
        console.print(f"front end of {backbone}, 8 clips: {spread(values)} x torchaudio's fbank")


def main() -> None:
    """Measure each backbone in its own process, print, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=sorted(BACKBONES), choices=BACKBONES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the child process
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only:
        sys.stdout.write(json.dumps(measure(arguments.only, arguments.rounds)))
        return
    rows = []
    console = Console(width=180)
    for backbone in arguments.backbones:
        command = [sys.executable, "-m", "benchmarks.embed", "--only", backbone]
        command += ["--rounds", str(arguments.rounds), "--threads", str(arguments.threads)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{backbone}: {done.stderr.strip().splitlines()[-1]}")
        rows.append(json.loads(done.stdout))
        console.print(f"{backbone} done", style="dim")
    show(rows, measure_frontends(arguments.rounds), console)


if __name__ == "__main__":
    main()
