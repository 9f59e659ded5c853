"""Score checkpoints with stock heareval: embeddings, predictions, and a table of test scores.

    make hear CHECKPOINTS="atst_f.strong frame_mn*" TASKS="office*"
    .venv/bin/python tools/hear.py --checkpoints ... --tasks ... --weights rule

heareval 2021.1.3 runs unmodified, one process a step, in the way its README says. What is done is
kept in the output folder and used again while checkpoint, weights, options and task are the same;
delete a task's folder there to do it anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

from hear_pretrainedsed import __version__
from hear_pretrainedsed.fetch import FetchError, fetch
from hear_pretrainedsed.model import Options
from hear_pretrainedsed.records import known_sha256
from hear_pretrainedsed.registry import CHECKPOINTS, get_checkpoint, unknown
from hear_pretrainedsed.rule_weights import write_release_file

ROOT = Path(__file__).resolve().parents[1]
TASKS_DIR = ROOT.parent / "shared" / "data" / "tasks"
DEFAULT_CHECKPOINTS = ("atst_f.strong", "frame_mn10.strong")  # a transformer and a MobileNet
MADE_BY = "made_by.json"
N_TAIL = 20
STAND_IN = (
    "RULE-MADE WEIGHTS, not trained ones: random features. These scores show that the tools run; "
    "they say nothing about the published checkpoints."
)


class StockError(Exception):
    """A stock tool failed; the text is the end of its log."""


@dataclass(frozen=True)
class Settings:
    """What all runs of one call share."""

    output: Path
    weights: str  # "published" or "rule"
    options: dict[str, object]  # for load_model
    grid: str
    grid_points: int


@dataclass(frozen=True)
class Row:
    """One line of the table; times are those of the run that made the result."""

    checkpoint: str
    task: str
    scores: dict[str, str]
    embeddings_s: float
    predictions_s: float


def select(what: str, wanted: Sequence[str], names: Iterable[str]) -> list[str]:
    """Names that match the wanted names or patterns; `ValueError` for one that matches none."""
    names, found = list(names), {}
    for pattern in wanted:
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            raise ValueError(unknown(what, pattern, names))
        found |= dict.fromkeys(matches)
    return list(found)


def read_options(text: str) -> dict[str, object]:
    """`--model-options`: a JSON object whose names `load_model` takes."""
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--model-options is no JSON: {error}") from None
    if not isinstance(options, dict):
        raise ValueError(f"--model-options is {text}; it has to be a JSON object")
    allowed = [field.name for field in fields(Options)]
    for name in options:
        if name not in allowed:
            raise ValueError(unknown("option", name, allowed))
    return options


def find_tasks(tasks_dir: Path | None, wanted: Sequence[str] | None) -> list[Path]:
    """Task folders: those in `tasks_dir` that match, or all."""
    if tasks_dir is None and not TASKS_DIR.is_dir():
        raise ValueError("no tasks: give a folder of HEAR task folders as --tasks-dir")
    tasks_dir = (tasks_dir or TASKS_DIR).resolve()
    names = sorted(path.parent.name for path in tasks_dir.glob("*/task_metadata.json"))
    if not names:
        raise ValueError(f"--tasks-dir {tasks_dir} holds no HEAR task (task_metadata.json)")
    return [tasks_dir / name for name in (select("task", wanted, names) if wanted else names)]


@dataclass(frozen=True)
class Weights:
    """A checkpoint's file, and what tells its bytes from others'."""

    checkpoint: str
    path: Path
    identity: str  # a sha256, or "rule"

    def file(self) -> Path:
        """The path; a stand-in is written when first wanted."""
        if self.identity == "rule" and not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_release_file(self.checkpoint, self.path)
        return self.path


def find_weights(checkpoint: str, settings: Settings) -> Weights:
    """The published file, fetched if need be, or a stand-in; `ValueError` if there is none."""
    facts = get_checkpoint(checkpoint)
    if settings.weights == "rule":
        return Weights(checkpoint, settings.output / "rule" / "weights" / facts.file, "rule")
    try:
        path = fetch(facts.file, facts.url, facts.sha256).resolve()
    except FetchError as error:
        raise ValueError(f"{error}. Stand-in weights need no file: --weights rule") from None
    return Weights(checkpoint, path, known_sha256(path))


def run_stock(module: str, arguments: Sequence[object], log: Path, **environment: str) -> float:
    """Run a module of heareval with the GPU hidden; returns seconds, raises `StockError`."""
    # tensorflow-cpu, which heareval imports, refuses to work beside a visible GPU
    hidden = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("w") as file:
        done = subprocess.run(
            command,
            env=os.environ | hidden | environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        lines = re.split(r"[\r\n]+", log.read_text(errors="replace").strip())
        tail = "\n".join(f"  | {line}" for line in lines[-N_TAIL:])
        raise StockError(f"{module} failed (exit {done.returncode}); the end of {log}:\n{tail}")
    return time.monotonic() - start


def task_digest(task: Path) -> str:
    """What identifies a task's content: its tables, and the names and sizes of its files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in task.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(task)} {path.stat().st_size}\n".encode())
        if path.suffix in (".json", ".csv"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def embed(weights: Weights, task: Path, settings: Settings) -> Path:
    """Have embeddings of a task; returns their folder, with a record of what made them."""
    # A folder of our own for each set of options: heareval's name for them drops signs, so that
    # layer -1 and layer 1 would share one.
    options = json.dumps(settings.options, sort_keys=True)
    key = re.sub(r"[^\w.,=-]+", "", options.replace(":", "=")) or "default"
    base = settings.output / settings.weights / weights.checkpoint / key
    inputs = {
        "checkpoint": weights.checkpoint,
        "weights": weights.identity,
        "options": settings.options,
        "task": task_digest(task),
        "version": __version__,
    }
    for folder in base.glob(f"*/{task.name}"):
        if read_record(folder).get("inputs") == inputs:
            return folder
        shutil.rmtree(folder)
    module = f"hear_pretrainedsed.{get_checkpoint(weights.checkpoint).module}"
    arguments = [module, "--model", weights.file(), "--tasks-dir", task.parent]
    arguments += ["--task", task.name, "--embeddings-dir", base, "--model-options", options]
    # A stand-in has a published name: its hash stays out of the user's records.
    home = {}
    if settings.weights == "rule":
        home["HEAR_PRETRAINEDSED_HOME"] = str(weights.path.parent)
    log = settings.output / "logs" / f"{weights.checkpoint}-{task.name}-embeddings.log"
    seconds = run_stock("heareval.embeddings.runner", arguments, log, **home)
    (folder,) = base.glob(f"*/{task.name}")
    write_record(folder, {"inputs": inputs, "embeddings_s": seconds})
    return folder


def predict(checkpoint: str, task: Path, folder: Path, settings: Settings) -> None:
    """Have heareval's scores in an embeddings folder."""
    grid = {"grid": settings.grid, "grid_points": settings.grid_points}
    record = read_record(folder)
    if record.get("prediction") == grid and (folder / "test.predicted-scores.json").is_file():
        return
    for name in ("prediction-done.json", "test.predicted-scores.json"):
        (folder / name).unlink(missing_ok=True)
    seconds = run_stock(
        "heareval.predictions.runner",
        [folder, "--grid", settings.grid, "--grid-points", settings.grid_points],
        settings.output / "logs" / f"{checkpoint}-{task.name}-predictions.log",
        OMP_NUM_THREADS="1",  # scores depend on the number of threads, and one is fastest
        TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1",  # its checkpoints hold its own classes
    )
    write_record(folder, record | {"prediction": grid, "predictions_s": seconds})


def read_record(folder: Path) -> dict:
    """What made a folder; empty if it was never finished."""
    try:
        return json.loads((folder / MADE_BY).read_text())
    except FileNotFoundError:
        return {}


def write_record(folder: Path, record: dict) -> None:
    """Write what made a folder, whole or not at all."""
    part = folder / f"{MADE_BY}.part"
    part.write_text(json.dumps(record, indent=1))
    part.replace(folder / MADE_BY)


def read_scores(folder: Path) -> dict[str, str]:
    """The test score of each of the task's measures; mean and deviation where there are folds."""
    results = json.loads((folder / "test.predicted-scores.json").read_text())
    names = json.loads((folder / "task_metadata.json").read_text())["evaluation"]
    if "aggregated_scores" in results:
        over = results["aggregated_scores"]
        return {n: f"{over[f'test_{n}_mean']:.3f} ±{over[f'test_{n}_std']:.3f}" for n in names}
    return {n: f"{results['test'][f'test_{n}']:.3f}" for n in names}


def evaluate(weights: Weights, task: Path, settings: Settings) -> Row:
    """One checkpoint on one task."""
    folder = embed(weights, task, settings)
    predict(weights.checkpoint, task, folder, settings)
    record = read_record(folder)
    times = (record["embeddings_s"], record["predictions_s"])
    return Row(weights.checkpoint, task.name, read_scores(folder), *times)


def table(rows: Sequence[Row]) -> str:
    """Rows as text, one block a set of measures."""
    blocks: dict[tuple[str, ...], list[list[str]]] = {}
    for row in rows:
        times = [f"{row.embeddings_s:.0f} s", f"{row.predictions_s:.0f} s"]
        line = [row.checkpoint, row.task, *row.scores.values(), *times]
        blocks.setdefault(tuple(row.scores), []).append(line)
    texts = []
    for names, lines in blocks.items():
        lines = [["checkpoint", "task", *names, "embeddings", "predictions"], *lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            pairs = list(zip(line, widths, strict=True))
            left, right = pairs[:2], pairs[2:]
            cells = [c.ljust(w) for c, w in left] + [c.rjust(w) for c, w in right]
            texts.append("  ".join(cells))
        texts.append("")
    return "\n".join(texts).rstrip()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; options are described in its --help."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--checkpoints", nargs="+", default=DEFAULT_CHECKPOINTS, help="names or patterns")
    add("--tasks", nargs="+", help="folder names or patterns; default: all")
    add("--tasks-dir", type=Path, help="folder of HEAR tasks; default: ../shared/data/tasks")
    add("--weights", choices=("published", "rule"), default="published", help="rule: stand-ins")
    add("--model-options", default="{}", help="JSON object for load_model")
    add("--grid", choices=("default", "fast", "faster"), default="default", help="of heareval")
    add("--grid-points", type=int, default=8, help="of heareval")
    add("--output", type=Path, default=ROOT / "build" / "hear", help="embeddings, scores, logs")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 if a stock tool failed; 2 for a mistake in the arguments."""
    given = parse(arguments)
    if find_spec("heareval") is None:
        print("hear: heareval is not installed here; `make hear` sets it up", file=sys.stderr)
        return 2
    try:
        checkpoints = select("checkpoint", given.checkpoints, CHECKPOINTS)
        tasks = find_tasks(given.tasks_dir, given.tasks)
        options = read_options(given.model_options)
        names = [field.name for field in fields(Settings)]
        chosen = {name: getattr(given, name) for name in names if name != "options"}
        settings = Settings(**chosen | {"output": given.output.resolve()}, options=options)
        return run_all(checkpoints, tasks, settings)
    except ValueError as error:
        print(f"hear: {error}", file=sys.stderr)
        return 2


def run_all(checkpoints: Sequence[str], tasks: Sequence[Path], settings: Settings) -> int:
    """Every checkpoint on every task, and the table of what succeeded."""
    rows: list[Row] = []
    n_failed = 0
    if settings.weights == "rule":
        print(STAND_IN, flush=True)
    for checkpoint in checkpoints:
        try:
            weights = find_weights(checkpoint, settings)
        except ValueError as error:
            n_failed += 1
            print(f"hear: {checkpoint}: {error}", file=sys.stderr, flush=True)
            continue
        for task in tasks:
            print(f"{checkpoint} on {task.name}", flush=True)
            try:
                rows.append(evaluate(weights, task, settings))
            except StockError as error:
                n_failed += 1
                print(f"hear: {checkpoint} on {task.name}: {error}", file=sys.stderr, flush=True)
        if settings.weights == "rule":
            weights.path.unlink(missing_ok=True)
    if rows:
        facts = f"grid {settings.grid}, {settings.grid_points} points, options {settings.options}"
        print(f"\nTest scores of stock heareval, {settings.weights} weights, {facts}")
        print(f"{table(rows)}\nnan: no event was predicted. Folder: {settings.output}")
    if settings.weights == "rule":
        print(STAND_IN)
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
