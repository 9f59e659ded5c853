"""mAP, ROC AUC and d' of clip scores, as PSLA and AudioSet's baselines report them.

Average precision and ROC AUC follow scikit-learn's definitions, equal scores included; means are
over classes, unweighted. d' is that of the mean AUC (Hershey et al., ICASSP 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from downstream.metrics.frame_based import average_precision

_NAMED = 3


@dataclass(frozen=True)
class WeakMetrics:
    """Values of each class (classes,), NaN where there is none, and means over the others.

    A class without a clip that has it has neither average precision nor AUC; one that all clips
    have has no AUC.
    """

    ap: np.ndarray
    auc: np.ndarray

    @property
    def mean_ap(self) -> float:
        """The mean over classes that have clips; NaN if none has."""
        return _mean(self.ap)

    @property
    def mean_auc(self) -> float:
        """The mean over classes that some clips have and some have not; NaN if there is none."""
        return _mean(self.auc)

    @property
    def d_prime(self) -> float:
        """sqrt(2) times the normal quantile of the mean AUC; infinite for an AUC of 1."""
        return float(np.sqrt(2) * ndtri(self.mean_auc))

    def told(self, labels: Sequence[str]) -> str | None:
        """One line on the classes that are in no mean; None where there are none."""
        absent = [label for label, value in zip(labels, self.ap, strict=True) if np.isnan(value)]
        if not absent:
            return None
        more = ", ..." if len(absent) > _NAMED else ""
        return (
            f"{len(absent)} of {len(labels)} classes have no clip and are in no mean: "
            f"{', '.join(absent[:_NAMED])}{more}"
        )


def weak_metrics(scores: np.ndarray, targets: np.ndarray) -> WeakMetrics:
    """Metrics of clip scores (clips, classes) against targets of the same shape, set above 0.

    Raises `ValueError` for other shapes, no clips, and scores that are NaN.
    """
    scores, active = np.asarray(scores), np.asarray(targets) > 0
    if scores.shape != active.shape or scores.ndim != 2 or not len(scores):
        raise ValueError(
            f"scores of shape {scores.shape} and targets of {active.shape}; wanted one "
            "(clips, classes), with a clip at least"
        )
    if np.isnan(scores).any():
        clip, number = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"the score of clip {clip} for class {number} is NaN")
    columns = zip(scores.T, active.T, strict=True)
    ap = np.array([average_precision(column, present) for column, present in columns])
    return WeakMetrics(ap, _auc(scores, active))


def _auc(scores: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Of each class, the share of pairs of a clip with and one without that are in order.

    Equal scores are half in order: the rank-sum statistic of Mann and Whitney.
    """
    ranks = rankdata(scores, axis=0)
    n_with = active.sum(axis=0, dtype=np.int64)
    n_without = len(scores) - n_with
    in_order = np.where(active, ranks, 0).sum(axis=0) - n_with * (n_with + 1) / 2
    n_pairs = n_with * n_without
    return np.divide(in_order, n_pairs, out=np.full(len(n_with), np.nan), where=n_pairs > 0)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
