"""A sweep on a Ray cluster: a node and processes that are killed in the middle of a job."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from downstream import results, sweep, sweep_ray
from downstream.protocols import Settings
from tests.downstream.test_sweep import NAME, ROOT, task  # noqa: F401 - a fixture

ONE = sweep_ray._one
DOOMED, STARTS = "doomed", "starts"


# ---- without Ray


class LostError(Exception):
    """What Ray says of a process that is gone."""


class FakeRay:
    """As much of Ray as is used; a task is run when it is asked for, `order` tells of that."""

    exceptions = SimpleNamespace(RayError=LostError)

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.order: list[tuple[str, int]] = []

    def is_initialized(self) -> bool:
        return True

    def remote(self, **options: Any) -> Callable[..., Any]:
        self.options = options
        return lambda function: SimpleNamespace(remote=lambda *a: self._submit(function, a))

    def _submit(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> object:
        self.order.append(("submit", arguments[0].seed))
        return function, arguments

    def wait(self, references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return references[:num_returns], references[num_returns:]

    def get(self, reference: Any) -> tuple[str, str]:
        function, (job, place) = reference
        self.order.append(("get", job.seed))
        return function(job, place)


def jobs(*seeds: int) -> list[sweep.Job]:
    return [sweep.Job(NAME, "t", "hear", "probe", seed) for seed in seeds]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    made = FakeRay()
    monkeypatch.setattr(sweep_ray, "_ray", lambda: made)
    return made


def ends_of(todo: list[sweep.Job], folder: Path, **settings: Any) -> dict[int, str]:
    place = sweep.Place(folder / "r", folder / "e", Settings(**settings))
    ends: dict[int, str] = {}

    def done(job: sweep.Job, cell: results.Cell | None, why: str) -> None:
        ends[job.seed] = why

    sweep_ray.work(todo, place, lambda *_: None, done)
    return ends


def test_a_lost_job_is_told_of_and_those_that_wait_for_its_frames_go_on(
    fake: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(job: sweep.Job, place: sweep.Place) -> tuple[str, str]:
        if job.seed == 0:
            raise LostError("The worker died unexpectedly\nSee its log")
        return "", f"why {job.seed}"

    monkeypatch.setattr(sweep_ray, "_one", one)
    ends = ends_of(jobs(0, 1, 2), tmp_path)
    assert ends == {0: "LostError: The worker died unexpectedly", 1: "why 1", 2: "why 2"}
    assert fake.order[0] == ("submit", 0)
    assert set(fake.order[1:3]) | {("get", 0)} == {("get", 0), ("submit", 1), ("submit", 2)}
    assert fake.options["max_retries"] == sweep_ray.MAX_RETRIES >= 1  # -1 would be for ever


def test_any_error_in_a_process_is_a_line(
    fake: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perform(job: sweep.Job, *_: object, **__: object) -> None:
        raise [MemoryError("too much"), ValueError("no\nclips"), PermissionError(13, "no", "a")][
            job.seed
        ]

    monkeypatch.setattr(sweep_ray, "perform", perform)
    assert ends_of(jobs(0, 1, 2), tmp_path) == {
        0: "MemoryError: too much",
        1: "no clips",
        2: "PermissionError: [Errno 13] no: 'a'",
    }


def test_a_full_disk_of_a_process_ends_the_sweep(
    fake: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perform(job: sweep.Job, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "e/frames.bin")

    def get(reference: Any) -> None:
        function, arguments = reference
        try:
            function(*arguments)
        except OSError as error:  # as Ray wraps what a task raises
            lost = LostError("ray::_one()")
            lost.cause = error
            raise lost from None

    monkeypatch.setattr(sweep_ray, "perform", perform)
    monkeypatch.setattr(fake, "get", get)
    with pytest.raises(OSError, match="No space left") as caught:
        ends_of(jobs(0, 1), tmp_path)
    assert caught.value.filename == "e/frames.bin"


# ---- on a cluster of two nodes


@pytest.fixture
def cluster(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.second = made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()


def hindered(job: sweep.Job, place: sweep.Place) -> tuple[str, str]:
    """In a process of the cluster: note the start; on the doomed node, wait for its end.

    Elsewhere wait until that node has something to lose.
    """
    import ray

    node = ray.get_runtime_context().get_node_id()
    with (place.results / STARTS).open("a") as file:
        file.write(f"{job.protocol} {job.mode} {job.seed} {node}\n")
    if job.protocol == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    doomed = (place.results / DOOMED).read_text()
    while node == doomed:
        time.sleep(1)
    until = time.monotonic() + 120
    while not begun_on(doomed, place.results) and time.monotonic() < until:
        time.sleep(0.05)
    return ONE(job, place)


def starts(folder: Path) -> list[tuple[str, str]]:
    """Job and node of every start so far."""
    path = folder / STARTS
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(line.rsplit(" ", 1)) for line in lines]


def begun_on(node: str, folder: Path) -> list[str]:
    """Jobs that were begun on a node, but for the one that crashes."""
    found = [job for job, place in starts(folder) if place == node]
    return [job for job in found if not job.startswith("crash")]


@pytest.mark.hear
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_node_killed_in_the_middle_of_a_job(
    cluster: Any,
    own_cache: Path,
    release_file: Callable[[str], Path],
    task: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copy(release_file(NAME), own_cache)
    monkeypatch.setattr(sweep_ray, "_one", hindered)
    settings = Settings(grid="faster", grid_points=1, steps_scale=0.02)
    pairs = [("hear", "probe"), ("hear", "knn"), ("paper", "probe")]
    todo = sweep.jobs([NAME], [str(task)], pairs, 2, None, False)
    todo += [
        sweep.Job(NAME, str(task / "nowhere"), "hear", "probe", 0),
        sweep.Job(NAME, str(task), "crash", "probe", 0),
    ]
    folder = tmp_path / "r"
    folder.mkdir()
    doomed = cluster.second.node_id
    (folder / DOOMED).write_text(doomed)
    ends: dict[sweep.Job, str] = {}
    over = threading.Event()

    def kill() -> None:
        while not begun_on(doomed, folder):
            if over.wait(0.05):
                return
        cluster.remove_node(cluster.second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    place = sweep.Place(folder, tmp_path / "e", settings)
    try:
        sweep_ray.work(todo, place, lambda *_: None, lambda job, _, why: ends.update({job: why}))
    finally:
        over.set()
        killer.join()
    assert set(ends) == set(todo)
    lost = begun_on(doomed, folder)
    assert lost  # so the node did die in the middle of a job
    n_starts = Counter(job for job, _ in starts(folder))
    assert all(n_starts[job] >= 2 for job in lost)
    assert 2 <= n_starts["crash probe 0"] <= 1 + sweep_ray.MAX_RETRIES
    assert "WorkerCrashed" in ends.pop(todo[-1])
    assert "folder" in ends.pop(todo[-2])
    assert set(ends.values()) == {""}
    kept = [(c.protocol, c.mode, c.seed) for c in results.read(folder)]
    assert sorted(kept) == [
        ("hear", "knn", 0),
        ("hear", "probe", 0),
        ("hear", "probe", 1),
        ("paper-scaled", "probe", 0),
        ("paper-scaled", "probe", 1),
    ]
