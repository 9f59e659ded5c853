"""A disk that takes no more ends a training with the name of the file that it was."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hear_pretrainedsed.events import disk_errors
from hear_pretrainedsed.training import learner
from hear_pretrainedsed.training.augmentation import Augmentation
from hear_pretrainedsed.training.fit import CONFIG, WEIGHTS, fit
from hear_pretrainedsed.training.learner import KEPT, LAST
from hear_pretrainedsed.training.pieces import Order
from hear_pretrainedsed.training.plan import Place, Plan
from hear_pretrainedsed.training.stream import Stream, bce
from hear_pretrainedsed.weight_files import Saved, write
from tests.tiny_model import tiny_model, tones

PLAN = Plan(4, 0, 2, 0.05, 1e-3, valid_every_steps=2)
ENOUGH = 2000  # bytes for the config, and not for weights


@contextmanager
def full(n_bytes: int) -> Iterator[None]:
    """A disk on which no file gets larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def train(folder: Path, n_bytes: int = ENOUGH, **place: object) -> None:
    torch.set_num_threads(1)
    stream = Stream(Order(tones(folder / "audio", (14.0,)), 2, 0), Augmentation(), bce)
    where = Place(folder / "run", **place)
    with full(n_bytes):
        fit(tiny_model(), [stream], PLAN, where, validate=lambda model: 0.0)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (f"{KEPT}/step-00000002.pt", {"keep_from_step": 2}),
        (LAST, {"save_every_steps": 1}),
        (WEIGHTS, {}),
    ],
)
def test_weights(few_threads: None, tmp_path: Path, name: str, place: dict[str, int]) -> None:
    with pytest.raises(OSError, match="File too large") as caught:
        train(tmp_path, **place)
    assert caught.value.filename == str(tmp_path / "run" / name)
    assert files(tmp_path / "run") == {CONFIG}  # nothing half-written


def test_the_config(few_threads: None, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large") as caught:
        train(tmp_path, n_bytes=100)
    assert caught.value.filename == str(tmp_path / "run" / CONFIG)
    assert not files(tmp_path / "run")


def test_a_logger(few_threads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names no file, and there is the folder at least."""

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(learner.Learner, "_log", fails)
    with pytest.raises(OSError, match="No space left on device") as caught:
        train(tmp_path)
    assert caught.value.filename == str(tmp_path / "run")


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_model(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"model.{ending}"
    with full(ENOUGH), pytest.raises(OSError, match="File too large") as caught:
        write(path, {"a": torch.zeros(10_000)}, Saved("fmn04.strong"))
    assert str(path) in str(caught.value) and not files(tmp_path)


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="^mine$"), disk_errors("x"):
        raise RuntimeError("mine")
    with pytest.raises(FileNotFoundError) as caught, disk_errors("x"):
        open("/none/at/all")  # noqa: SIM115 - it is not opened
    assert caught.value.filename == "/none/at/all"
