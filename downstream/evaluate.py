"""`hear-pretrainedsed evaluate`: checkpoints x tasks x protocols x modes x seeds, a line each.

Frames of a checkpoint are made once for a task, whatever is done with them. Each finished cell is
appended to RESULTS/results.jsonl; the same command goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from downstream import sweep
from downstream.every_task import ALL, every_task
from downstream.own_options import LabelsFile, SplitColumn, SplitSeed, check_used
from downstream.protocols import PROTOCOLS, Settings
from downstream.protocols.hear import GRIDS
from downstream.results import Cell, results_table
from downstream.sweep import Job
from downstream.tasks import TASKS, LabelChoice, Task
from hear_pretrainedsed.cli_options import (
    BatchSize,
    Device,
    Option,
    Precision,
    check_batch_size,
    device_of,
    say,
)
from hear_pretrainedsed.options import PRECISIONS
from hear_pretrainedsed.records import cache_folder
from hear_pretrainedsed.registry import CHECKPOINTS, unknown
from hear_pretrainedsed.training.plan import share_of_steps

EXECUTORS = {"local": "downstream.sweep", "ray": "downstream.sweep_ray"}
Names = Annotated[list[str], Option("--checkpoints", help="Names or patterns, as in `list`.")]
Tasks = Annotated[list[str], Option("--tasks", help="Folders, names below --data, or all there.")]
Protocols = Annotated[list[str], Option("--protocols", help="hear, paper, best.")]
Modes = Annotated[list[str], Option("--modes", help="probe, knn, finetune.")]
Seeds = Annotated[int, Option("--seeds", min=1, help="Runs with seeds 0, 1, ...")]
Results = Annotated[Path, Option("--results", "-o", help="Folder for the results.")]
Data = Annotated[Path | None, Option("--data", help="Folder of task folders; none: the cache's.")]
Corpus = Annotated[Path | None, Option("--corpus", help="Folder of audioset_strong's data.")]
Embeddings = Annotated[Path | None, Option("--embeddings", help="Folder for frames, made once.")]
GridPoints = Annotated[int, Option(min=1, help="hear: points of heareval's grid.")]
Grid = Annotated[str, Option(help="hear: default, fast or faster.")]
MaxSteps = Annotated[int | None, Option(min=1, help="finetune: no training has more steps.")]
Executor = Annotated[str, Option(help="local, or ray: a Ray cluster (RAY_ADDRESS).")]
StepsScale = Annotated[float | None, Option(help="paper: steps times this; paper-scaled.")]
Strict = Annotated[bool, Option("--strict", help="Warnings about a task's data are errors.")]


def evaluate(
    checkpoints: Names,
    tasks: Tasks,
    results: Results,
    protocols: Protocols = ["hear"],  # noqa: B006 - typer reads it
    modes: Modes = ["probe"],  # noqa: B006
    seeds: Seeds = 1,
    data: Data = None,
    corpus: Corpus = None,
    embeddings: Embeddings = None,
    grid_points: GridPoints = 8,
    grid: Grid = "default",
    steps_scale: StepsScale = None,
    max_steps: MaxSteps = None,
    precision: Precision = "fp32",
    device: Device = "auto",
    batch_size: BatchSize = None,
    strict: Strict = False,
    labels: LabelsFile = None,
    split_column: SplitColumn = None,
    split_seed: SplitSeed = None,
    executor: Executor = "local",
) -> None:
    """Score checkpoints on tasks under named protocols; a table at the end."""
    if precision not in PRECISIONS:
        raise ValueError(unknown("precision", precision, PRECISIONS))
    check_batch_size(batch_size)
    if grid not in GRIDS:
        raise ValueError(unknown("grid", grid, GRIDS))
    share_of_steps(1, steps_scale, max_steps)
    work = executor_of(executor)
    settings = Settings(
        precision=precision,
        device=str(device_of(device)),
        steps_scale=steps_scale,
        max_steps=max_steps,
        grid_points=grid_points,
        grid=grid,
        batch_size=batch_size,
    )
    names = select("checkpoint", split_list("--checkpoints", checkpoints), CHECKPOINTS)
    named = split_list("--protocols", protocols), split_list("--modes", modes)
    wanted = list(protocol_modes(*named))
    choice = LabelChoice(labels, split_column, split_seed)
    folders = task_words(split_list("--tasks", tasks), data, corpus, strict, choice)
    # refuse what cannot be used before anything is run
    opened = [sweep.open_named(task, data, strict, choice) for task in folders]
    check_used(choice, opened)
    check_protocols(opened, wanted)
    todo = sweep.jobs(names, folders, wanted, seeds, data, strict, choice)
    place = sweep.Place(results, embeddings or cache_folder() / "embeddings", settings)
    screen = Screen(len(todo))
    with screen.bar:
        work(todo, place, screen.tell, screen.done)
    if screen.cells:
        Console().print(results_table(screen.cells))
    if screen.n_failed:
        raise typer.Exit(1)


def executor_of(name: str) -> Callable[[Sequence[Job], sweep.Place, sweep.Tell, sweep.Done], None]:
    """Who does the jobs."""
    if name not in EXECUTORS:
        raise ValueError(unknown("executor", name, EXECUTORS))
    return import_module(EXECUTORS[name]).work


def split_list(option: str, values: Sequence[str]) -> list[str]:
    """An option's values, which may each be several, separated by commas; `ValueError` for none."""
    found = [part for value in values for part in value.split(",") if part]
    if not found:
        raise ValueError(f"{option} is {','.join(values)!r}; it takes one name or more")
    return found


def task_words(
    tasks: Sequence[str],
    data: Path | None,
    corpus: Path | None,
    strict: bool,
    choice: LabelChoice = sweep.AS_IT_IS,
) -> list[str]:
    """Tasks in words that another process understands; what `all` leaves out is told of."""
    found: dict[str, None] = {}
    for task in tasks:
        if task != ALL:
            found[with_corpus(task, corpus)] = None
            continue
        words, left_out = every_task(data, corpus, strict, choice)
        found |= dict.fromkeys(words)
        for line in left_out:
            say(f"left out: {line}")
    return list(found)


def with_corpus(task: str, corpus: Path | None) -> str:
    """A task for evaluation only with the folder of its corpus."""
    facts = TASKS.get(task)
    if facts is None or facts.score_head is None:
        return task
    if corpus is None:
        raise ValueError(f"{task} needs its recordings and labels: give --corpus DIR")
    return f"{task}={corpus}"


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


def check_protocols(tasks: Sequence[Task], wanted: Sequence[tuple[str, str]]) -> None:
    """Refuse a task that a protocol and mode cannot be run on."""
    for task in tasks:
        if task.facts.score_head is None:
            for protocol, mode in wanted:
                PROTOCOLS[protocol].check(task, mode)


class Screen:
    """Progress on stderr if that is a terminal, failures as lines, and the cells that are done."""

    def __init__(self, n_jobs: int) -> None:
        self.cells: list[Cell] = []
        self.n_failed = 0
        self.bar = Progress(
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(20),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._row = self.bar.add_task("", total=n_jobs)

    def tell(self, job: Job, line: str) -> None:
        """Show where a job is."""
        self.bar.update(self._row, description=f"{job} {line}".strip())

    def done(self, job: Job, cell: Cell | None, why: str) -> None:
        """Count a job; say why there is no cell of it."""
        self.bar.advance(self._row)
        if cell is None:
            self.n_failed += 1
            say(f"{job}: {why}")
        else:
            self.cells.append(cell)
