"""Fine-tuning that is killed, or whose loss is not finite: the commands finetune and evaluate."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import hear_pretrainedsed as hps
from downstream import finetune, sweep
from downstream.results import Cell, read, read_arrays
from hear_pretrainedsed import cli
from hear_pretrainedsed.records import record_sha256
from hear_pretrainedsed.registry import get_checkpoint
from hear_pretrainedsed.training.plan import Place
from tests.downstream.tone_task import CHECKPOINT, tone_folder

ROOT = Path(__file__).resolve().parents[2]
EVERY_STEP = property(lambda place: 1)
KILLED = """
import os, signal, sys
import torch
from hear_pretrainedsed import cli
from hear_pretrainedsed.training.learner import Learner
from hear_pretrainedsed.training.plan import Place

def save_and_die(learner, save=Learner.save):
    save(learner)
    if learner.progress.step == 2:
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
Learner.save, Place.save_every = save_and_die, property(lambda place: 1)
cli.main(sys.argv[1:])
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tone_folder(tmp_path_factory.mktemp("tones") / "own")


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str],
    release_file: Callable[[str], Path],
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Run a command in this process, saving every step: (exit code, stdout, stderr)."""
    path = own_cache / get_checkpoint(CHECKPOINT).file
    path.symlink_to(release_file(CHECKPOINT))
    with warnings.catch_warnings(action="ignore"):  # of the first load
        record_sha256(path)
    sweep.weights_of.cache_clear()  # it knows the cache folder of the test before
    monkeypatch.setattr(Place, "save_every", EVERY_STEP)
    torch.set_num_threads(1)

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([*map(str, words)])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def run_until_killed(*words: object) -> None:
    """The command in a process of its own, which SIGKILL ends when two steps are saved."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, ""), done.stderr


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one a step, whose batch fits in one part."""
    rows: list[int] = []
    loss = finetune.bce

    def counted(model: hps.SEDModel, batch: object) -> Tensor:
        rows.append(len(batch))
        return loss(model, batch)

    monkeypatch.setattr(finetune, "bce", counted)
    return rows


def same(one: Path, two: Path) -> None:
    """Two folders hold one cell each, equal in all that is measured and predicted."""
    cells: list[Cell] = [read(folder)[0] for folder in (one, two)]
    assert len(read(one)) == len(read(two)) == 1
    assert cells[0].id == cells[1].id and cells[0].chosen == cells[1].chosen
    assert cells[0].metrics == cells[1].metrics
    (scores, events), (others, other_events) = (read_arrays(f, cells[0].id) for f in (one, two))
    assert events == other_events
    assert all(np.array_equal(scores[file], others[file]) for file in scores)


@pytest.mark.slow
def test_a_killed_finetune_ends_with_the_same_weights(run, data, tmp_path, monkeypatch) -> None:
    words = ["finetune", "-c", CHECKPOINT, "--data", data, "--max-steps", 3, "--device", "cpu"]
    words += ["--set", "lrs=5e-4"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_until_killed(*words, "-o", killed)
    assert not list(killed.glob("*.safetensors")) and read(killed) == []
    rows = count_steps(monkeypatch)
    code, _, err = run(*words, "-o", killed)
    assert (code, err) == (0, "") and len(rows) == 1  # the last of three steps
    assert run(*words, "-o", whole)[0] == 0 and len(rows) == 1 + 3
    same(whole, killed)
    one, two = (hps.load_model(folder / "model.safetensors") for folder in (whole, killed))
    assert one.decoding == two.decoding
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


@pytest.mark.slow
def test_a_killed_evaluate_ends_with_the_same_scores(run, data, tmp_path, monkeypatch) -> None:
    words = ["evaluate", "--checkpoints", CHECKPOINT, "--tasks", data, "--protocols", "best"]
    words += ["--modes", "finetune", "--max-steps", 3, "--device", "cpu"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    frames = "--embeddings", tmp_path / "frames"
    run_until_killed(*words, "-o", killed, *frames)
    assert read(killed) == [] and list((tmp_path / "frames" / "finetune").iterdir())
    rows = count_steps(monkeypatch)
    code, _, err = run(*words, "-o", killed, *frames)
    assert (code, err) == (0, "") and len(rows) == 1 + 3  # of two lrs
    assert not list((tmp_path / "frames" / "finetune").iterdir())
    assert run(*words, "-o", whole, "--embeddings", tmp_path / "other")[0] == 0
    same(whole, killed)


def nan_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is NaN."""
    loss = finetune.bce
    monkeypatch.setattr(finetune, "bce", lambda model, batch: loss(model, batch) * torch.nan)


def test_a_loss_that_is_nan_ends_finetune(run, data, tmp_path, monkeypatch) -> None:
    nan_from(monkeypatch)
    out = tmp_path / "out"
    code, told, err = run("finetune", "-c", CHECKPOINT, "--data", data, "-o", out, "--max-steps", 2)
    assert (code, told) == (2, "") and len(err.splitlines()) == 1
    assert "nan" in err.lower() and any(f"{i}.wav" in err for i in range(3))
    assert not list(out.glob("*.safetensors")) and read(out) == []
    assert not list(out.rglob("last.ckpt"))


@pytest.mark.slow
def test_a_loss_that_is_nan_fails_a_cell_alone(run, data, tmp_path, monkeypatch) -> None:
    nan_from(monkeypatch)
    words = ["evaluate", "--checkpoints", CHECKPOINT, "--tasks", data, "--protocols", "best,paper"]
    words += ["--modes", "finetune,knn", "--max-steps", 2, "-o", tmp_path / "out"]
    code, _, err = run(*words)
    assert code == 1
    lines = err.splitlines()
    assert len(lines) == 2 and all("finetune seed 0: " in line and "nan" in line for line in lines)
    assert sorted((c.protocol, c.mode) for c in read(tmp_path / "out")) == [
        ("best", "knn"),
        ("paper", "knn"),
    ]
