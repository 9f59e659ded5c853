"""A run that left nothing does not stand in the way of the next one; one that did is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hear_pretrainedsed.training.augmentation import Augmentation
from hear_pretrainedsed.training.fit import CONFIG, check_config, fit, has_begun
from hear_pretrainedsed.training.learner import KEPT, LAST
from hear_pretrainedsed.training.pieces import Order, Recording
from hear_pretrainedsed.training.plan import Place, Plan
from hear_pretrainedsed.training.stream import Loss, Stream, bce
from tests.tiny_model import tiny_model, tones

PLAN = Plan(2, 0, 2, 0.05, 1e-3)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    return tones(tmp_path_factory.mktemp("tones"), (14.0,))


def bad(*given: object) -> torch.Tensor:
    """A loss that no lr helps."""
    return bce(*given) * float("nan")


def train(recordings: list[Recording], folder: Path, plan: Plan = PLAN, loss: Loss = bce) -> None:
    torch.set_num_threads(1)
    stream = Stream(Order(recordings, 2, 0), Augmentation(), loss)
    place = Place(folder, save_every_steps=1)
    fit(tiny_model(), [stream], plan, place, validate=lambda model: 0.0)


def test_after_a_failed_first_step_settings_may_change(
    recordings: list[Recording], few_threads: None, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="step 1: the loss is nan .* lower lr, in another folder"):
        train(recordings, tmp_path, loss=bad)
    assert not has_begun(tmp_path)
    train(recordings, tmp_path, replace(PLAN, lr=0.01))
    assert has_begun(tmp_path) and '"lr": 0.01' in (tmp_path / CONFIG).read_text()
    with pytest.raises(ValueError, match="other settings: lr was 0.01, is 0.05"):
        train(recordings, tmp_path)


@pytest.mark.parametrize("name", [LAST, f"{KEPT}/step-00000001.pt"])
def test_what_is_there_is_not_spoilt(tmp_path: Path, name: str) -> None:
    check_config(tmp_path, {"lr": 1}, begun=False)
    (tmp_path / KEPT).mkdir()
    assert not has_begun(tmp_path)
    (tmp_path / name).touch()
    for writes in (True, False):  # every process stops, and none waits for the others
        with pytest.raises(ValueError, match="other settings: lr was 1, is 2"):
            check_config(tmp_path, {"lr": 2}, begun=has_begun(tmp_path), writes=writes)


def test_one_of_several_processes_notes_the_config(tmp_path: Path) -> None:
    check_config(tmp_path, {"lr": 1}, begun=False, writes=False)
    assert not (tmp_path / CONFIG).exists()
