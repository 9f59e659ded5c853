"""A sweep on a Ray cluster of two nodes, one of which is killed midway."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from downstream import results, sweep
from downstream.protocols import Settings
from tests.downstream.test_sweep import NAME, ROOT, task  # noqa: F401 - a fixture

pytestmark = [pytest.mark.hear, pytest.mark.slow]


@pytest.fixture
def cluster(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_a_node_killed_midway(
    cluster: object,
    own_cache: Path,
    release_file: Callable[[str], Path],
    task: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    from downstream import sweep_ray

    shutil.copy(release_file(NAME), own_cache)
    settings = Settings(grid="faster", grid_points=1, steps_scale=0.02)
    pairs = [("hear", "probe"), ("hear", "knn"), ("paper", "probe")]
    todo = sweep.jobs([NAME], [str(task)], pairs, 2, None, False)
    todo.append(sweep.Job(NAME, str(task / "nowhere"), "hear", "probe", 0))
    place = sweep.Place(tmp_path / "r", tmp_path / "e", settings)
    ends: dict[sweep.Job, str] = {}

    def done(job: sweep.Job, cell: results.Cell | None, why: str) -> None:
        ends[job] = why
        if len(ends) == 1:
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)

    sweep_ray.work(todo, place, lambda *_: None, done)
    assert set(ends) == set(todo)
    assert "folder" in ends.pop(todo[-1])
    assert set(ends.values()) == {""}
    kept = [(c.protocol, c.mode, c.seed) for c in results.read(tmp_path / "r")]
    assert sorted(kept) == [
        ("hear", "knn", 0),
        ("hear", "probe", 0),
        ("hear", "probe", 1),
        ("paper-scaled", "probe", 0),
        ("paper-scaled", "probe", 1),
    ]
