"""Processes that torchrun or Slurm has started are counted; others than these are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

from hear_pretrainedsed.training import processes
from hear_pretrainedsed.training.plan import Place
from hear_pretrainedsed.training.processes import check_processes, environment, processes_of

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
}
SLURM = {"SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "mine"}
CHILD = {"WORLD_SIZE": "3", "LOCAL_RANK": "1"}  # of a first process that has started it


@pytest.fixture(autouse=True)
def no_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without Slurm, wherever the tests run."""
    monkeypatch.setattr(processes.shutil, "which", lambda name: None)


def place(n_devices: int, n_nodes: int = 1, device: str = "cpu") -> Place:
    return Place(Path("out"), device=device, n_devices=n_devices, n_nodes=n_nodes)


@pytest.mark.parametrize(
    ("environ", "given", "wanted"),
    [
        ({}, (None, None), (1, 1)),
        ({}, (3, None), (3, 1)),
        (TORCHRUN, (None, None), (2, 2)),
        (TORCHRUN, (2, None), (2, 2)),
        (TORCHRUN | {"WORLD_SIZE": "2"}, (None, None), (2, 1)),
        (SLURM, (None, None), (2, 2)),
        (SLURM | {"SLURM_STEP_NUM_NODES": "1"}, (None, None), (4, 1)),  # a part of the job's nodes
        ({"SLURM_NTASKS": "4"}, (4, None), (4, 1)),
        ({"SLURM_NTASKS": "4"}, (None, 2), (2, 2)),
        ({"SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, (3, None), (3, 1)),  # which it starts itself
        (SLURM | {"SLURM_JOB_NAME": "interactive"}, (None, None), (1, 1)),
        (SLURM | TORCHRUN, (None, None), (2, 2)),
        (CHILD, (3, None), (3, 1)),
    ],
)
def test_what_is_not_given_is_as_launched(
    environ: dict[str, str], given: tuple[int | None, int | None], wanted: tuple[int, int]
) -> None:
    assert processes_of(*given, environ) == wanted
    check_processes(place(*wanted), environ)


@pytest.mark.parametrize(
    ("environ", "asked", "message"),
    [
        (TORCHRUN, (1, 1), "torchrun has started 4 processes .WORLD_SIZE.: give --devices 2 --num"),
        (TORCHRUN, (4, 1), "--devices 4 and --num-nodes 1 make 4, but torchrun has started 4"),
        (SLURM, (1, 1), "make 1, but Slurm has started 4 processes .SLURM_NTASKS."),
        ({"SLURM_NTASKS": "4"}, (1, 1), "Slurm has started 4"),
        (CHILD, (1, 1), "make 1, but another process has started 3"),
        ({}, (1, 2), "--num-nodes 2, but nothing has started processes on other nodes"),
        (TORCHRUN | {"WORLD_SIZE": "3"}, (2, 1), "3 processes .* not the same number on each"),
        (TORCHRUN | {"WORLD_SIZE": "x"}, (2, 1), "WORLD_SIZE is 'x' in the environment"),
    ],
)
def test_others_are_refused(environ: dict[str, str], asked: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_processes(place(*asked), environ)


def test_slurm_without_srun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tasks would never come."""
    monkeypatch.setattr(processes.shutil, "which", lambda name: "/bin/srun")
    with pytest.raises(ValueError, match="Slurm has 4 tasks .* start the command with srun"):
        check_processes(place(2, 2), SLURM)
    check_processes(place(2, 2), SLURM | {"SLURM_STEP_NUM_TASKS": "4"})


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--devices 2, but 1 GPUs are visible here"):
        check_processes(place(2, device="cuda"), {})
    check_processes(place(1, device="cuda"), {})


def test_slurm_needs_no_tasks_per_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """srun -n does not tell them, and Lightning refuses to go on without."""
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(environment(place(2)), LightningEnvironment)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "")  # taken back after the test
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    found = environment(place(2, 2))
    assert isinstance(found, SLURMEnvironment) and not found.auto_requeue
    found.validate_settings(2, 2)
    assert isinstance(environment(place(1)), LightningEnvironment)
