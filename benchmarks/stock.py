"""Our frames as the folder that heareval's prediction runner reads, and runs of that runner."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from downstream.embeddings import GRID, Frames
from downstream.protocols.hear import file_order
from downstream.targets import frame_targets
from downstream.tasks.task import Task

# The stock kit as such, but for the seed of everything after its draw from the grid.
_SEEDED = """
import random, sys
import pytorch_lightning as pl
import heareval.predictions.task_predictions as stock
from heareval.predictions.runner import runner
seed = int(sys.argv.pop(1))
draw = random.shuffle
def shuffle(confs):
    draw(confs)
    pl.seed_everything(seed)
stock.random.shuffle = shuffle
runner()
"""


def write_stock_folder(
    task: Task, frames: Frames, folder: Path, grid: dict[str, list[Any]] | None = None
) -> Path:
    """Frames and labels of a HEAR task as heareval stores them; `grid` overrides its grid."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(task.folder / "labelvocabulary.csv", folder)
    metadata = json.loads(json.dumps(dict(task.hear)))
    if grid is not None:
        params = metadata.setdefault("evaluation_params", {})
        params.setdefault("task_specific_param_grid", {}).update(grid)
    (folder / "task_metadata.json").write_text(json.dumps(metadata))
    for split, clips in file_order(task).items():
        shutil.copy(task.folder / f"{split}.json", folder)
        files = [clip.file for clip in clips]
        rows = frames.join(files).numpy()
        rows.tofile(folder / f"{split}.embeddings.npy")
        (folder / f"{split}.embedding-dimensions.json").write_text(json.dumps(rows.shape))
        y = np.concatenate([frame_targets(c, task.labels, frames.n_frames(c.file)) for c in clips])
        labels = [[task.labels[i] for i in np.flatnonzero(row)] for row in y]
        (folder / f"{split}.target-labels.pkl").write_bytes(pickle.dumps(labels))
        stamps = [
            (f"{split}/{file}", t)
            for file in files
            for t in GRID.timestamps_ms(frames.n_frames(file)).tolist()
        ]
        (folder / f"{split}.filename-timestamps.json").write_text(json.dumps(stamps))
    return folder


def run_stock(folder: Path, grid_points: int, seed: int = 42, threads: int = 1) -> dict[str, Any]:
    """heareval's prediction runner on a folder: its results, and `seconds` of its own count."""
    for name in ("prediction-done.json", "test.predicted-scores.json"):
        (folder / name).unlink(missing_ok=True)
    hidden = {"CUDA_VISIBLE_DEVICES": "", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    command = [sys.executable, "-c", _SEEDED, str(seed), folder.name]
    command += ["--grid-points", str(grid_points)]
    log = folder / "stock.log"
    start = time.monotonic()
    with log.open("w") as file:
        done = subprocess.run(
            command,
            cwd=folder.parent,
            env=os.environ | hidden | {"OMP_NUM_THREADS": str(threads)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise RuntimeError(f"heareval failed: {log.read_text()[-2000:]}")
    results = json.loads((folder / "test.predicted-scores.json").read_text())
    own = json.loads((folder / "prediction-done.json").read_text())["time"]
    return results | {"seconds": own, "process_seconds": time.monotonic() - start}
