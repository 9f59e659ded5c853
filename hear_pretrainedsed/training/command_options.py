"""Options that `finetune` and `pretrain` share, and what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rich.table import Table

from hear_pretrainedsed.cli_options import Option, check_batch_size, device_of
from hear_pretrainedsed.training.fit import check_logger, default_logger
from hear_pretrainedsed.training.param_groups import Group
from hear_pretrainedsed.training.plan import Place
from hear_pretrainedsed.training.processes import processes_of

_GPU_WORKERS = 4

Seed = Annotated[int, Option(help="Of head, order, mixing and dropout.")]
Devices = Annotated[
    int | None,
    Option("--devices", min=1, help="Processes a node, one a GPU; none: as torchrun, Slurm; 1."),
]
Nodes = Annotated[
    int | None, Option("--num-nodes", min=1, help="Of torchrun or Slurm; none: as they say; 1.")
]
Workers = Annotated[int | None, Option(min=0, help="Processes that read audio; none: auto.")]
LoggerName = Annotated[
    str | None, Option("--logger", help="tensorboard, csv, wandb, mlflow, none; else by package.")
]
SaveEvery = Annotated[
    int | None, Option(min=1, help="Steps from one saving to the next, for a run that is killed.")
]
Set = Annotated[list[str] | None, Option("--set", help="FIELD=VALUE of the recipe, repeatable.")]
DryRun = Annotated[bool, Option("--dry-run", help="Print the plan, and do nothing.")]


def place_of(
    folder: Path,
    *,
    device: str,
    devices: int | None,
    num_nodes: int | None,
    batch_size: int | None,
    workers: int | None,
    logger: str | None,
    save_every: int | None,
) -> Place:
    """Where a training runs, from a command's options.

    Audio is read beside a GPU's work by other processes; a CPU has enough to do. Raises
    `ValueError` for a device or a logger that is not here, or a batch of none. What is run there,
    and not planned alone, takes `check_processes` as well.
    """
    check_batch_size(batch_size)
    devices, num_nodes = processes_of(devices, num_nodes)
    name = str(device_of(device))
    if workers is None:
        workers = 0 if name == "cpu" else _GPU_WORKERS
    return Place(
        folder,
        device=name,
        n_devices=devices,
        n_nodes=num_nodes,
        micro_pieces=batch_size,
        n_workers=workers,
        logger=_logger(logger),
        save_every_steps=save_every,
    )


def groups_table(groups: Sequence[Group]) -> Table:
    """An optimiser's groups, for a plan that is printed."""
    table = Table("group", "tensors", "parameters", "lr", "weight decay", box=None)
    for group in groups:
        n = sum(p.numel() for p in group["params"])
        row = (f"{len(group['params'])}", f"{n:,}", f"{group['lr']:.3g}", group["weight_decay"])
        table.add_row(group["name"], *map(str, row))
    return table


def _logger(name: str | None) -> str | None:
    if name == "none":
        return None
    name = name or default_logger()
    check_logger(name)
    return name
