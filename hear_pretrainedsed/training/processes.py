"""Processes of data-parallel training: who starts them, and how many there are.

torchrun and Slurm start them all, and tell each in its environment which one it is; otherwise the
first one starts the others of its machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hear_pretrainedsed.training.plan import Place

_TIMEOUT = timedelta(hours=2)  # processes wait for the one that validates


@dataclass(frozen=True)
class Launch:
    """Processes that were started from outside; this one is one of them.

    by: who did. variable: of the environment, with their number. n: of them. n_devices, n_nodes: a
    node, and of nodes; None: not told.
    """

    by: str
    variable: str
    n: int
    n_devices: int | None
    n_nodes: int | None


def launch(environ: Mapping[str, str]) -> Launch | None:
    """How this process was started; None: by itself.

    As Lightning sees it: torchrun comes before Slurm, in whose jobs it may run, and a Slurm job
    with the name bash or interactive is a terminal. Slurm's single task starts others itself.

    Raises `ValueError` for nodes with unlike numbers of processes, and for numbers that are none.
    """
    if (n := _number(environ, "WORLD_SIZE")) is not None:
        by = "torchrun" if "TORCHELASTIC_RUN_ID" in environ else "another process"
        if n > 1 or "LOCAL_RANK" in environ:
            n_devices = _number(environ, "LOCAL_WORLD_SIZE")
            return _alike(Launch(by, "WORLD_SIZE", n, n_devices, n_devices and n // n_devices))
    n = _number(environ, "SLURM_NTASKS") or 1
    if n == 1 or environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    n_nodes = _number(environ, "SLURM_STEP_NUM_NODES") or _number(environ, "SLURM_NNODES")
    return _alike(Launch("Slurm", "SLURM_NTASKS", n, n_nodes and n // n_nodes, n_nodes))


def processes_of(
    devices: int | None, num_nodes: int | None, environ: Mapping[str, str] = os.environ
) -> tuple[int, int]:
    """Processes a node, and nodes, of what a command was given; what was not is as launched."""
    found = launch(environ)
    if found is None:
        return devices or 1, num_nodes or 1
    if found.n_devices is None and devices is not None and num_nodes is None:
        num_nodes = max(1, found.n // devices)
    if found.n_nodes is None and num_nodes is not None and devices is None:
        devices = max(1, found.n // num_nodes)
    return devices or found.n_devices or 1, num_nodes or found.n_nodes or 1


def check_processes(place: Place, environ: Mapping[str, str] = os.environ) -> None:
    """Refuse a place with other processes than there are or will be.

    Each would train by itself and write over the others' files, or wait for some that never come.

    Raises `ValueError`; for more processes a node than this machine has GPUs as well.
    """
    found = launch(environ)
    options = f"--devices {place.n_devices} and --num-nodes {place.n_nodes}"
    if found is not None:
        asked = (place.n_devices, place.n_nodes)
        told = (found.n_devices or asked[0], found.n_nodes or asked[1])
        if asked != told or asked[0] * asked[1] != found.n:
            known = found.n_devices and f"--devices {found.n_devices} --num-nodes {found.n_nodes}"
            raise ValueError(
                f"{options} make {place.n_devices * place.n_nodes}, but {found.by} has started "
                f"{found.n} processes ({found.variable}): give "
                f"{known or 'the number that it has started'}"
            )
        if found.by == "Slurm" and "SLURM_STEP_NUM_TASKS" not in environ and shutil.which("srun"):
            raise ValueError(
                f"Slurm has {found.n} tasks (SLURM_NTASKS), and this is none of them: start the "
                "command with srun, or ask sbatch for one task"
            )
    elif place.n_nodes > 1:
        raise ValueError(
            f"--num-nodes {place.n_nodes}, but nothing has started processes on other nodes: start "
            "the command on each with torchrun, or with Slurm's srun"
        )
    n_gpus = torch.cuda.device_count()
    if place.device.startswith("cuda") and place.n_devices > n_gpus:
        raise ValueError(f"--devices {place.n_devices}, but {n_gpus} GPUs are visible here")


def environment(place: Place) -> ClusterEnvironment:
    """What tells Lightning which process this is."""
    if place.n_devices * place.n_nodes == 1:
        return LightningEnvironment()
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    found = launch(os.environ)
    if found is None or found.by != "Slurm":
        return LightningEnvironment()
    os.environ["SLURM_NTASKS_PER_NODE"] = str(place.n_devices)  # srun leaves out what was not asked
    os.environ["SLURM_NNODES"] = str(place.n_nodes)  # the step's; a job may have more
    return SLURMEnvironment(auto_requeue=False)  # a run that gets SIGTERM saves by itself


class Parallel(DDPStrategy):
    """Lightning's DDP for models of which a step may leave parameters without a gradient."""

    def __init__(self) -> None:
        super().__init__(find_unused_parameters=True, timeout=_TIMEOUT)

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        return super()._setup_model(_Spared(model).to(self.root_device))


class _Spared(nn.Module):
    """A module beside a parameter that is never used: torch warns where all are, in C++.

    Only what is given to DDP has it: no checkpoint, and no optimiser.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.spare = nn.Parameter(torch.zeros(()))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module makes of it."""
        return self.module(*args, **kwargs)


def _alike(found: Launch) -> Launch:
    """Refuse processes that are not divided evenly."""
    n_devices, n_nodes = found.n_devices, found.n_nodes
    if n_devices is not None and n_nodes is not None and n_devices * n_nodes != found.n:
        raise ValueError(
            f"{found.by} has started {found.n} processes ({found.variable}) that are not the same "
            "number on each node"
        )
    return found


def _number(environ: Mapping[str, str], name: str) -> int | None:
    """A number of at least 1 of the environment; None: it has none."""
    text = environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name} is {text!r} in the environment; it is a number of processes")
    return int(text)
