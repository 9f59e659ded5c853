"""Jobs (checkpoint x task x protocol x mode x seed) -> cells of a results folder.

Each job is claimed by a lock on the folder's file system, done, and its line appended; so several
processes may work on one folder, each may be killed at any moment, and the same command goes on
where it was. What a killed process had claimed is free again.
"""

from __future__ import annotations

import errno
import fcntl
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from downstream import own_head, results
from downstream.embeddings import FrameSource, Weights, find_weights
from downstream.protocols import PROTOCOLS, Settings
from downstream.scoring import score_task
from downstream.tasks import OWN, TASKS, Facts, LabelChoice, Task, find_task, open_task
from hear_pretrainedsed.memory import out_of_memory
from hear_pretrainedsed.records import cache_folder
from hear_pretrainedsed.registry import unknown

AS_IT_IS = LabelChoice()
WITHOUT_SEEDS = frozenset({"knn"})  # modes in which nothing is random
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
OWN_HEAD = ("paper", "own_head")  # how tasks for evaluation only are scored


@dataclass(frozen=True)
class Job:
    """What one cell is of, in words that another process understands.

    task: a folder, or NAME or NAME:SPLIT below `data`. choice: for recordings of the user's own.
    """

    checkpoint: str
    task: str
    protocol: str
    mode: str
    seed: int
    data: Path | None = None
    strict: bool = False
    choice: LabelChoice = AS_IT_IS

    def __str__(self) -> str:
        task = Path(self.task).name
        return f"{self.checkpoint} {task} {self.protocol} {self.mode} seed {self.seed}"


Tell = Callable[[Job, str], None]  # a job, and a line on where it is
Done = Callable[[Job, results.Cell | None, str], None]  # a job, its cell or None and why


@dataclass(frozen=True)
class Place:
    """Where jobs are done: results, frames that are kept, and settings."""

    results: Path
    embeddings: Path
    settings: Settings


@dataclass(frozen=True)
class _Asked:
    """A job with what its words stand for."""

    weights: Weights
    task: Task
    protocol: str
    mode: str
    seed: int


def jobs(
    checkpoints: Sequence[str],
    tasks: Sequence[str],
    wanted: Sequence[tuple[str, str]],
    n_seeds: int,
    data: Path | None,
    strict: bool,
    choice: LabelChoice = AS_IT_IS,
) -> list[Job]:
    """All combinations, those that share frames together; without seeds where nothing is random.

    On tasks for evaluation only, a checkpoint's own head is scored, whatever else is wanted.
    """
    return [
        Job(checkpoint, task, protocol, mode, seed, data, strict, choice)
        for checkpoint in checkpoints
        for task in tasks
        for protocol, mode in ([OWN_HEAD] if _is_for_evaluation(task) else wanted)
        for seed in range(1 if mode in (*WITHOUT_SEEDS, OWN_HEAD[1]) else n_seeds)
    ]


def _is_for_evaluation(task: str) -> bool:
    facts = TASKS.get(task.partition("=")[0])
    return facts is not None and facts.score_head is not None


@lru_cache(maxsize=64)
def open_named(text: str, data: Path | None, strict: bool, choice: LabelChoice = AS_IT_IS) -> Task:
    """A task by folder, by NAME=FOLDER, or by NAME below the folder of task folders.

    NAME:SPLIT is a task with another split than its own. `choice` is for the user's own recordings.
    """
    if Path(text).is_dir():
        return open_folder(Path(text), strict, choice)
    words, _, given = text.partition("=")
    name, _, split = words.partition(":")
    if name not in TASKS:
        if "/" in words:
            find_task(Path(text))  # says what is wrong with a folder that is none
        raise ValueError(f"{unknown('task', name, TASKS)}; or give a folder")
    folder = Path(given) if given else _folder_of(name, data or cache_folder() / "tasks")
    options = _chosen(TASKS[name], choice) | ({"split": split} if split else {})
    return open_task(name, folder, strict=strict, **options)


def open_folder(folder: Path, strict: bool, choice: LabelChoice) -> Task:
    """A task by its folder."""
    facts, folder = find_task(folder)
    return open_task(facts.name, folder, strict=strict, **_chosen(facts, choice))


def _chosen(facts: Facts, choice: LabelChoice) -> dict[str, str | int]:
    return choice.options() if facts is OWN else {}


def _folder_of(name: str, data: Path) -> Path:
    places = [data / name, *sorted(data.glob(f"{name}-*"))]
    for path in places:
        if path.is_dir():
            return path
    raise ValueError(
        f"no data of {name} in {data}: give its folder as {name}=FOLDER, or the one that it is in "
        "as --data (hear-pretrainedsed build-task makes it from the published archives)"
    )


@lru_cache(maxsize=64)
def weights_of(checkpoint: str) -> Weights:
    """The weights of a checkpoint, looked at once."""
    return find_weights(checkpoint)


def perform(job: Job, place: Place, store: results.Store, wait: bool) -> results.Cell | None:
    """The cell of a job, run now unless it is there.

    None if another process is on it and `wait` is not wanted.
    """
    task = open_named(job.task, job.data, job.strict, job.choice)
    asked = _Asked(weights_of(job.checkpoint), task, job.protocol, job.mode, job.seed)
    key = results.key_of(asked, place.settings)
    if (known := store.finished(key)) is not None:
        return known
    folder = place.results / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with _claimed(folder / f"{key.id}.lock", wait) as mine:
        if not mine:
            return None
        store.refresh()
        if (known := store.finished(key)) is not None:
            return known
        return _run(asked, key, place, store)


def _run(asked: _Asked, key: results.Key, place: Place, store: results.Store) -> results.Cell:
    settings, task = place.settings, asked.task
    if (asked.protocol, asked.mode) == OWN_HEAD:
        cell = own_head.score(asked, key, settings)
        store.append_line(cell)
        return cell

    def embedding(n_done: int, n: int) -> None:
        settings.tell(f"frames of {n_done} of {n} clips")

    clips = task.clips(task.splits)
    where = (place.embeddings, settings.device, embedding, settings.batch_size)
    source = FrameSource(asked.weights, clips, *where)
    start = time.monotonic()
    found = PROTOCOLS[asked.protocol].modes[asked.mode](task, source, settings, asked.seed)
    run_s = time.monotonic() - start
    scored = score_task(task, found)
    seconds = {"run_s": run_s, "scoring_s": time.monotonic() - start - run_s}
    cell = results.make_cell(key, asked, found, scored, seconds, torch.get_num_threads())
    store.append(cell, found)
    return cell


@contextmanager
def _claimed(path: Path, wait: bool) -> Iterator[bool]:
    """Hold this lock if it is free, or when it becomes free; whether it is held."""
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def work(todo: Sequence[Job], place: Place, tell: Tell, done: Done) -> None:
    """All jobs one after the other, those that another process is on at the end.

    A job that fails is told of, and the others go on; a full disk ends them all.
    """
    store = results.Store(place.results)
    busy: list[Job] = []
    for job in todo:
        _one(job, place, store, tell, done, busy)
    for job in busy:
        _one(job, place, store, tell, done, None)


def why_none(error: BaseException) -> str:
    """One line on what a job ended with: of mistakes their own, else the kind and where it was."""
    line = " ".join(f"{error}".split())
    if isinstance(error, ValueError):
        return line
    kind = type(error).__name__
    if isinstance(error, OSError) or out_of_memory(error):
        return f"{kind}: {line}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{kind}: {line} ({Path(place.filename).name}, line {place.lineno})"


def disk_full(error: BaseException | None) -> OSError | None:
    """The error of a disk, a quota or a file that is full, if that is behind this one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def _one(
    job: Job,
    place: Place,
    store: results.Store,
    tell: Tell,
    done: Done,
    busy: list[Job] | None,
) -> None:
    wait = busy is None
    told = replace(place, settings=replace(place.settings, tell=lambda line: tell(job, line)))
    tell(job, "waiting for another process" if wait else "")
    try:
        cell = perform(job, told, store, wait)
    except Exception as error:
        if full := disk_full(error):
            raise full from None
        done(job, None, why_none(error))
        return
    if cell is None:
        busy.append(job)
    else:
        done(job, cell, "")
