"""Jobs of a sweep on a Ray cluster: Ray schedules them, and tries again what a lost node had.

The cluster is the one that RAY_ADDRESS names, else one of this machine's own. Results and kept
frames lie in folders that all nodes see; who does what is Ray's affair, and the locks of
`downstream.sweep` keep two of its tasks from doing the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch

from downstream import results
from downstream.protocols import Settings
from downstream.sweep import Done, Job, Place, Tell, disk_full, perform, why_none

MAX_RETRIES = 3  # of a job whose process or node was lost: one that crashes ends for good


def work(todo: Sequence[Job], place: Place, tell: Tell, done: Done) -> None:
    """All jobs, as `downstream.sweep.work`; a job that fails is told of, and the others go on.

    The first job of each checkpoint and task comes first: the others wait for its frames.
    """
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, logging_level="error")
    try:
        _collect(ray, _submitter(ray, place), todo, results.Store(place.results), tell, done)
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


def _submitter(ray: ModuleType, place: Place) -> Callable[[Job], Any]:
    """What gives a job to the cluster, and returns Ray's reference to it."""
    settings = place.settings
    bare = replace(place, settings=replace(settings, tell=Settings().tell))  # it has to travel
    n_gpus = 1 if settings.device.startswith("cuda") else 0
    task = ray.remote(num_cpus=1, num_gpus=n_gpus, max_retries=MAX_RETRIES)(_one)
    return lambda job: task.remote(job, bare)


def _one(job: Job, place: Place) -> tuple[str, str]:
    """In a process of the cluster: the id of a job's cell, and why there is none."""
    torch.set_num_threads(1)
    try:
        cell = perform(job, place, results.Store(place.results), wait=True)
    except Exception as error:
        if full := disk_full(error):
            raise full from None
        return "", why_none(error)
    return cell.id, ""


def _collect(
    ray: ModuleType,
    submit: Callable[[Job], Any],
    todo: Sequence[Job],
    store: results.Store,
    tell: Tell,
    done: Done,
) -> None:
    """Tell of each job as it ends; those that wait for its frames are submitted then."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in todo:
        groups.setdefault((job.checkpoint, job.task), []).append(job)
    running = {submit(first): (first, others) for first, *others in groups.values()}
    while running:
        (ended, *_), _ = ray.wait(list(running), num_returns=1)
        job, others = running.pop(ended)
        running |= {submit(one): (one, []) for one in others}
        cell_id, why = _outcome(ray, ended)
        store.refresh()
        done(job, store.cell(cell_id) if cell_id else None, why)
        if running:
            n = sum(1 + len(later) for _, later in running.values())
            tell(next(iter(running.values()))[0], f"and {n - 1} more on the cluster")


def _outcome(ray: ModuleType, ended: Any) -> tuple[str, str]:
    """What `_one` said; where its process was lost for good, why there is no cell."""
    try:
        return ray.get(ended)
    except ray.exceptions.RayError as error:
        if full := disk_full(getattr(error, "cause", None)):
            raise full from None
        return "", f"{type(error).__name__}: {error}".split("\n")[0]
