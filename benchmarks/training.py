"""Training steps of pre-training as ratios in one run: clips/s, share of the peak, memory.

    python -m benchmarks.training [--backbones fmn04 psla ...] [--rounds 3] [--clips N]

A row is a shipped preset on its backbone at random weights: its classes, loss, augmentation and
optimiser. Its batch is cut to `--clips` clips of 10 s without accumulation (8 for CNNs, 4 for
transformers), which costs a clip as much as a whole batch does; reading audio is not in it
(`benchmarks.data_path` has that). "ours" is `Learner.training_step` as a run calls it; "plain" is
the same arithmetic as a loop: the same augmentation, front end, loss, optimiser and gradient norm,
without channels-last and without a look at what is finite. Both learn from the same clips, in turn;
their ratio is of clips/s.

The share of the peak is (three times the forward pass's multiply-accumulates x 2) / time / (the
2048^3 product in fp32 measured beside it). Memory is what the process held at most over its weights
in two steps, once with "ours" alone; beside it what `training.estimate` says for gradients,
moments, batch and activations. Each row is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.embed import clips, ratio
from benchmarks.measure import interleaved, machine, peak_gflops, spread
from benchmarks.memory import forget_peak, held_gb, peak_gb
from hear_pretrainedsed.complexity import count
from hear_pretrainedsed.events import GRID
from hear_pretrainedsed.model import SEDModel, build_model
from hear_pretrainedsed.options import PRECISIONS
from hear_pretrainedsed.registry import get_checkpoint
from hear_pretrainedsed.training.batch import Batch
from hear_pretrainedsed.training.chance import generator_for, seed_of
from hear_pretrainedsed.training.estimate import memory
from hear_pretrainedsed.training.learner import Learner
from hear_pretrainedsed.training.mask_value import mask_value
from hear_pretrainedsed.training.optimizer import make_optimizer
from hear_pretrainedsed.training.plan import Place, Plan
from hear_pretrainedsed.training.stream import Stream
from pretraining.build import random_start
from pretraining.config import Recipe, sequence_of
from pretraining.objectives import objective
from pretraining.presets import PRESETS, TRANSFORMERS

#: row -> preset, and the backbone where the preset names none
ROWS: dict[str, tuple[str, str | None]] = {
    "fmn04": ("fmn_student-fmn04", None),
    "fmn06": ("fmn_student-fmn06", None),
    "fmn10": ("fmn_student-fmn10", None),
    "fmn20": ("fmn_student-fmn20", None),
    "fmn30": ("fmn_student-fmn30", None),
    "fmn10+tf-256": ("fmn_student-fmn10+tf-256", None),
    "psla": ("weak-psla-audioset", "psla"),
    **{name: (f"strong_student-{name}", None) for name in TRANSFORMERS},
    "atst_f+gru-2048": ("strong_teacher-atst_f", None),
}
N_CLIPS = {name: 4 for name in ROWS if name.startswith(TRANSFORMERS)}  # else 8
_SAME = 0.02  # how far the first losses may be apart: dropout draws in the order of memory


@dataclass(frozen=True)
class Clips:
    """Clips of every step, as a run's material names them."""

    n_pieces: int
    seed: int = 0

    def step(self, step: int) -> Sequence[int]:
        """The same clips each time."""
        return range(self.n_pieces)

    def name(self, item: int) -> str:
        """What a clip is called."""
        return f"clip {item}"


class Alone(Learner):
    """A learner outside of Lightning's trainer, in one process: its steps are called one by one."""

    def begin(self) -> None:
        """What a trainer does before the first step."""
        self._trainer: Any = SimpleNamespace(
            world_size=1, global_rank=0, is_global_zero=True, loggers=[]
        )
        made = self.configure_optimizers()
        self._optimizer, self._schedule = made["optimizer"], made["lr_scheduler"]
        self._training_mode()

    @property
    def trainer(self) -> Any:
        """What a step asks its trainer."""
        return self._trainer

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """The optimiser itself."""
        return self._optimizer

    def lr_schedulers(self) -> Any:
        """The schedule."""
        return self._schedule

    def manual_backward(self, loss: Tensor, *args: object, **kwargs: object) -> None:
        """Without gradient scaling."""
        loss.backward()


@dataclass
class PlainLoop:
    """The same steps written down one after the other."""

    model: SEDModel
    stream: Stream
    plan: Plan
    step: int = 0
    loss: float = 0.0

    def __post_init__(self) -> None:
        self.optimizer, factor = make_optimizer(self.model, self.plan)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.model.train()

    def __call__(self, batch: Batch) -> None:
        """One step."""
        torch.manual_seed(seed_of(0, "step", self.step, 0))
        generator = generator_for(0, "augment", self.step)
        augmentation, frontend = self.stream.augmentation, self.model.frontend
        with torch.no_grad():
            batch = augmentation.on_audio(batch, generator)
            if augmentation.draw_mel_edges:
                frontend = frontend.with_drawn_edges(generator)
            augmentation = augmentation.with_mask_value(mask_value(self.model.frontend))
            batch = augmentation.on_spec(replace(batch, spec=frontend(batch.audio)), generator)
        loss = self.stream.loss(self.model, batch).mean()
        loss.backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.plan.gradient_clip is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.plan.gradient_clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.step += 1
        self.loss = loss.item()


def recipe_of(name: str) -> tuple[Recipe, str]:
    """The preset of a row and its backbone."""
    preset, backbone = ROWS[name]
    recipe = PRESETS[preset]
    return recipe, backbone or get_checkpoint(str(recipe.start)).backbone


def batch_of(recipe: Recipe, n_clips: int) -> Batch:
    """Clips with what a recipe learns of them, drawn at random."""
    generator = torch.Generator().manual_seed(1)
    shape = (n_clips, GRID.window_frames, recipe.n_classes)
    strong, pseudo = (torch.rand(shape, generator=generator) for _ in range(2))
    is_strong = recipe.stage == "strong"
    return Batch(
        clips(n_clips),
        targets=(strong > 0.99).float() if is_strong else None,
        weak=(strong[:, 0] > 0.99).float(),
        pseudo=pseudo**8 if recipe.pseudo is not None else None,
    )


def gflops_per_clip(recipe: Recipe, backbone: str) -> float:
    """Floating-point operations of one clip's step, in 1e9: forward, and twice that backward."""
    sequence = sequence_of(recipe.sequence_model) if recipe.sequence_model else None
    if sequence is None and "+" in (recipe.start or ""):
        sequence = sequence_of(str(recipe.start).partition("+")[2])
    with torch.device("meta"):
        model = build_model(
            backbone, sequence_model=sequence, head=recipe.head, n_classes=recipe.n_classes
        )
    return 3 * 2 * count(model).macs_with_attention / 1e9


def half(recipe: Recipe) -> AbstractContextManager[object]:
    """The precision of a recipe, which Lightning sets around a step."""
    if recipe.precision == "fp32":
        return nullcontext()
    return torch.autocast("cpu", PRECISIONS[recipe.precision])


def measure(name: str, n_clips: int, rounds: int) -> dict[str, object]:
    """All figures of a row; lists are one value a round."""
    recipe, backbone = recipe_of(name)
    recipe = replace(recipe, batch=n_clips, accumulation=1)
    plan = recipe.plan(100_000)
    loss = objective(recipe.objective, distillation_weight=recipe.distillation_weight)
    stream = Stream(Clips(n_clips), recipe.augmentation, loss)
    batch = batch_of(recipe, n_clips)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), micro_pieces=n_clips, logger=None)
        model = random_start(recipe, backbone, recipe.n_classes)
        learner = Alone(model, [stream], plan, place, lambda _: 0.0, lambda _: None)
        learner.begin()
        forget_peak()
        before = held_gb()

        def ours() -> None:
            with half(recipe):
                learner.training_step([batch], 0)

        ours()
        first = learner.progress.loss
        ours()
        memory_gb = peak_gb() - before
        plain = PlainLoop(random_start(recipe, backbone, recipe.n_classes), stream, plan)

        def loop() -> None:
            with half(recipe):
                plain(batch)

        loop()
        if abs(plain.loss - first) > _SAME * abs(first):
            raise SystemExit(f"{name}: the losses are {first} and {plain.loss}: not the same step")
        peaks: list[float] = []
        jobs: dict[str, Callable[[], object]] = {
            "peak": lambda: peaks.append(peak_gflops(torch.float32)),
            "ours": ours,
            "plain": loop,
        }
        times = interleaved(jobs, rounds)
        fresh = random_start(recipe, backbone, recipe.n_classes).train()
        need = memory(fresh, plan, place)
    weights = sum(p.numel() for p in fresh.parameters()) * 4
    work, peak = gflops_per_clip(recipe, backbone), statistics.median(peaks)
    return {
        "name": name,
        "preset": recipe.name,
        "n_clips": n_clips,
        "clips_per_s": [n_clips / t for t in times["ours"]],
        "share": [n_clips * work / t / peak for t in times["ours"]],
        "gain_on_plain": ratio(times["plain"], times["ours"]),
        "peak": peak,
        "memory_gb": memory_gb,
        "estimate_gb": (need.total - weights) / 2**30,
        "losses": [first, plain.loss],
    }


def in_a_process(name: str, n_clips: int, rounds: int, threads: int) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training", "--only", name]
    command += ["--clips", str(n_clips), "--rounds", str(rounds), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {(done.stderr.strip().splitlines() or ['it was ended'])[-1]}")
    return json.loads(done.stdout)


def cells(row: dict[str, Any]) -> list[str]:
    """A row as text."""
    figures = (row["clips_per_s"], row["share"], row["gain_on_plain"])
    return [
        row["name"],
        row["preset"],
        str(row["n_clips"]),
        *map(spread, figures),
        f"{row['memory_gb']:.2f}",
        f"{row['estimate_gb']:.2f}",
    ]


def main() -> None:
    """Measure each row in its own process and print it; then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, help="in a step; none: 8, of transformers 4")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=ROWS, help=argparse.SUPPRESS)  # the child process
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.only:
        row = measure(given.only, given.clips or N_CLIPS.get(given.only, 8), given.rounds)
        sys.stdout.write(json.dumps(row))
        return
    console = Console(width=150)
    columns = "backbone|preset|clips|clips/s|share of peak|ours / plain|memory GiB|estimate GiB"
    table = Table(*columns.split("|"), title=f"median (range) of {given.rounds} rounds, fp32")
    peaks = []
    for name in given.backbones:
        n_clips = given.clips or N_CLIPS.get(name, 8)
        row = in_a_process(name, n_clips, given.rounds, given.threads)
        console.print("  ".join(cells(row)), style="dim")
        table.add_row(*cells(row))
        peaks.append(row["peak"])
    console.print(table)
    console.print(f"{machine()}; peak {spread(peaks, 0)} GFLOP/s")


if __name__ == "__main__":
    main()
