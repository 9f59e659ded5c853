"""The main job on a small task: a checkpoint under every protocol, its scores, its events.

    make demo            or            python examples/demo.py [--output FOLDER]

Makes a small task in HEAR's format out of synthetic sounds, evaluates a checkpoint on it as
`hear-pretrainedsed evaluate` does, sets the same protocols on a plain log-mel spectrogram and
events at random beside it, and draws what was found in one recording. Needs no network.
With a published checkpoint in the cache folder (`hear-pretrainedsed fetch NAME`) it uses that one
(a large network takes some minutes); else stand-in weights, made by a formula: then the frames are
random features. A second run finds the first one's results and goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT))  # it runs in a checkout where nothing is installed, too

import hear_task  # noqa: E402
import numpy as np  # noqa: E402
import references  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from downstream import results, sweep  # noqa: E402
from downstream.cells import Cell  # noqa: E402
from downstream.evaluate import Screen  # noqa: E402
from downstream.protocols import Settings  # noqa: E402
from downstream.tasks import Clip, Task, open_task  # noqa: E402
from downstream.tasks.task import Triple  # noqa: E402
from hear_pretrainedsed import load_model, user_registry  # noqa: E402
from hear_pretrainedsed.audio import read_audio  # noqa: E402
from hear_pretrainedsed.events import GRID, Event, events_to_frames, write_tsv  # noqa: E402
from hear_pretrainedsed.fetch import find  # noqa: E402
from hear_pretrainedsed.picture import draw  # noqa: E402
from hear_pretrainedsed.registry import CHECKPOINTS  # noqa: E402
from hear_pretrainedsed.rule_weights import write_release_file  # noqa: E402

#: Random weights: of the small networks that protocol best trains on in a minute, this one's early
#: blocks serve best.
STAND_IN, STAND_IN_FOR = "fmn04.strong-random", "fmn04.strong"
RUNS = (("hear", "knn"), ("hear", "probe"), ("paper", "probe"), ("best", "probe"))
SETTINGS = Settings(grid="faster", grid_points=8)
METRICS = """\
event_onset_200ms_fms: F of events, right if class and onset (within 200 ms) are; 1 is perfect
segment_1s_er: wrong, missed and false classes in segments of 1 s; to say nothing at all has 1"""


def published() -> str | None:
    """The published strong checkpoint in the cache folder that is the smallest file."""
    found = {name: find(facts.file) for name, facts in CHECKPOINTS.items() if facts.psds1}
    there = {name: path.stat().st_size for name, path in found.items() if path}
    return min(there, key=there.__getitem__, default=None)


def stand_in(cache: Path) -> str:
    """A checkpoint of random weights, in a cache folder of the demo's own."""
    cache.mkdir(parents=True, exist_ok=True)
    os.environ["HEAR_PRETRAINEDSED_HOME"] = str(cache)
    if STAND_IN not in CHECKPOINTS:
        user_registry.add_imported()
    if STAND_IN not in CHECKPOINTS:
        made = write_release_file(STAND_IN_FOR, cache / "rule_made.pt")
        user_registry.import_checkpoint(made, STAND_IN)
        made.unlink()
    return STAND_IN


def described(checkpoint: str) -> str:
    """What a reader has to know about the numbers."""
    if checkpoint != STAND_IN:
        return f"{checkpoint}: trained weights, frozen"
    return (
        f"{checkpoint}: no published weights at hand, so these frames are RANDOM features "
        "(protocols hear and paper take the last block, best takes all of them)"
    )


def shown(path: Path) -> str:
    """A path as one would type it here."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def evaluate(checkpoint: str, folder: Path, output: Path) -> tuple[list[Cell], int]:
    """The finished cells, and how many of them an earlier run has left."""
    n_known = len(results.read(output / "results"))
    place = sweep.Place(output / "results", output / "frames", SETTINGS)
    todo = sweep.jobs([checkpoint], [str(folder)], RUNS, 1, None, False)
    screen = Screen(len(todo))
    with screen.bar:
        sweep.work(todo, place, screen.tell, screen.done)
    if screen.n_failed:
        sys.exit(1)
    n_new = len(results.read(output / "results")) - n_known
    return screen.cells, len(todo) - n_new


@dataclass(frozen=True)
class Found:
    """What a cell says about one test clip."""

    clip: Clip
    events: list[Event]
    scores: np.ndarray  # (frames, classes)


def found_in_one(cell: Cell, task: Task, folder: Path) -> Found:
    """What was found in the test clip with the most events, as the results folder holds it."""
    scores, events = results.read_arrays(folder, cell.id)
    clip = max(task.clips("test"), key=lambda clip: len(clip.events))
    values = scores[clip.file]
    return Found(clip, [_with_score(x, values, task) for x in events[clip.file]], values)


def _with_score(event: Triple, scores: np.ndarray, task: Task) -> Event:
    inside = events_to_frames([event], task.labels, len(scores)) > 0
    return Event(*event, float(scores[inside].mean()))


def draw_found(found: Found, task: Task, cell: Cell, output: Path) -> Path:
    """Picture and table of what was found."""
    write_tsv(output / "recording.tsv", {found.clip.file: found.events})
    title = f"{found.clip.file}: {cell.checkpoint}, protocol {cell.protocol}, {cell.mode}"
    audio = read_audio(found.clip.path)
    picture = output / "recording.png"
    draw(audio, GRID.sample_rate, found.events, picture, found.scores, task.labels, title)
    return picture


def events_table(found: Sequence[Event], made: Sequence[Triple], title: str) -> Table:
    """Found events beside those that the recording was made of."""
    table = Table(title=title, title_justify="left")
    for name in ("onset s", "offset s"):
        table.add_column(name, justify="right")
    table.add_column("label")
    table.add_column("score", justify="right")
    table.add_column("in the recording")
    left = list(made)
    rows: list[tuple[float, tuple[str, ...]]] = []
    for event in found:
        near = [m for m in left if m[2] == event.label and abs(m[0] - event.onset_s) <= 0.2]
        if near:
            left.remove(near[0])
        truth = f"at {near[0][0]:.2f} s" if near else "no"
        times = (f"{event.onset_s:.2f}", f"{event.offset_s:.2f}")
        rows.append((event.onset_s, (*times, event.label, f"{event.score:.2f}", truth)))
    rows += [(m[0], ("", "", m[2], "", f"at {m[0]:.2f} s: missed")) for m in left]
    for _, cells in sorted(rows):
        table.add_row(*cells)
    return table


class Demo:
    """The whole demo, told step by step."""

    def __init__(self, output: Path, console: Console) -> None:
        self.output, self.console = output, console
        self.begun = time.monotonic()

    def say(self, text: str) -> None:
        """Print lines as they are."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def step(self, text: str) -> Iterator[Callable[[str], None]]:
        """Tell of a step and the seconds that it took, and what is added to it."""
        start, added = time.monotonic(), []
        yield added.append
        seconds = time.monotonic() - start
        self.say(f"{seconds:6.1f} s  {' '.join((text, *added))}")

    def run(self, n_clips: Mapping[str, int] = hear_task.N_CLIPS) -> list[Cell]:
        """From sounds to a table and a picture; the cells of the table."""
        output = self.output
        with self.step(f"made a task of synthetic sounds in {shown(output / 'tasks')}"):
            folder = hear_task.write_task(output / "tasks", dict(n_clips))
            task = open_task(folder)
        checkpoint = published() or stand_in(output / "cache")
        self.say(f"{'':8}  {described(checkpoint)}")
        with self.step("its frames; protocols hear, paper and best on them") as add:
            cells, n_known = evaluate(checkpoint, folder, output)
            if n_known:
                again = f"remove {shown(output)} to run all anew"
                add(f"({n_known} of {len(RUNS)} results are of an earlier run: {again})")
        with self.step("the same on a log-mel spectrogram; events at random"):
            mel = references.log_mel(task, load_model(checkpoint=checkpoint))
            beside = references.rows(cells, task, mel, SETTINGS)
        self.console.print(results.results_table([*cells, *beside]))
        self.say(METRICS)
        self.show_one(cells, task)
        self.say(f"{time.monotonic() - self.begun:6.1f} s  in all")
        self.hint(checkpoint, folder)
        return [*cells, *beside]

    def show_one(self, cells: Sequence[Cell], task: Task) -> None:
        """Events of one recording, by the probe that was best on valid."""
        probes = [cell for cell in cells if cell.mode == "probe"]
        best = max(probes, key=lambda cell: cell.chosen[0]["valid_score"])
        found = found_in_one(best, task, self.output / "results")
        picture = draw_found(found, task, best, self.output)
        title = (
            f"{found.clip.file}, protocol {best.protocol}\n"
            f"{len(found.events)} events found, {len(found.clip.events)} are in it"
        )
        self.console.print(events_table(found.events, found.clip.events, title))
        self.say(f"picture: {shown(picture)}, events: {shown(picture.with_suffix('.tsv'))}")

    def hint(self, checkpoint: str, folder: Path) -> None:
        """How the same is had from the command line."""
        own = checkpoint == STAND_IN
        words = (
            [f"HEAR_PRETRAINEDSED_HOME={shlex.quote(shown(self.output / 'cache'))}"] if own else []
        )
        words += ["hear-pretrainedsed evaluate --checkpoints", checkpoint]
        words += ["--tasks", shlex.quote(shown(folder)), "--protocols hear,paper,best"]
        self.say("\nthe same by the command (minutes: all of heareval's grid):")
        self.say(" ".join([*words, "--modes probe,knn --results results"]))
        if own:
            self.say("with trained weights: hear-pretrainedsed fetch fmn04.strong, then this again")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "demo")
    demo = Demo(parser.parse_args(arguments).output, Console())
    warnings.showwarning = lambda message, *_, **__: demo.say(f"{'':8}  {message}")
    # its products are small: threads that wait for a busy core cost more than they bring
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    demo.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
