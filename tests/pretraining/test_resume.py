"""A pre-training that is killed, one way or the other, has the losses of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hear_pretrainedsed.training.curve import read_curve
from pretraining.presets import PRESETS
from pretraining.run import run
from tests.pretraining.small_corpus import small_corpus
from tests.pretraining.tiny_runs import shrunken, tiny, tiny_run  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
N_STEPS = 24  # 4 epochs of 11 clips, 2 a step
LOG = "out/run/log/metrics.csv"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the corpus, and a run that nobody disturbed in `whole`."""
    folder = tmp_path_factory.mktemp("resume")
    small_corpus(folder / "corpus", 11)
    finish(start(folder / "whole", 1))
    return folder


def start(
    folder: Path, n_devices: int, seconds_per_step: float = 0.0, recipe: str = "best"
) -> subprocess.Popen:
    script = "tests.pretraining.pretrain_script"
    words = [sys.executable, "-m", script, folder, n_devices, seconds_per_step, recipe]
    keys = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        list(map(str, words)), cwd=ROOT, stderr=subprocess.PIPE, text=True, env=keys
    )


def finish(process: subprocess.Popen, code: int = 0) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors


def wait_for(process: subprocess.Popen, folder: Path, n_lines: int) -> None:
    """Until so many steps were told."""
    steps, deadline = folder / "steps", time.monotonic() + 120
    while not steps.exists() or len(steps.read_text().splitlines()) < n_lines:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def told(folder: Path) -> list[str]:
    return (folder / "steps").read_text().splitlines()


def same(one: Path, two: Path) -> None:
    """Curves and weights, to the last bit."""
    assert (one / LOG).read_text() == (two / LOG).read_text()
    weights, others = (load_file(x / "out" / "model.safetensors") for x in (one, two))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[k], others[k]) for k in weights)


@pytest.mark.slow
def test_killed_it_goes_on_with_the_same_curve(folder: Path) -> None:
    killed = folder / "killed"
    for lines in (5, 10):
        process = start(killed, 1, 0.1)
        wait_for(process, killed, lines)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(killed, 1))
    assert len(told(killed)) > N_STEPS  # steps after the last saving are made again
    assert set(told(killed)) == set(told(folder / "whole"))
    same(killed, folder / "whole")
    steps = [row["step"] for row in read_curve(killed / LOG) if row["loss"]]
    assert steps == [str(i + 1) for i in range(N_STEPS)]


@pytest.mark.slow
def test_sigterm_saves_the_step_it_is_in(folder: Path) -> None:
    ended = folder / "ended"
    process = start(ended, 1, 0.1)
    wait_for(process, ended, 5)
    process.send_signal(signal.SIGTERM)
    finish(process, 128 + signal.SIGTERM)
    finish(start(ended, 1))
    assert told(ended) == told(folder / "whole")  # no step twice
    same(ended, folder / "whole")


@pytest.mark.slow
def test_two_processes_do_what_one_does_and_end_together(folder: Path) -> None:
    both = folder / "both"
    process = start(both, 2, 0.1)
    wait_for(process, both, 10)  # both tell
    process.send_signal(signal.SIGTERM)
    finish(process, 128 + signal.SIGTERM)
    finish(start(both, 2))
    rows, others = (read_curve(x / LOG) for x in (both, folder / "whole"))
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        for name in row:
            assert float(row[name] or 0) == pytest.approx(float(other[name] or 0), rel=1e-4)


@pytest.mark.slow
def test_two_processes_with_two_streams(folder: Path) -> None:
    names = folder / "alone", folder / "together"
    for n_devices, name in enumerate(names, 1):
        finish(start(name, n_devices, recipe="fmn_online"))
    rows, others = (read_curve(name / LOG) for name in names)
    assert len(rows) == len(others) > N_STEPS / 2
    for row, other in zip(rows, others, strict=True):
        assert float(row["loss"] or 0) == pytest.approx(float(other["loss"] or 0), rel=1e-4)


@pytest.mark.slow
def test_a_lost_process_ends_the_run_and_it_goes_on(folder: Path) -> None:
    lost = folder / "lost"
    process = start(lost, 2, 0.1)
    wait_for(process, lost, 12)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ours = [
        pid for pid in children if b"pretrain_script" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(int(ours[0]), signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    finish(start(lost, 2))
    rows, others = (read_curve(x / LOG) for x in (lost, folder / "whole"))
    assert [row["step"] for row in rows] == [row["step"] for row in others]


@pytest.mark.usefixtures("tiny")
def test_another_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path / "corpus", 3)
    recipe = shrunken(PRESETS["strong_teacher-no_rnn-beats"])
    run(tiny_run(recipe, corpus, tmp_path / "out"))
    other = replace(recipe, lr=0.5, augmentation=replace(recipe.augmentation, mixup=0.7))
    with pytest.raises(ValueError, match=r"lr was 0.0001, is 0.5; mixup was 0.3, is 0.7"):
        run(tiny_run(other, corpus, tmp_path / "out"))
    another = small_corpus(tmp_path / "another", 4)
    with pytest.raises(ValueError, match=r"corpus_sha256 was '\w+', is '\w+'"):
        run(tiny_run(recipe, another, tmp_path / "out"))


@pytest.mark.usefixtures("tiny")
def test_a_batch_with_nan_is_named(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path / "corpus", 6)
    recipe = replace(shrunken(PRESETS["strong_teacher-no_rnn-beats"]), lr=1e30, n_warmup_steps=0)
    with pytest.raises(ValueError, match=r"step \d: .* of 2 pieces: clip\d_0, clip\d_0"):
        run(tiny_run(recipe, corpus, tmp_path / "out"))
    names = (tmp_path / "out" / "run" / "bad_batch.txt").read_text().split()
    assert len(names) == 2 and set(names) <= set(corpus.names)
    assert json.loads((tmp_path / "out" / "run" / "config.json").read_text())["lr"] == 1e30
