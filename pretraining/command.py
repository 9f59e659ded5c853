"""`hear-pretrainedsed pretrain`: a recipe makes a checkpoint from a corpus.

OUT/model.safetensors is taken in by `hear-pretrainedsed import`; OUT/run/log has the curve of the
losses. The same command goes on after a kill.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hear_pretrainedsed.cli_options import BatchSize, Device, Option
from hear_pretrainedsed.model import build_checkpoint
from hear_pretrainedsed.options import PRECISIONS
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
    place_of,
)
from hear_pretrainedsed.training.plan import Place
from hear_pretrainedsed.training.processes import check_processes
from hear_pretrainedsed.training.settings import with_settings
from pretraining.build import check_image_weights, random_start, with_start
from pretraining.config import Recipe
from pretraining.plan_text import Outlook
from pretraining.presets import PRESETS, get_preset
from pretraining.sampling import n_drawable, weights_of

Preset = Annotated[str | None, Option("--preset", help="Name of a recipe; see --list.")]
List = Annotated[bool, Option("--list", help="Names, what they reproduce, published numbers.")]
Corpus = Annotated[Path | None, Option("--corpus", help="Folder, as `corpus` makes it.")]
WeakCorpus = Annotated[Path | None, Option("--weak-corpus", help="Second one, of fmn_online.")]
Valid = Annotated[Path | None, Option("--valid", help="Corpus to validate on.")]
Evaluation = Annotated[Path | None, Option("--eval", help="Corpus for a weak run's results.")]
Start = Annotated[str | None, Option("--checkpoint", "-c", help="Start; none: the preset's.")]
Backbone = Annotated[str | None, Option("--backbone", help="Start at random weights instead.")]
Images = Annotated[
    Path | None, Option("--image-weights", help="File of ImageNet weights for --backbone psla.")
]
Out = Annotated[Path | None, Option("--out", "-o", help="Folder for model, card and logs.")]
Pseudo = Annotated[Path | None, Option("--pseudo-labels", help="HDF5 of an ensemble's logits.")]
Teacher = Annotated[str | None, Option("--teacher", help="Frozen one; none: the preset's.")]
MaxSteps = Annotated[int | None, Option(min=1, help="The run has no more steps.")]
StepsScale = Annotated[float, Option(help="All steps times this.")]
PrecisionName = Annotated[str | None, Option("--precision", help="fp32 or bf16; else preset's.")]
CorpusSize = Annotated[int | None, Option(min=1, help="Clips, for a plan without a corpus.")]
ClipsPerS = Annotated[float | None, Option(help="Throughput for the plan; none: measured here.")]


def pretrain(
    preset: Preset = None,
    list_: List = False,
    corpus: Corpus = None,
    weak_corpus: WeakCorpus = None,
    valid: Valid = None,
    evaluation: Evaluation = None,
    checkpoint: Start = None,
    backbone: Backbone = None,
    image_weights: Images = None,
    out: Out = None,
    pseudo_labels: Pseudo = None,
    teacher: Teacher = None,
    max_steps: MaxSteps = None,
    steps_scale: StepsScale = 1.0,
    seed: Seed = 0,
    device: Device = "auto",
    devices: Devices = None,
    num_nodes: Nodes = None,
    precision: PrecisionName = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    logger: LoggerName = None,
    save_every: SaveEvery = None,
    set_: Set = None,
    dry_run: DryRun = False,
    corpus_size: CorpusSize = None,
    clips_per_s: ClipsPerS = None,
) -> None:
    """Pre-train a checkpoint by a recipe; --list names the recipes."""
    if list_:
        print_list()
        return
    if preset is None:
        raise ValueError("give --preset NAME; --list names them")
    recipe = _recipe(preset, set_ or [], precision)
    place = place_of(
        out or Path(),
        device=device,
        devices=devices,
        num_nodes=num_nodes,
        batch_size=batch_size,
        workers=workers,
        logger=logger,
        save_every=save_every,
    )
    scale = {"steps_scale": steps_scale, "max_steps": max_steps}
    from pretraining.sources import Sources

    sources = Sources(
        corpus,
        weak_corpus,
        valid,
        evaluation,
        checkpoint,
        backbone,
        pseudo_labels,
        teacher,
        image_weights,
    )
    if dry_run:
        print_plan(recipe, sources, corpus_size, clips_per_s, place, **scale)
        return
    check_processes(place)
    if corpus is None:
        raise ValueError("nothing to learn from: give --corpus DIR, made by `corpus`")
    if out is None:
        raise ValueError("give --out DIR for the model")
    from pretraining.run import Run

    train(Run(recipe, sources, out, place, seed, **scale))


def _recipe(preset: str, settings: list[str], precision: str | None) -> Recipe:
    recipe = with_settings(get_preset(preset), settings, fixed=("name", "reproduces"))
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(unknown("precision", precision, PRECISIONS))
    return recipe if precision is None else replace(recipe, precision=precision)


def train(job: Run) -> None:  # noqa: F821
    """Run it under a progress bar, then say where the model is."""
    from pretraining.run import run

    with progress_bar(job.recipe, job.plan.n_steps) as tell:
        made = run(replace(job, tell=tell))
    if made is None:
        return
    fitted = made.fitted
    name = "mAP" if job.recipe.stage == "weak" else "PSDS1"
    scored = f"{name} {fitted.valid_score:.4f}" if job.valid is not None else "not validated"
    print(f"{fitted.n_steps} steps, loss {fitted.loss:.4f}, {scored}")
    print(made.path)


@contextmanager
def progress_bar(recipe: Recipe, n_steps: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, with clips/s and the time that is left."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    per_step = recipe.batch_pieces + (recipe.weak_pieces or 0)
    with bar:
        number = bar.add_task(recipe.name, total=n_steps, rate="")
        started: list[tuple[float, int]] = []

        def tell(line: str) -> None:
            step = int(line.split()[1])
            started.append((time.monotonic(), step))
            del started[1:-50]  # the first, and the last ones
            (then, before), (now, last) = started[-min(50, len(started))], started[-1]
            rate = (
                f"{per_step * (last - before) / (now - then):.1f} clips/s" if last > before else ""
            )
            bar.update(number, description=line, completed=step, rate=rate)

        yield tell


def print_list() -> None:
    """The presets."""
    table = Table("preset", "reproduces", "published", box=None)
    for name, recipe in PRESETS.items():
        table.add_row(name, recipe.reproduces, recipe.published)
    Console().print(table)


def print_plan(
    recipe: Recipe,
    sources: Sources,  # noqa: F821
    corpus_size: int | None,
    clips_per_s: float | None,
    place: Place,
    **scale: float | int | None,
) -> None:
    """The plan of a run; what is given of its sources has to be what a run would take."""
    from pretraining.sources import Given

    recipe = with_start(recipe, sources.checkpoint, sources.backbone)
    check_image_weights(sources.image_weights, sources.backbone)
    given = Given(recipe, sources)
    given.check()
    n_classes, n_weak_clips = recipe.n_classes, None
    if sources.corpus is not None:
        n_classes = len(given.corpus.labels)
        corpus_size = corpus_size or drawable(recipe.sampling, given.corpus)
    if corpus_size is None:
        raise ValueError("--dry-run needs --corpus DIR or --corpus-size N")
    if given.weak_corpus is not None:
        n_weak_clips = drawable(recipe.weak_sampling, given.weak_corpus)
    if clips_per_s is not None and not 0 < clips_per_s < math.inf:
        raise ValueError(f"clips_per_s is {clips_per_s}; it is above 0")
    images = sources.image_weights
    model = random_start(recipe, sources.backbone, n_classes, image_weights=images)
    model, teacher = model.to(place.device), None
    if given.teacher_name is not None:
        teacher = build_checkpoint(get_checkpoint(given.teacher_name)).to(place.device)
    world = place.n_devices * place.n_nodes
    place = replace(place, micro_pieces=place.micro_pieces or max(1, recipe.batch // world))
    plan = recipe.plan(recipe.epoch_of(corpus_size), **scale)
    outlook = Outlook(
        recipe, plan, corpus_size, model, place, clips_per_s, teacher, n_weak_clips=n_weak_clips
    )
    Console().print(outlook.table())
    print(*outlook.lines(), sep="\n")


def drawable(sampling: str, corpus: Corpus) -> int:  # noqa: F821
    """Clips of a corpus that a sampling draws."""
    return n_drawable(weights_of(sampling, corpus.index, len(corpus.labels)), len(corpus))
