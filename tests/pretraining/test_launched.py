"""`pretrain` as two processes: however they were started, they make one model, and the same."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.pretraining.conftest import Call
from tests.pretraining.small_corpus import small_corpus

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
OF_A_LAUNCH = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_", "TORCHELASTIC_", "SLURM_")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the corpus, and the model of two processes of which one started the other."""
    folder = tmp_path_factory.mktemp("launched")
    small_corpus(folder, 4)
    assert finish(start(folder, "own", more=("--devices", "2"))) == 1
    return folder


def start(
    folder: Path,
    out: str,
    launcher: tuple[str, ...] = (),
    more: tuple[str, ...] = (),
    environ: Mapping[str, str] | None = None,
) -> subprocess.Popen:
    words = ["--preset", "strong_teacher-no_rnn-beats", "--backbone", "fmn04", "--set", "batch=2"]
    words += ["--corpus", folder / "corpus", "-o", folder / out, "--max-steps", "2"]
    words += ["--device", "cpu", "--logger", "csv", *more]
    code = [sys.executable, *launcher, "-m", "hear_pretrainedsed", "pretrain", *words]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(OF_A_LAUNCH)}
    return subprocess.Popen(
        list(map(str, code)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**inherited, "OMP_NUM_THREADS": "1", **(environ or {})},
    )


def finish(*processes: subprocess.Popen) -> int:
    """How often it was told where a model is."""
    told = ""
    for process in processes:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert "find_unused_parameters" not in errors  # torch's advice, which is not ours to take
        told += out
    return told.count("model.safetensors")


def same(folder: Path, out: str) -> bool:
    one, two = ((folder / name / "model.safetensors").read_bytes() for name in ("own", out))
    return one == two


@pytest.mark.slow
def test_torchrun(folder: Path) -> None:
    assert finish(start(folder, "torchrun", TORCHRUN)) == 1
    assert same(folder, "torchrun")


@pytest.mark.slow
def test_slurm(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tasks = []
    for rank in ("0", "1"):
        environ = {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_STEP_NUM_TASKS": "2"}
        environ |= {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": "0"}
        environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        tasks.append(start(folder, "slurm", environ=environ))
    assert finish(*tasks) == 1
    assert same(folder, "slurm")


def test_other_numbers_are_refused(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is read; a plan of another place is none of the launcher's business."""
    environ = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    words = ("--preset", "strong_teacher-no_rnn-beats", "--backbone", "fmn04", "--devices", 3)
    code, _, err = call(*words, "--corpus", tmp_path, "-o", tmp_path / "out")
    assert code == 2 and "--devices 3 and --num-nodes 1 make 3, but torchrun has started 2" in err
    assert err.count("\n") == 1 and not (tmp_path / "out").exists()
    plan = ("--dry-run", "--corpus-size", 10, "--clips-per-s", 1)
    assert call(*words, *plan)[0] == 0
