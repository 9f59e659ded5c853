"""Protocol `hear` as a whole against stock heareval's: the same trainings end in the same choices.

Both begin with the same weights and drop nothing out, so that real training, validation, early
stopping, the choice of post-processing and of a grid point, the rotation of folds and the test
scores have to agree.
"""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.hear_protocol import Given, RandomFrames
from benchmarks.stock import write_stock_folder
from downstream import mlp
from downstream.protocols import hear
from downstream.protocols.base import Settings
from downstream.scoring import score_task
from downstream.tasks import open_task
from tests.downstream.task_folders import hear_task

pytestmark = [pytest.mark.hear, pytest.mark.slow]
DIM, N_POINTS = 8, 4
METRICS = ["event_onset_200ms_fms", "segment_1s_er"]
GRID = {
    "hidden_layers": [0, 1],
    "hidden_dim": [16],
    "dropout": [0.0],
    "lr": [0.1, 0.02],
    "patience": [2],
    "max_epochs": [24],
    "check_val_every_n_epoch": [2],
    "batch_size": [64],
    "initialization": ["xavier_uniform_"],
}
ONE = {"median_filter_ms": [120], "min_duration": [90]}
EQUAL = {"median_filter_ms": [120], "min_duration": [90, 100]}  # lengths are multiples of 40 ms
CASES = {
    "by a score that grows": {"evaluation": METRICS},
    "by a score that falls": {"evaluation": METRICS[::-1]},
    "by loss": {"evaluation": METRICS, "use_scoring_for_early_stopping": False},
}


def write_folds(folder: Path, metadata: dict) -> Path:
    """Three folds of six clips of a second, with up to two events of each class."""
    rng = np.random.default_rng(3)
    splits: dict[str, dict] = {}
    for fold in range(3):
        name = f"fold{fold:02d}"
        splits[name] = {}
        for i in range(6):
            onsets = rng.integers(0, 10, 3) * 60
            rows = [
                (int(t), int(t + rng.integers(120, 320)), "ab"[k % 2]) for k, t in enumerate(onsets)
            ]
            splits[name][f"{name}_{i}.wav"] = rows
    by_score = metadata.get("use_scoring_for_early_stopping", True)
    params = {"event_postprocessing_grid": EQUAL if by_score else ONE}
    return hear_task(folder, splits, evaluation_params=params, **metadata)


def run_stock(monkeypatch: pytest.MonkeyPatch, folder: Path, new_head: object) -> dict:
    """heareval's own run on a folder, its heads with our initial weights."""
    stock = pytest.importorskip("heareval.predictions.task_predictions")

    class Begun(stock.FullyConnectedPrediction):
        def __init__(self, dim: int, n_classes: int, kind: str, conf: dict) -> None:
            super().__init__(dim, n_classes, kind, conf)
            names = ("hidden_layers", "hidden_dim", "dropout", "batch_size")
            shape = mlp.Shape(*(conf[name] for name in names))
            head = new_head((dim, n_classes), shape, conf["lr"], conf["initialization"].__name__)
            linears = [one for one in self.modules() if isinstance(one, torch.nn.Linear)]
            with torch.no_grad():
                for linear, weight, bias in zip(linears, head.weights, head.biases, strict=True):
                    linear.weight.copy_(weight)
                    linear.bias.copy_(bias)

    monkeypatch.setattr(stock, "FullyConnectedPrediction", Begun)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.chdir(folder.parent)
    random.seed(hear.GRID_SEED)
    path = Path(folder.name)
    stock.task_predictions(
        path, DIM, N_POINTS, None, True, False, "faster", logging.getLogger("stock")
    )
    return json.loads((path / "test.predicted-scores.json").read_text())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_the_whole_protocol_is_heareval_s(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    plain = mlp.new_head

    def new_head(sizes: tuple, shape: mlp.Shape, lr: float, init: str, *_: object) -> mlp.Head:
        return plain(sizes, shape, lr, init, torch.Generator().manual_seed(1))

    task = open_task(write_folds(tmp_path / "small", CASES[case]))
    grid = {**GRID, "initialization": [torch.nn.init.xavier_uniform_]}
    frames = RandomFrames(task, DIM, noise=2.5)
    folder = write_stock_folder(task, frames, tmp_path / "stock")
    # functions cannot stand in JSON: heareval's grid is replaced by this one, ours by the task's
    stock = pytest.importorskip("heareval.predictions.task_predictions")
    monkeypatch.setattr(stock, "FASTER_PARAM_GRID", stock.FASTER_PARAM_GRID | grid)
    monkeypatch.setitem(hear.GRIDS, "faster", GRID)
    theirs = run_stock(monkeypatch, folder, new_head)
    monkeypatch.setattr(mlp, "new_head", new_head)
    found = hear.probe(task, Given(frames), Settings(grid="faster", grid_points=N_POINTS), 0)

    chosen = found.chosen
    assert {one["lr"] for one in chosen} == {theirs["hparams"]["lr"]}
    assert {one["hidden_layers"] for one in chosen} == {theirs["hparams"]["hidden_layers"]}
    first = dict(map(tuple, theirs["postprocessing"]))
    assert chosen[0]["postprocessing"] == first
    for rotation, ours in zip(task.rotations, chosen, strict=True):
        fold = theirs["|".join(rotation.test)]
        assert ours["epoch"] == fold["epoch"]
        assert ours["valid_score"] == pytest.approx(fold["validation_score"], abs=1e-4)
    scored = score_task(task, found)
    for metric in METRICS:
        mean = theirs["aggregated_scores"][f"test_{metric}_mean"]
        assert scored[metric].value == pytest.approx(mean, abs=1e-6), metric
