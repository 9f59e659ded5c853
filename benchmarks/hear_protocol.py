"""Protocol `hear` against stock heareval's prediction runner: same frames, grid points, epochs.

    python -m benchmarks.hear_protocol [--tasks office piano] [--epochs 12] [--points 1] [--bf16]

Stock runs as is advised for it, with one thread (two are slower); ours with all cores. Both train
every grid point for `--epochs` epochs, so that they do the same work. Times are heareval's own
count, without imports; ours count from opening a folder of frames on disk to scores. Both find
their files in the page cache. "arithmetic" is the MLP's: for stock the time of the plain module's
steps and forward passes, as many as it makes; the rest is what remains. Frames are random numbers
with a trace of the labels: the time is the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import machine, peak_gflops
from benchmarks.stock import run_stock, write_stock_folder
from downstream import mlp
from downstream.embeddings import GRID, Frames, FrameSpec, write_frames
from downstream.protocols import hear
from downstream.protocols.base import Settings
from downstream.scoring import score_task
from downstream.targets import frame_targets
from downstream.tasks import open_task
from downstream.tasks.task import Task

TASKS = {"office": "office_like-v1-small", "piano": "piano_like-v1-small"}
TASKS_DIR = Path(__file__).resolve().parents[2] / "shared" / "data" / "tasks"


class RandomFrames(Frames):
    """Normal numbers for every clip, with a little of its labels in them."""

    def __init__(self, task: Task, dim: int, noise: float = 2.0) -> None:
        rng = np.random.default_rng(0)
        codes = rng.normal(0, 1, (len(task.labels), dim)).astype(np.float32)
        self.dim = dim
        self._frames = {}
        for clip in task.clips(task.splits):
            n = GRID.n_frames(round(clip.duration_s * GRID.sample_rate))
            rows = rng.normal(0, noise, (n, dim)).astype(np.float32)
            self._frames[clip.file] = rows + frame_targets(clip, task.labels, n) @ codes

    def clip(self, file: str) -> np.ndarray:
        """Frames (frames, dim) of one clip."""
        return self._frames[file]

    def n_frames(self, file: str) -> int:
        """How many frames a clip has."""
        return len(self._frames[file])


class Given:
    """A source whose frames are there already."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames

    def frames(self, spec: FrameSpec) -> Frames:
        """The same ones whatever is asked for."""
        return self._frames


class OnDisk:
    """A source whose frames lie in a folder, which is opened when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def frames(self, spec: FrameSpec) -> Frames:
        """The same ones whatever is asked for, memory-mapped."""
        return Frames(self._folder)


class Stopwatch:
    """Seconds spent in some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable) -> Callable:
        """The function, its time counted."""

        def call(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return call


@contextmanager
def arithmetic_counted(watch: Stopwatch):  # noqa: ANN201
    """Count the time of our training steps and forward passes."""
    with (
        mock.patch.object(mlp, "epoch", watch.timed(mlp.epoch)),
        mock.patch.object(mlp, "logits", watch.timed(mlp.logits)),
    ):
        yield


def ours(task: Task, folder: Path, points: int, precision: str) -> tuple[float, float]:
    """Seconds of the whole protocol from a folder of frames on, and of its arithmetic."""
    watch = Stopwatch()
    settings = Settings(precision=precision, grid_points=points)
    with arithmetic_counted(watch):
        start = time.perf_counter()
        found = hear.probe(task, OnDisk(folder), settings, 0)
        score_task(task, found)
        return time.perf_counter() - start, watch.seconds


def stock_arithmetic(task: Task, dim: int, epochs: int, every: int, points: int) -> float:
    """Seconds of the plain module's work with one thread, from a few of its batches."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    total = 0.0
    confs = hear.drawn_points(task.hear, Settings(grid_points=points))
    jobs = [(conf, task.rotations[0]) for conf in confs]
    jobs += [(confs[0], rotation) for rotation in task.rotations[1:]]
    for conf, rotation in jobs:
        step, forward = _plain_seconds(dim, len(task.labels), conf)
        n = {part: _n_frames(task, getattr(rotation, part)) for part in ("train", "valid", "test")}
        total += epochs * n["train"] * step + (epochs // every) * n["valid"] * 2 * forward
        total += n["test"] * 2 * forward
    torch.set_num_threads(threads)
    return total


def _n_frames(task: Task, splits: tuple[str, ...]) -> int:
    seconds = sum(clip.duration_s for clip in task.clips(splits))
    return round(seconds / GRID.hop_s)


def _plain_seconds(dim: int, n_classes: int, conf: dict) -> tuple[float, float]:
    """Seconds a frame of a training step and of a forward pass of plain torch modules."""
    layers, width = [], dim
    for _ in range(conf["hidden_layers"]):
        layers += [torch.nn.Linear(width, conf["hidden_dim"])]
        width = conf["hidden_dim"]
        layers += [torch.nn.BatchNorm1d(width), torch.nn.Dropout(0.1), torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(width, n_classes))
    optimizer, rows = torch.optim.Adam(net.parameters()), conf["batch_size"]
    x, y = torch.randn(rows, dim), (torch.rand(rows, n_classes) < 0.1).float()

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(net(x), y).backward()
        optimizer.step()

    def best(function: Callable[[], object]) -> float:
        times = []
        for _ in range(6):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times[1:]) / rows

    seconds = best(step)
    net.eval()
    with torch.no_grad():
        return seconds, best(lambda: net(x))


def flops(task: Task, dim: int, epochs: int, every: int, points: int) -> float:
    """Multiply-adds of all products, twice."""
    total = 0.0
    confs = hear.drawn_points(task.hear, Settings(grid_points=points))
    jobs = [(conf, task.rotations[0]) for conf in confs]
    jobs += [(confs[0], rotation) for rotation in task.rotations[1:]]
    for conf, rotation in jobs:
        h = conf["hidden_dim"]
        first, later = dim * h, (conf["hidden_layers"] - 1) * h * h + h * len(task.labels)
        n = {part: _n_frames(task, getattr(rotation, part)) for part in ("train", "valid", "test")}
        total += epochs * n["train"] * (2 * first + 3 * later)
        total += (epochs // every * n["valid"] + n["test"]) * (first + later)
    return 2 * total


def row(name: str, dim: int, epochs: int, points: int, bf16: bool, folder: Path) -> list[str]:
    """One task: stock, ours, and their ratios."""
    task = open_task(TASKS_DIR / TASKS[name])
    every = 1 if name == "piano" else min(3, epochs)
    grid = {"max_epochs": [epochs], "patience": [10_000], "check_val_every_n_epoch": [every]}
    params = {**task.hear.get("evaluation_params", {})}
    params["task_specific_param_grid"] = params.get("task_specific_param_grid", {}) | grid
    task.hear["evaluation_params"] = params
    frames = RandomFrames(task, dim)
    stock_folder = write_stock_folder(task, frames, folder / name, grid)
    frames_folder = folder / f"{name}-frames"
    files = [clip.file for clip in task.clips(task.splits)]
    write_frames(frames_folder, {file: frames.clip(file) for file in files})
    del frames
    stock_s = run_stock(stock_folder, points)["seconds"]
    stock_math_s = stock_arithmetic(task, dim, epochs, every, points)
    cells = [name, f"{stock_s:.1f}", f"{stock_math_s:.1f}"]
    for precision in ("fp32", "bf16") if bf16 else ("fp32",):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        before = peak_gflops(dtype)
        all_s, math_s = ours(task, frames_folder, points, precision)
        peak = max(before, peak_gflops(dtype))
        speed = flops(task, dim, epochs, every, points) / math_s / 1e9
        rest = (stock_s - stock_math_s) / (all_s - math_s)
        cells += [f"{all_s:.1f}", f"{math_s:.1f}", f"{stock_s / all_s:.1f}x", f"{rest:.0f}x"]
        cells += [f"{100 * speed / peak:.0f} %"]
    return cells


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--points", type=int, default=1)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--bf16", action="store_true", help="also with the bf16 option")
    given = parser.parse_args()
    table = Table(title=f"protocol hear, {given.epochs} epochs, {given.points} grid points")
    names = ["task", "stock s", "arithmetic s"]
    for precision in ("fp32", "bf16") if given.bf16 else ("fp32",):
        names += [f"{precision} s", "arithmetic s", "whole", "the rest", "of peak"]
    for name in names:
        table.add_column(name, justify="right")
    console = Console(width=160)
    with tempfile.TemporaryDirectory() as folder:
        for name in given.tasks:
            cells = row(name, given.dim, given.epochs, given.points, given.bf16, Path(folder))
            console.print("  ".join(cells), style="dim")
            table.add_row(*cells)
    console.print(machine())
    console.print(table)


if __name__ == "__main__":
    main()
