"""mAP, AUC and d' against scikit-learn, where it is installed, and by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.weak_metrics import weak_metrics


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n_clips=st.integers(1, 30), n_values=st.sampled_from([2, 5, 0]))
def test_is_scikit_learn_s(seed: int, n_clips: int, n_values: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    chance = np.random.default_rng(seed)
    scores = chance.random((n_clips, 4))
    if n_values:  # equal scores
        scores = np.floor(scores * n_values) / n_values
    targets = (chance.random((n_clips, 4)) < chance.random(4)).astype(np.float32)
    found = weak_metrics(scores, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(4):
            own, set_ = scores[:, number], targets[:, number]
            if set_.any():
                wanted = metrics.average_precision_score(set_, own)
                assert found.ap[number] == pytest.approx(wanted, rel=1e-12)
            else:
                assert math.isnan(found.ap[number])
            if set_.any() and not set_.all():
                assert found.auc[number] == pytest.approx(metrics.roc_auc_score(set_, own))
            else:
                assert math.isnan(found.auc[number])


def test_by_hand() -> None:
    scores = np.array([[0.9, 0.5], [0.8, 0.5], [0.7, 0.5], [0.6, 0.5]])
    targets = np.array([[1, 1], [0, 0], [1, 1], [0, 0]])
    found = weak_metrics(scores, targets)
    np.testing.assert_allclose(found.ap, [(1 + 2 / 3) / 2, 0.5])
    np.testing.assert_allclose(found.auc, [0.75, 0.5])
    assert found.mean_auc == 0.625
    assert found.d_prime == pytest.approx(math.sqrt(2) * 0.31863936396437514)


def test_classes_without_clips_are_told_and_in_no_mean() -> None:
    scores = np.array([[0.9, 0.1, 0.3], [0.1, 0.2, 0.4]])
    targets = np.array([[1, 0, 1], [0, 0, 1]])  # the last: no clip without it
    found = weak_metrics(scores, targets)
    assert found.mean_ap == 1.0 and found.mean_auc == 1.0 and found.d_prime == math.inf
    assert math.isnan(found.ap[1]) and np.isnan(found.auc[1:]).all()
    told = found.told(["a", "b", "c"])
    assert told == "1 of 3 classes have no clip and are in no mean: b"
    assert weak_metrics(scores, np.ones((2, 3))).told(["a", "b", "c"]) is None
    nothing = weak_metrics(scores, np.zeros((2, 3)))
    assert math.isnan(nothing.mean_ap) and math.isnan(nothing.d_prime)
    assert "3 of 3" in str(nothing.told(["a", "b", "c"]))


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\) and targets of \(2, 2\)"):
        weak_metrics(np.zeros((2, 3)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="with a clip at least"):
        weak_metrics(np.zeros((0, 3)), np.zeros((0, 3)))
    with pytest.raises(ValueError, match="the score of clip 1 for class 0 is NaN"):
        weak_metrics(np.array([[0.0, 0.0], [np.nan, 1.0]]), np.zeros((2, 2)))
