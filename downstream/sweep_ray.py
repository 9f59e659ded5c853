"""Jobs of a sweep on a Ray cluster: Ray schedules them, and tries again what a lost node had.

The cluster is the one that RAY_ADDRESS names, else one of this machine's own. Results and kept
frames lie in folders that all nodes see; who does what is Ray's affair, and the locks of
`downstream.sweep` keep two of its tasks from doing the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch

from downstream import results
from downstream.protocols import Settings
from downstream.sweep import Done, Job, Place, Tell, perform


def work(todo: Sequence[Job], place: Place, tell: Tell, done: Done) -> None:
    """All jobs, as `downstream.sweep.work`; a job that fails is told of, and the others go on.

    The first job of each checkpoint and task comes first: the others wait for its frames.
    """
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, logging_level="error")
    try:
        _collect(ray, _submitted(ray, todo, place), place, tell, done)
    finally:
        if ours:
            ray.shutdown()


def _ray() -> ModuleType:
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError(
            "--executor ray needs ray: pip install 'hear-pretrainedsed[ray]'"
        ) from None
    return ray


def _submitted(ray: ModuleType, todo: Sequence[Job], place: Place) -> dict[Any, Job]:
    settings = place.settings
    bare = replace(place, settings=replace(settings, tell=Settings().tell))  # it has to travel
    n_gpus = 1 if settings.device.startswith("cuda") else 0
    task = ray.remote(num_cpus=1, num_gpus=n_gpus, max_retries=-1)(_one)
    first: dict[tuple[str, str], Any] = {}
    found: dict[Any, Job] = {}
    for job in todo:
        group = (job.checkpoint, job.task)
        reference = task.remote(job, bare, first.get(group))
        first.setdefault(group, reference)
        found[reference] = job
    return found


def _one(job: Job, place: Place, after: object) -> tuple[str, str]:
    """In a process of the cluster: the id of a job's cell, and why there is none."""
    torch.set_num_threads(1)
    try:
        cell = perform(job, place, results.Store(place.results), wait=True)
    except ValueError as error:
        return "", f"{error}"
    return cell.id, ""


def _collect(ray: ModuleType, found: dict[Any, Job], place: Place, tell: Tell, done: Done) -> None:
    """Tell of each job as it ends."""
    waiting = list(found)
    store = results.Store(place.results)
    while waiting:
        (ended,), waiting = ray.wait(waiting, num_returns=1)
        cell_id, why = ray.get(ended)
        store.refresh()
        done(found[ended], store.cell(cell_id) if cell_id else None, why)
        if waiting:
            tell(found[waiting[0]], f"and {len(waiting) - 1} more on the cluster")
