"""`hear-pretrainedsed evaluate`: checkpoints x tasks x protocols x modes x seeds, a line each.

Frames of a checkpoint are made once for a task, whatever is done with them. Each finished cell is
appended to RESULTS/results.jsonl; the same command goes on where it was.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from downstream import results
from downstream.embeddings import FrameSource, Weights, find_weights
from downstream.protocols import PROTOCOLS, Settings
from downstream.scoring import score_task
from downstream.tasks import TASKS, Task, open_task
from hear_pretrainedsed.cli_options import Device, Option, Precision, device_of, say
from hear_pretrainedsed.fetch import FetchError
from hear_pretrainedsed.options import PRECISIONS
from hear_pretrainedsed.records import cache_folder
from hear_pretrainedsed.registry import CHECKPOINTS, unknown

WITHOUT_SEEDS = frozenset({"knn"})  # modes in which nothing is random
Names = Annotated[list[str], Option("--checkpoints", help="Names or patterns, as in `list`.")]
Tasks = Annotated[list[str], Option("--tasks", help="Folders, or names below --data.")]
Protocols = Annotated[list[str], Option("--protocols", help="hear, paper, best.")]
Modes = Annotated[list[str], Option("--modes", help="probe, knn.")]
Seeds = Annotated[int, Option("--seeds", min=1, help="Runs with seeds 0, 1, ...")]
Results = Annotated[Path, Option("--results", "-o", help="Folder for the results.")]
Data = Annotated[Path | None, Option("--data", help="Folder of task folders; none: the cache's.")]
Embeddings = Annotated[Path | None, Option("--embeddings", help="Folder for frames, made once.")]
GridPoints = Annotated[int, Option(min=1, help="hear: points of heareval's grid.")]
Grid = Annotated[str, Option(help="hear: default, fast or faster.")]
StepsScale = Annotated[float | None, Option(help="paper: steps times this; paper-scaled.")]
Strict = Annotated[bool, Option("--strict", help="Warnings about a task's data are errors.")]


@dataclass(frozen=True)
class Cell:
    """What one result is of."""

    weights: Weights
    task: Task
    protocol: str
    mode: str
    seed: int

    @property
    def name(self) -> str:
        """The cell in words."""
        return f"{self.weights.checkpoint} {self.task.name} {self.protocol} {self.mode} {self.seed}"


def evaluate(
    checkpoints: Names,
    tasks: Tasks,
    results_folder: Results,
    protocols: Protocols = ["hear"],  # noqa: B006 - typer reads it
    modes: Modes = ["probe"],  # noqa: B006
    seeds: Seeds = 1,
    data: Data = None,
    embeddings: Embeddings = None,
    grid_points: GridPoints = 8,
    grid: Grid = "default",
    steps_scale: StepsScale = None,
    precision: Precision = "fp32",
    device: Device = "auto",
    strict: Strict = False,
) -> None:
    """Score checkpoints on tasks under named protocols; a table at the end."""
    if precision not in PRECISIONS:
        raise ValueError(unknown("precision", precision, PRECISIONS))
    place = str(device_of(device))
    settings = Settings(precision, place, steps_scale, grid_points, grid)
    names = select("checkpoint", split_list(checkpoints), CHECKPOINTS)
    wanted = list(protocol_modes(split_list(protocols), split_list(modes)))
    opened = [open_named(task, data, strict) for task in split_list(tasks)]
    store = results.Store(results_folder)
    run = Run(store, settings, embeddings or cache_folder() / "embeddings")
    n_failed = run.all_of(names, opened, wanted, seeds)
    Console().print(results.results_table(run.done))
    if n_failed:
        raise SystemExit(1)


def split_list(values: Sequence[str]) -> list[str]:
    """Values that may each be several, separated by commas."""
    return [part for value in values for part in value.split(",") if part]


def select(what: str, wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names that match the wanted names or patterns; `ValueError` for one that matches none."""
    found: dict[str, None] = {}
    for pattern in wanted:
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            raise ValueError(unknown(what, pattern, names))
        found |= dict.fromkeys(matches)
    return list(found)


def protocol_modes(protocols: Sequence[str], modes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a protocol and a mode that it has; a mode that none of them has is refused."""
    chosen = select("protocol", protocols, list(PROTOCOLS))
    known = list(dict.fromkeys(mode for name in chosen for mode in PROTOCOLS[name].modes))
    for mode in modes:
        if mode not in known:
            raise ValueError(unknown("mode", mode, known))
    for name in chosen:
        yield from ((name, mode) for mode in modes if mode in PROTOCOLS[name].modes)


def open_named(text: str, data: Path | None, strict: bool) -> Task:
    """A task by folder, or by NAME or NAME:SPLIT below the folder of task folders."""
    if Path(text).is_dir():
        return open_task(text, strict=strict)
    name, _, split = text.partition(":")
    if name not in TASKS:
        raise ValueError(f"{unknown('task', name, TASKS)}; or give a folder")
    base = data or cache_folder() / "tasks"
    places = [base / name, *sorted(base.glob(f"{name}-*"))]
    folder = next((path for path in places if path.is_dir()), None)
    if folder is None:
        raise ValueError(
            f"no data of {name} in {base}: give its folder, or the one that it is in as --data "
            "(hear-pretrainedsed build-task makes it from the published archives)"
        )
    options = {"split": split} if split else {}
    return open_task(name, folder, strict=strict, **options)


class Run:
    """Cells one after the other, with a progress bar on stderr if that is a terminal."""

    def __init__(self, store: results.Store, settings: Settings, embeddings: Path) -> None:
        self.store, self.embeddings = store, embeddings
        self.done: list[results.Cell] = []
        self.bar = Progress(
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(20),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self.settings = replace(settings, tell=self._tell)
        self.now = ""

    def all_of(
        self,
        names: Sequence[str],
        tasks: Sequence[Task],
        wanted: Sequence[tuple[str, str]],
        seeds: int,
    ) -> int:
        """Every combination; how many checkpoints could not be had."""
        n_seeds = [1 if mode in WITHOUT_SEEDS else seeds for _, mode in wanted]
        n_failed, n_cells = 0, len(tasks) * sum(n_seeds)
        with self.bar:
            self.number = self.bar.add_task("", total=n_cells * len(names))
            for name in names:
                try:
                    weights = find_weights(name)
                except FetchError as error:
                    say(f"{name}: {error}")
                    self.bar.advance(self.number, n_cells)
                    n_failed += 1
                    continue
                for task in tasks:
                    self._task(weights, task, list(zip(wanted, n_seeds, strict=True)))
        return n_failed

    def _task(self, weights: Weights, task: Task, wanted: list) -> None:
        """All cells of one checkpoint on one task."""
        clips = task.clips(task.splits)
        source = FrameSource(
            weights, clips, self.embeddings, self.settings.device, progress=self._embedding
        )
        for (protocol, mode), n_seeds in wanted:
            for seed in range(n_seeds):
                self._cell(Cell(weights, task, protocol, mode, seed), source)
                self.bar.advance(self.number)

    def _cell(self, cell: Cell, source: FrameSource) -> None:
        self.now = cell.name
        self._tell("")
        key = results.key_of(cell, self.settings)
        if (known := self.store.finished(key)) is not None:
            self.done.append(known)
            return
        start = time.monotonic()
        found = PROTOCOLS[cell.protocol].modes[cell.mode](
            cell.task, source, self.settings, cell.seed
        )
        trained_s = time.monotonic() - start
        scored = score_task(cell.task, found)
        seconds = {"run_s": trained_s, "scoring_s": time.monotonic() - start - trained_s}
        made = results.make_cell(key, cell, found, scored, seconds, torch.get_num_threads())
        self.store.append(made, found)
        self.done.append(made)

    def _tell(self, line: str) -> None:
        self.bar.update(self.number, description=f"{self.now} {line}".strip())

    def _embedding(self, n_done: int, n: int) -> None:
        self._tell(f"frames of {n_done} of {n} clips")
