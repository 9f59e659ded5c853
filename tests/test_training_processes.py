"""A training that is killed ends as one that is not; two processes do what one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def start(folder: Path, n_devices: int, seconds_per_step: float = 0.0) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    words = [sys.executable, "-m", "tests.training_script", folder, n_devices, seconds_per_step]
    keys = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        list(map(str, words)), cwd=ROOT, stderr=subprocess.PIPE, text=True, env=keys
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def kill_after(process: subprocess.Popen, folder: Path, n_lines: int) -> None:
    """SIGKILL once so many steps were told."""
    steps = folder / "steps"
    deadline = time.monotonic() + 120
    while not steps.exists() or len(steps.read_text().splitlines()) < n_lines:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def result(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    weights = torch.load(folder / "weights.pt", weights_only=True)
    return weights, json.loads((folder / "fitted.json").read_text())


def test_killed_twice_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole, 1, 0.001))
    kill_after(start(killed, 1, 0.2), killed, 4)
    told = len((killed / "steps").read_text().splitlines())
    kill_after(start(killed, 1, 0.2), killed, told + 4)
    finish(start(killed, 1, 0.001))
    lines = (killed / "steps").read_text().splitlines()
    assert 11 < len(lines) < 33  # it went on, and did some steps again
    assert set(lines) == set((whole / "steps").read_text().splitlines())  # with the same losses
    (one, ended), (two, ended_too) = result(whole), result(killed)
    assert ended == ended_too
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """Batches of 5 and of 1 pieces, divided as 3 and 2, and as 1 and none; mixed as a whole."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    finish(start(alone, 1))
    finish(start(both, 2))
    (one, ended), (two, ended_too) = result(alone), result(both)
    for name, value in one.items():
        assert (two[name] - value).abs().max() < 1e-5 * (1 + value.abs().max()), name
    assert ended["loss"] == pytest.approx(ended_too["loss"], rel=1e-5)
    for (step, score), (same_step, other) in zip(
        ended["valid_scores"], ended_too["valid_scores"], strict=True
    ):
        assert step == same_step and score == pytest.approx(other, rel=1e-5)
