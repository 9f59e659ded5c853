"""Protocol `paper`: what is trained and decoded, what is chosen on valid and written down."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from downstream import probe as heads
from downstream.embeddings import FrameSpec
from downstream.protocols import paper
from downstream.protocols.base import Found, Settings
from downstream.scoring import main_score, score_task
from downstream.tasks import Task
from tests.downstream.probe_task import MadeUpSource, made_up_task

SHORT = Settings(steps_scale=0.1)  # 50 of 500 steps, 400 of 4000 of warm-up


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    """A small network gains nothing from more, and waits for them on a busy machine."""
    torch.set_num_threads(1)


def run(task: Task, folder: Path, mode: str = "probe", settings: Settings = SHORT) -> Found:
    return paper.PROTOCOL.modes[mode](task, MadeUpSource(task, folder), settings, 0)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    torch.set_num_threads(1)
    return run(made_up_task(), tmp_path_factory.mktemp("frames"))


def test_finds_what_is_there(found: Found) -> None:
    task = made_up_task()
    assert score_task(task, found)["event_onset_200ms_fms"].value > 0.9
    assert found.folds == (tuple(clip.file for clip in task.clips("test")),)
    for scores in found.scores.values():
        assert scores.shape == (500, 3) and scores.min() >= 0 and scores.max() <= 1


def test_grid_and_winner_are_written_down(found: Found) -> None:
    (chosen,) = found.chosen
    grid = chosen["valid_score_of_lr"]
    assert list(grid) == ["0.02", "0.06", "0.2", "0.6", "2.0"]
    assert chosen["valid_score"] == grid[str(chosen["lr"])] == np.nanmax(list(grid.values()))
    assert chosen["n_steps"] == 50
    assert found.config["lrs"] == (0.02, 0.06, 0.2, 0.6, 2.0)
    assert (found.config["median_frames"], found.config["min_duration_s"]) == (6, 0.125)


def test_only_all_steps_are_the_papers(
    tmp_path: Path, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found.config["protocol"] == "paper-scaled"
    runs = []
    monkeypatch.setattr(heads, "train", lambda model, data, run, *rest: runs.append(run))
    task = made_up_task()
    for scale, name in ((None, "paper"), (1, "paper"), (0.5, "paper-scaled")):
        settings = Settings(steps_scale=scale)
        assert run(task, tmp_path, settings=settings).config["protocol"] == name
    assert [(r.n_steps, r.n_warmup_steps) for r in runs] == [(500, 4000)] * 2 + [(250, 2000)]
    assert runs[0].weight_decay is None and runs[0].batch_pieces == 256


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, math.nan])
def test_refuses_scales(tmp_path: Path, scale: float) -> None:
    with pytest.raises(ValueError, match="--steps-scale is .*; it is finite and above 0"):
        run(made_up_task(), tmp_path, settings=Settings(steps_scale=scale))


def test_the_grid_is_searched_on_the_first_rotation_only(tmp_path: Path) -> None:
    task = made_up_task(n_clips=2, folds=3)
    found = run(task, tmp_path)
    assert ["valid_score_of_lr" in record for record in found.chosen] == [True, False, False]
    assert len({record["lr"] for record in found.chosen}) == 1
    assert found.folds == (
        ("fold00_0.wav", "fold00_1.wav"),
        ("fold01_0.wav", "fold01_1.wav"),
        ("fold02_0.wav", "fold02_1.wav"),
    )
    assert found.events.keys() == found.scores.keys() == {f for fold in found.folds for f in fold}


def test_the_test_split_changes_nothing_that_is_chosen(tmp_path: Path) -> None:
    task = made_up_task()
    silent = tuple(replace(clip, events=(), events_ms=None) for clip in task.clips("test"))
    blind = replace(task, splits={**task.splits, "test": silent})
    source = MadeUpSource(task, tmp_path)
    with_events = paper.probe(task, source, SHORT, 0)
    without = paper.probe(blind, source, SHORT, 0)
    assert with_events.chosen == without.chosen and with_events.events == without.events


def test_seeds_repeat_and_differ(tmp_path: Path, found: Found) -> None:
    task = made_up_task()
    again = run(task, tmp_path)
    assert again.events == found.events
    other = paper.probe(task, MadeUpSource(task, tmp_path), SHORT, 1)
    assert any((other.scores[file] != found.scores[file]).any() for file in found.scores)


def test_logits_not_scores_are_above_a_half(tmp_path: Path) -> None:
    """One class at a logit of 0.4, a score of 0.6: no event; at 0.6: one."""
    task = made_up_task()
    kit = paper.Kit(task, MadeUpSource(task, tmp_path).frames(FrameSpec()), SHORT, 0)
    logits = np.full((100, 3), -5.0, np.float32)
    logits[10:30, 0], logits[10:30, 1] = 0.4, 0.6
    logits[50:53, 2], logits[60:65, 2] = 3.0, 3.0  # the first is too short
    _, events = kit.outcome({"a": logits}, paper.RECIPE.threshold_logit)
    assert events["a"] == [(0.42, 1.22, "dog"), (2.42, 2.62, "rain")]


def test_psds_is_of_smoothed_scores(tmp_path: Path) -> None:
    task = made_up_task(metrics=("psds1",))
    found = run(task, tmp_path)
    (chosen,) = found.chosen
    assert 0 < chosen["valid_score"] <= 1
    assert main_score(task, task.clips("test"), found.scores, found.events) > 0.5
    steps = np.concatenate([np.diff(x, axis=0).ravel() for x in found.scores.values()])
    assert (steps == 0).mean() > 0.2  # a running median repeats values


def test_undefined_valid_scores_lose_and_lower_errors_win() -> None:
    assert paper.worth([math.nan, 0.1, 0.3], made_up_task()) == [-math.inf, 0.1, 0.3]
    errors = paper.worth([math.nan, 0.1, 0.3], made_up_task(metrics=("segment_1s_er",)))
    assert errors == [-math.inf, -0.1, -0.3]


def test_knn_votes_are_decoded_like_the_probe(tmp_path: Path) -> None:
    task = made_up_task(n_clips=2, folds=3)
    found = run(task, tmp_path, "knn")
    assert score_task(task, found)["event_onset_200ms_fms"].value > 0.9
    assert found.config["threshold"] == pytest.approx(torch.tensor(0.5).sigmoid().item())
    assert found.config["k"] == 20 and len(found.chosen) == 3
    votes = np.concatenate(list(found.scores.values())) * 20
    np.testing.assert_allclose(votes, votes.round(), atol=1e-4)
