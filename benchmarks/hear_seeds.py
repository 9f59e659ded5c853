"""Protocol `hear` over seeds against stock heareval over seeds, on the same frames.

    python -m benchmarks.hear_seeds [--checkpoint NAME] [--tasks office piano] [--seeds 10]
        [--precision bf16]

Both train one grid point (one hidden layer, lr 1e-3, the width and number of epochs given here);
heareval with another seed each time, as it would be with another build of torch. The frames are
those of a checkpoint in the cache folder, or else random ones with a trace of the labels. Printed:
mean, standard deviation and range of the test scores of both, the 95 % interval of heareval's mean
(t), and how many of our runs lie where a single further run of heareval would (95 % prediction
interval).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy import stats

from benchmarks.hear_protocol import TASKS, TASKS_DIR, Given, RandomFrames
from benchmarks.stock import run_stock, write_stock_folder
from downstream.embeddings import FrameSource, FrameSpec, find_weights
from downstream.protocols import hear
from downstream.protocols.base import Settings
from downstream.scoring import score_task
from downstream.tasks import open_task
from downstream.tasks.task import Task
from hear_pretrainedsed.options import PRECISIONS
from hear_pretrainedsed.records import cache_folder


def stock_score(results: dict, metric: str) -> float:
    """The test score of a task, or its mean over folds."""
    over = results.get("aggregated_scores")
    return over[f"test_{metric}_mean"] if over else results["test"][f"test_{metric}"]


def compare(
    task: Task, source: Given | FrameSource, grid: dict, seeds: int, precision: str, folder: Path
) -> tuple[list[float], list[float]]:
    """Main scores of heareval and ours, seed by seed."""
    params = {**task.hear.get("evaluation_params", {})}
    params["task_specific_param_grid"] = params.get("task_specific_param_grid", {}) | grid
    task.hear["evaluation_params"] = params
    metric = task.hear["evaluation"][0]
    stock_folder = write_stock_folder(task, source.frames(FrameSpec()), folder / task.name, grid)
    theirs, ours = [], []
    for seed in range(seeds):
        theirs.append(stock_score(run_stock(stock_folder, 1, seed), metric))
        found = hear.probe(task, source, Settings(grid_points=1, precision=precision), seed)
        ours.append(score_task(task, found)[metric].value)
        print(f"{task.name} seed {seed}: stock {theirs[-1]:.4f}, ours {ours[-1]:.4f}", flush=True)
    return theirs, ours


def row(name: str, theirs: list[float], ours: list[float]) -> list[str]:
    """A line of the table."""
    n, mean, std = len(theirs), np.mean(theirs), np.std(theirs, ddof=1)
    t = stats.t.ppf(0.975, n - 1)
    half, single = t * std / np.sqrt(n), t * std * np.sqrt(1 + 1 / n)
    inside = sum(abs(value - mean) <= single for value in ours)
    cells = [name]
    for values in (theirs, ours):
        spread = f"{min(values):.3f}-{max(values):.3f}"
        cells += [f"{np.mean(values):.4f}", f"{np.std(values, ddof=1):.4f}", spread]
    return [*cells, f"{mean - half:.4f}-{mean + half:.4f}", f"{inside} of {len(ours)}"]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="none: random frames with a trace of the labels")
    parser.add_argument("--dim", type=int, default=128, help="of the random frames")
    parser.add_argument("--noise", type=float, default=5.0, help="of the random frames")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of ours")
    given = parser.parse_args()
    torch.set_num_threads(1)
    grid = {"hidden_layers": [1], "hidden_dim": [given.hidden], "lr": [1e-3]}
    grid |= {"max_epochs": [given.epochs], "check_val_every_n_epoch": [3]}
    columns = ["task", "stock", "std", "range", "ours", "std", "range", "stock 95 %", "inside"]
    table = Table(*columns, title=f"{given.seeds} seeds, main score on test")
    with tempfile.TemporaryDirectory() as folder:
        for name in given.tasks:
            task = open_task(TASKS_DIR / TASKS[name])
            source = Given(RandomFrames(task, given.dim, given.noise))
            if given.checkpoint:
                clips, cache = task.clips(task.splits), cache_folder() / "embeddings"
                source = FrameSource(find_weights(given.checkpoint), clips, cache)
            table.add_row(
                *row(name, *compare(task, source, grid, given.seeds, given.precision, Path(folder)))
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
