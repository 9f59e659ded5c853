"""`hear-pretrainedsed finetune`: a checkpoint learns a task, or the user's own recordings.

OUT/model.safetensors is a checkpoint like any other, with the classes of the data and, under
protocol `best`, a threshold and a median length for each of them. OUT/results.jsonl has the scores
on the test clips. The same command goes on after a kill.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from downstream import finetune as tuning
from downstream import results
from downstream.cells import plain
from downstream.embeddings import Weights, find_weights
from downstream.finetune_recipes import RECIPES, changes
from downstream.own_options import LabelsFile, SplitColumn, SplitSeed, check_used
from downstream.protocols import Settings
from downstream.scoring import score_task
from downstream.sweep import open_folder, open_named
from downstream.tasks import LabelChoice, Task
from downstream.tasks.checks import check_audio
from hear_pretrainedsed.cli_options import (
    BatchSize,
    CheckpointName,
    Device,
    Option,
    Precision,
    check_folder,
)
from hear_pretrainedsed.options import PRECISIONS
from hear_pretrainedsed.records import known_sha256
from hear_pretrainedsed.registry import get_checkpoint, unknown
from hear_pretrainedsed.training.command_options import (
    Devices,
    DryRun,
    LoggerName,
    Nodes,
    SaveEvery,
    Seed,
    Set,
    Workers,
    groups_table,
    place_of,
)
from hear_pretrainedsed.training.estimate import memory
from hear_pretrainedsed.training.fit import CONFIG, check_config, has_begun
from hear_pretrainedsed.training.optimizer import groups
from hear_pretrainedsed.training.plan import share_of_steps
from hear_pretrainedsed.training.processes import check_processes
from hear_pretrainedsed.training.settings import with_settings

Data = Annotated[
    Path | None, Option("--data", help="Recordings and labels; with --task: its folder's parent.")
]
TaskName = Annotated[str | None, Option("--task", help="NAME or NAME:SPLIT, below --data.")]
Out = Annotated[Path, Option("--out", "-o", help="Folder for model, results and logs.")]
WeightsFile = Annotated[Path | None, Option("--weights", help="A file to start from instead.")]
ProtocolName = Annotated[str, Option("--protocol", help="paper or best.")]
MaxSteps = Annotated[int | None, Option(min=1, help="No training has more steps.")]
StepsScale = Annotated[float | None, Option(help="All steps times this.")]
Strict = Annotated[bool, Option("--strict", help="Warnings about the data are errors.")]

_RUNS, _MODELS = "runs", "model*.safetensors"
_OWN_FIELDS = {"weights_sha256", "task_digest", "lrs"}  # by these a config.json is known as ours


def finetune(
    checkpoint: CheckpointName,
    out: Out,
    data: Data = None,
    task: TaskName = None,
    weights: WeightsFile = None,
    protocol: ProtocolName = "best",
    max_steps: MaxSteps = None,
    steps_scale: StepsScale = None,
    seed: Seed = 0,
    precision: Precision = "fp32",
    device: Device = "auto",
    batch_size: BatchSize = None,
    devices: Devices = None,
    num_nodes: Nodes = None,
    workers: Workers = None,
    logger: LoggerName = None,
    save_every: SaveEvery = None,
    set_: Set = None,
    dry_run: DryRun = False,
    strict: Strict = False,
    labels: LabelsFile = None,
    split_column: SplitColumn = None,
    split_seed: SplitSeed = None,
) -> None:
    """Fine-tune a checkpoint on a task or on your own recordings; the best is kept and scored."""
    if protocol not in RECIPES:
        raise ValueError(unknown("protocol", protocol, RECIPES))
    if precision not in PRECISIONS:
        raise ValueError(unknown("precision", precision, PRECISIONS))
    check_folder(out)
    recipe = with_settings(RECIPES[protocol], set_ or [])
    share_of_steps(1, steps_scale, max_steps)  # refuses a wrong one before a folder is made
    place = place_of(
        out / _RUNS,
        device=device,
        devices=devices,
        num_nodes=num_nodes,
        batch_size=batch_size,
        workers=workers,
        logger=logger,
        save_every=save_every,
    )
    get_checkpoint(checkpoint)
    opened = _open(data, task, strict, LabelChoice(labels, split_column, split_seed))
    found = _weights(checkpoint, weights)
    check_audio(opened)
    settings = Settings(
        precision, place.device, steps_scale, max_steps=max_steps, batch_size=batch_size
    )
    job = tuning.Job(protocol, opened, found, settings, seed, place, recipe)
    if dry_run:
        print_plan(job)
        return
    check_processes(place)
    run(job, out)


def _open(data: Path | None, task: str | None, strict: bool, choice: LabelChoice) -> Task:
    if task is not None:
        opened = open_named(task, data, strict, choice)
    elif data is None:
        raise ValueError("nothing to learn from: give --data DIR or --task NAME")
    elif data.is_file():
        raise ValueError(f"--data takes a folder, and {data} is a file")
    elif not data.is_dir():
        raise ValueError(f"--data: there is no folder {data}")
    else:
        opened = open_folder(data, strict, choice)
    check_used(choice, [opened])
    return opened


def _weights(checkpoint: str, path: Path | None) -> Weights:
    if path is None:
        return find_weights(checkpoint)
    if not path.is_file():
        raise ValueError(f"--weights: there is no file {path}")
    return Weights(checkpoint, path, known_sha256(path))


def run(job: tuning.Job, out: Path) -> None:
    """Train, score, write models; what is finished is not done again.

    Weights, and what is in the folder, are looked at before anything is written there.
    """
    job.model()
    _refuse_foreign(out)
    store = results.Store(out)
    is_first = tuning.is_first_process()
    check_config(out, _content(job), begun=_has_something(out), writes=is_first)
    asked = _Asked(job.weights, job.task, job.protocol, job.seed)
    key = results.key_of(asked, job.settings)
    key = replace(key, config={**key.config, **job.norms})
    if changed := changes(job.recipe, job.protocol):
        key = replace(key, config={**key.config, "set": changed})
    cell = store.finished(key)
    if cell is None or not any(out.glob(_MODELS)):
        start = time.monotonic()
        with _progress(is_first) as tell:
            tuned = tuning.tune(replace(job, settings=replace(job.settings, tell=tell)))
        if not is_first:
            return
        trained_s = time.monotonic() - start
        scored = score_task(job.task, tuned.found)
        seconds = {"run_s": trained_s, "scoring_s": time.monotonic() - start - trained_s}
        n_threads = torch.get_num_threads()
        cell = results.make_cell(key, asked, tuned.found, scored, seconds, n_threads)
        tuning.save(tuned, out)
        store.append(cell, tuned.found)
        for weights in (out / _RUNS).glob("*/weights.pt"):
            weights.unlink()
    if is_first:
        Console().print(results.results_table([cell]))
        print(*sorted(out.glob(_MODELS)), sep="\n")


def _refuse_foreign(out: Path) -> None:
    """Refuse a folder with a model or a config that finetune did not write."""
    path = out / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        foreign = sorted(out.glob(_MODELS))
    except ValueError:
        foreign = [path]
    else:
        ours = isinstance(content, dict) and content.keys() >= _OWN_FIELDS
        foreign = [] if ours else [path]
    if foreign:
        raise ValueError(
            f"{foreign[0]} is there already, and not known to be of finetune: take another folder "
            "as --out, or move it away"
        )


def _has_something(out: Path) -> bool:
    """Whether a training has left something there that another one would spoil."""
    return bool(
        any(map(has_begun, (out / _RUNS).glob("*"))) or [*out.glob(_MODELS)] or results.read(out)
    )


@dataclass(frozen=True)
class _Asked:
    """What the line of results is asked of."""

    weights: Weights
    task: Task
    protocol: str
    seed: int
    mode: str = "finetune"


def _content(job: tuning.Job) -> dict[str, object]:
    """All that the folder's numbers depend on."""
    settings = job.settings
    return {
        **job.config(),
        "seed": job.seed,
        "precision": settings.precision,
        "steps_scale": settings.steps_scale,
        "max_steps": settings.max_steps,
        **job.norms,
        **plain(asdict(job.recipe)),
    }


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[str], None]]:
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not (shown and sys.stderr.isatty()),
    )
    with bar:
        number = bar.add_task("", total=None)
        yield lambda line: bar.update(number, description=line)


def print_plan(job: tuning.Job) -> None:
    """What a training would do: groups, steps, memory."""
    order = job.order(job.task.rotations[0])
    model = job.model()
    n_blocks = model.backbone.n_blocks
    plans = [job.recipe.plan(order, lr, job.settings, n_blocks) for lr in job.recipe.lrs]
    plan = plans[0]
    rotations = len(job.task.rotations)
    processes = job.place.n_devices * job.place.n_nodes
    facts = {
        "classes": f"{len(job.task.labels)}",
        "pieces": f"{order.n_pieces} of 10 s an epoch, from {len(order.recordings)} recordings",
        "batch": f"{plan.batch_pieces} pieces, up to {job.place.micro} in memory at a time"
        + (f", over {processes} processes" if processes > 1 else ""),
        "steps": f"{plan.n_steps}, {order.steps_per_epoch} an epoch; "
        f"{plan.n_warmup_steps} of warm-up",
        "trainings": f"{len(plans) + rotations - 1}: maximum lr "
        f"{', '.join(f'{p.backbone_lr:g}' for p in plans)} on the first of {rotations} rotations",
        "memory": str(memory(model, plan, job.place)),
    }
    if changed := changes(job.recipe, job.protocol):
        facts["set"] = f"{changed}, so protocol {job.name}"
    Console().print(groups_table(groups(model, plan)))
    print(*(f"{key + ':':<11}{value}" for key, value in facts.items()), sep="\n")
