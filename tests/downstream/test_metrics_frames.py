from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downstream.metrics import frame_map
from tests.downstream.metric_oracles import approx


def slow_average_precision(scores: np.ndarray, active: np.ndarray) -> float:
    """Precision times the step in recall, threshold by threshold from above."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        detected = scores >= threshold
        recall = (detected & active).sum() / active.sum()
        total += (recall - before) * (detected & active).sum() / detected.sum()
        before = recall
    return total


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from((0, 3, 20)), st.sampled_from("ed"))
def test_equal_to_plain_code(seed: int, levels: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    scores, targets = {}, {}
    for name, n in (("f", 7), ("g", 12), ("h", 1)):
        score = rng.random((n, 3))
        scores[name] = (np.round(score * levels) / levels if levels else score).astype(kind)
        targets[name] = rng.random((n, 3)) < (0.3, 0.8, 0.5)
    targets["f"][0] = True
    score = frame_map(scores, targets, ["a", "b", "c"])
    rows, active = np.concatenate([*scores.values()]), np.concatenate([*targets.values()])
    values = [slow_average_precision(rows[:, i], active[:, i]) for i in range(3)]
    assert [*score.per_class.values()] == approx(values)
    assert score.macro == approx(np.mean(values))
    assert score.micro == approx(slow_average_precision(rows.ravel(), active.ravel()))


def test_equal_to_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    score = np.round(rng.random((4000, 6)), 2).astype(np.float32)
    target = rng.random((4000, 6)) < 0.1
    ours = frame_map({"f": score}, {"f": target}, list("abcdef"))
    for kind in ("macro", "micro"):
        theirs = metrics.average_precision_score(target, score, average=kind)
        assert getattr(ours, kind) == approx(theirs)


def test_a_class_that_is_active_nowhere_is_left_out() -> None:
    score = frame_map(
        {"f": np.array([[0.1, 0.9], [0.8, 0.2]])}, {"f": np.array([[0, 0], [1, 0]])}, ["a", "b"]
    )
    assert score.per_class == approx({"a": 1.0, "b": math.nan})
    assert score.macro == 1.0
    assert score.micro == approx(0.5)


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        ({}, {}, "no scores"),
        ({"f": np.zeros((2, 1))}, {}, "1 files on one side only, the first, 'f', in scores"),
        ({"f": np.zeros((2, 1))}, {"f": np.zeros((3, 1))}, r"'f': scores \(2, 1\), targets \(3,"),
        ({"f": np.zeros((2, 2))}, {"f": np.zeros((2, 2))}, r"wanted \(frames, 1\)"),
        ({"f": np.array([[np.nan]])}, {"f": np.zeros((1, 1))}, "'f': NaN"),
    ],
)
def test_bad_input(scores: dict, targets: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frame_map(scores, targets, ["a"])
