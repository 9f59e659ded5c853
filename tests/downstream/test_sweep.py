"""Sweeps that are killed, shared by processes, or fail in a cell."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from downstream import results, sweep
from downstream.protocols import Settings
from hear_pretrainedsed.fetch import FetchError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import hear_task  # noqa: E402

NAME = "fmn04.strong"
SEEDS = 2


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = {"train": 8, "valid": 3, "test": 12}
    return hear_task.write_task(tmp_path_factory.mktemp("tasks"), clips)


@pytest.fixture
def home(own_cache: Path, release_file: Callable[[str], Path]) -> Path:
    shutil.copy(release_file(NAME), own_cache)
    return own_cache


def start(task: Path, folder: Path) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    words = ["evaluate", "--checkpoints", NAME, "--tasks", str(task), "--results", str(folder)]
    words += ["--protocols", "hear,paper", "--modes", "probe,knn", "--seeds", str(SEEDS)]
    words += ["--grid", "faster", "--grid-points", "1", "--steps-scale", "0.02"]
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return subprocess.Popen(
        [sys.executable, "-m", "hear_pretrainedsed", *words],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def n_lines(folder: Path) -> int:
    path = folder / "results.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def numbers(folder: Path) -> dict[str, float]:
    cells = [json.loads(line) for line in (folder / "results.jsonl").open()]
    found = {cell["id"]: cell["metrics"]["segment_1s_er"]["value"] for cell in cells}
    assert len(found) == len(cells)  # no cell twice
    return found


@pytest.mark.slow
def test_killed_twice_and_shared_by_two_it_ends_with_the_same_numbers(
    home: Path, task: Path, tmp_path: Path
) -> None:
    whole = start(task, tmp_path / "whole")
    shown, errors = whole.communicate(timeout=240)
    assert whole.returncode == 0, errors
    folder = tmp_path / "killed"
    for wanted in (1, 2):
        process = start(task, folder)
        until = time.monotonic() + 120
        while n_lines(folder) < wanted and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with (folder / "results.jsonl").open("a") as file:
        file.write('{"id": "half a li')
    assert wanted <= n_lines(folder) < 2 * SEEDS + 2
    both = [start(task, folder), start(task, folder)]
    for process in both:
        again, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert again == shown
    assert numbers(folder) == numbers(tmp_path / "whole")


def job(task: str, seed: int = 0) -> sweep.Job:
    return sweep.Job(NAME, task, "hear", "knn", seed)


def test_a_cell_that_fails_does_not_stop_the_others(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perform(one: sweep.Job, *_: object) -> str:
        if one.seed == 1:
            raise ValueError("the loss is NaN in a.wav")
        return f"cell {one.seed}"

    monkeypatch.setattr(sweep, "perform", perform)
    place = sweep.Place(tmp_path / "r", tmp_path / "e", Settings())
    ends = []
    todo = [job("t", seed) for seed in range(3)]
    sweep.work(todo, place, lambda *_: None, lambda *one: ends.append(one))
    assert ends == [
        (todo[0], "cell 0", ""),
        (todo[1], None, "the loss is NaN in a.wav"),
        (todo[2], "cell 2", ""),
    ]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "CUDA out of memory. Tried$"),
        (MemoryError("a.wav: not enough"), "^MemoryError: a.wav: not enough$"),
        (
            PermissionError(13, "denied", "a.wav"),
            r"^PermissionError: \[Errno 13\] denied: 'a.wav'$",
        ),
        (KeyError("psds1"), r"^KeyError: 'psds1' \(test_sweep.py, line \d+\)$"),
        (FetchError("no network"), "^no network$"),
    ],
)
def test_any_error_of_a_cell_is_one_line_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    def perform(one: sweep.Job, *_: object) -> str:
        if one.seed == 0:
            raise error
        return f"cell {one.seed}"

    monkeypatch.setattr(sweep, "perform", perform)
    place = sweep.Place(tmp_path / "r", tmp_path / "e", Settings())
    ends = []
    sweep.work([job("t", 0), job("t", 1)], place, lambda *_: None, lambda *one: ends.append(one))
    assert [(one.seed, cell) for one, cell, _ in ends] == [(0, None), (1, "cell 1")]
    assert re.search(why, ends[0][2]), ends[0][2]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_who_stops_a_sweep_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    def perform(*_: object) -> None:
        raise stop

    monkeypatch.setattr(sweep, "perform", perform)
    place = sweep.Place(tmp_path / "r", tmp_path / "e", Settings())
    with pytest.raises(stop):
        sweep.work([job("t")], place, lambda *_: None, lambda *_: None)


def test_a_busy_cell_is_left_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def perform(one: sweep.Job, place: object, store: object, wait: bool) -> str | None:
        calls.append((one.seed, wait))
        return None if one.seed == 0 and not wait else "cell"

    monkeypatch.setattr(sweep, "perform", perform)
    place = sweep.Place(tmp_path / "r", tmp_path / "e", Settings())
    todo = [job("t", seed) for seed in range(3)]
    ends = []
    sweep.work(todo, place, lambda *_: None, lambda *one: ends.append(one[0].seed))
    assert calls == [(0, False), (1, False), (2, False), (0, True)]
    assert ends == [1, 2, 0]


def test_a_lock_that_another_holds(tmp_path: Path) -> None:
    path = tmp_path / "one.lock"
    with sweep._claimed(path, wait=False) as mine:
        assert mine
        with sweep._claimed(path, wait=False) as again:
            assert not again
    with sweep._claimed(path, wait=True) as mine:
        assert mine


def test_jobs_without_randomness_have_one_seed() -> None:
    pairs = [("hear", "probe"), ("hear", "knn")]
    todo = sweep.jobs(["a", "b"], ["t"], pairs, 3, None, False)
    assert [(j.checkpoint, j.mode, j.seed) for j in todo[:4]] == [
        ("a", "probe", 0),
        ("a", "probe", 1),
        ("a", "probe", 2),
        ("a", "knn", 0),
    ]
    assert len(todo) == 8


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_disk_that_is_full_ends_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_wrapped: bool
) -> None:
    calls = []

    def perform(one: sweep.Job, *_: object) -> None:
        calls.append(one)
        try:
            raise OSError(number, "full", "r/cells/x.npz")
        except OSError:
            if is_wrapped:  # as torch.save does
                raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904
            raise

    monkeypatch.setattr(sweep, "perform", perform)
    place = sweep.Place(tmp_path / "r", tmp_path / "e", Settings())
    with pytest.raises(OSError, match="full") as caught:
        sweep.work([job("t", 0), job("t", 1)], place, lambda *_: None, lambda *_: None)
    assert caught.value.filename == "r/cells/x.npz"
    assert len(calls) == 1
    assert results.read(tmp_path / "r") == []


LIMITED = """
import resource, sys
from hear_pretrainedsed.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
main(sys.argv[2:])
"""


def limited(n_bytes: int, task: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, where no file may be larger than that."""
    words = ["evaluate", "--checkpoints", NAME, "--tasks", task, "--results", folder]
    words += ["--protocols", "hear,paper", "--modes", "knn", "--embeddings", folder / "e"]
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(n_bytes), *map(str, words)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
def test_a_disk_that_is_full_amid_frames_arrays_or_lines(
    home: Path, task: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "r"
    no_limit = 2**40
    whole = limited(no_limit, task, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    (frames,) = (tmp_path / "whole").glob("e/*/frames.bin")
    arrays = [path.stat().st_size for path in (tmp_path / "whole").glob("cells/*.npz")]
    line = len((tmp_path / "whole" / "results.jsonl").read_bytes().splitlines()[0])
    assert max(arrays) < line < frames.stat().st_size // 2
    limits = {"frames": frames.stat().st_size // 2, "arrays": min(arrays) // 2, "line": 0}
    limits["line"] = (max(arrays) + line) // 2  # lines of two runs are not of quite one length
    for what, n_bytes in limits.items():
        ended = limited(n_bytes, task, folder)
        assert ended.returncode == 1, ended.stderr
        assert "Traceback" not in ended.stderr
        last = ended.stderr.splitlines()[-1]
        # a line of which a part was written
        assert ("results.jsonl: No space" if what == "line" else "File too large") in last
        assert results.read(folder) == []
        assert len(list(folder.glob("cells/*"))) == (1 if what == "line" else 0)
        if what == "frames":
            shutil.copytree(tmp_path / "whole" / "e", folder / "e", dirs_exist_ok=True)
    ended = limited(no_limit, task, folder)
    assert (ended.returncode, ended.stdout) == (0, whole.stdout), ended.stderr
    assert len(results.read(folder)) == 2
