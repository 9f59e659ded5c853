"""Ensembles: PSLA's reference, the running mean, who is a member."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretraining.ensembling import WAYS, Member, RunningMean, ensemble, members
from pretraining.weak_metrics import weak_metrics


@pytest.fixture
def facts(shared: Path) -> dict[str, Any]:
    content = json.loads((shared / "parity_efficient" / "psla.cases.json").read_text())
    return content["metrics_and_ensembling"]


def check(scores: np.ndarray, targets: np.ndarray, wanted: dict[str, Any]) -> None:
    found = weak_metrics(scores, targets)
    np.testing.assert_allclose(found.ap, wanted["AP"], rtol=1e-9)
    np.testing.assert_allclose(found.auc, wanted["AUC"], rtol=1e-9)
    assert found.mean_ap == pytest.approx(wanted["mAP"], rel=1e-9)
    assert found.mean_auc == pytest.approx(wanted["mAUC"], rel=1e-9)
    assert found.d_prime == pytest.approx(wanted["d_prime_of_mean_AUC"], rel=1e-9)


def test_single_running_and_whole_ensemble_are_the_reference(facts: dict[str, Any]) -> None:
    targets, mean = np.array(facts["target"]), RunningMean()
    everyone = [np.array(scores) for scores in facts["predictions"]]
    for scores, single, running in zip(
        everyone, facts["single"], facts["running_ensemble"], strict=True
    ):
        check(scores, targets, single)
        check(mean.add(scores), targets, running)
    check(ensemble(iter(everyone)), targets, facts["mean_of_three"])


def test_the_mean_so_far_is_not_written_to_by_what_comes_later() -> None:
    mean = RunningMean()
    first = mean.add(np.array([[0.25, 1.0]], np.float16))
    assert first.dtype == np.float64
    mean.add(np.array([[0.75, 0.0]], np.float16))
    assert first.tolist() == [[0.25, 1.0]] and mean.mean.tolist() == [[0.5, 0.5]] and mean.n == 2


def test_refuses() -> None:
    with pytest.raises(ValueError, match="an ensemble of no models"):
        ensemble([])
    with pytest.raises(ValueError, match=r"shape \(1, 3\) in an ensemble of \(1, 2\)"):
        ensemble([np.zeros((1, 2)), np.zeros((1, 3))])
    for wrong in (-2.0, 1.5, np.nan):
        with pytest.raises(ValueError, match="not of logits"):
            ensemble([np.array([[0.5, wrong]])])


RUNS = (
    *(Member(f"a0-{epoch}", "a", 0, epoch) for epoch in (1, 2)),
    Member("a0", "a", 0),
    *(Member(f"a1-{epoch}", "a", 1, epoch) for epoch in (1, 2)),
    Member("a1", "a", 1),
    Member("b0-1", "b", 0, 1),
    Member("b0", "b", 0),
)


def names(way: str, models: tuple[Member, ...] = RUNS) -> dict[str, list[str]]:
    return {name: [one.name for one in group] for name, group in members(way, models).items()}


def test_who_is_a_member() -> None:
    assert names("one run") == {"a, seed 0": ["a0-1", "a0-2"], "a, seed 1": ["a1-1", "a1-2"]}
    assert names("other seeds") == {"a": ["a0", "a1"]}
    assert names("other settings") == {"all runs": ["a0", "a1", "b0"]}


def test_runs_of_the_same_settings_are_no_ensemble_of_settings() -> None:
    assert names("other settings", RUNS[:6]) == {}
    assert all(names(way, ()) == {} for way in WAYS)


def test_refuses_another_way() -> None:
    with pytest.raises(ValueError, match="unknown way of ensembling 'one runs'; did you mean"):
        members("one runs", RUNS)
    with pytest.raises(ValueError, match="unknown way of ensembling"):
        members("", ())
