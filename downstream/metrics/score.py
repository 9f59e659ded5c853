"""What a metric returns, and how counts become F-measures and rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EPSILON = float(np.spacing(1))  # what sed_eval adds to a rate's denominator


@dataclass(frozen=True)
class Score:
    """A metric over all events (`micro`), its mean over classes (`macro`), and class by class.

    Values are fractions, not per cent. NaN is "not defined": such classes are left out of `macro`.
    """

    micro: float
    macro: float
    per_class: dict[str, float]


def class_score(micro: float, values: np.ndarray, labels: Sequence[str]) -> Score:
    """A `Score` of one value a class; `macro` is the mean of those that are not NaN."""
    known = values[~np.isnan(values)]
    macro = float(known.mean()) if known.size else float("nan")
    per_class = dict(zip(labels, values.tolist(), strict=True))
    return Score(float(micro), macro, per_class)


def f_measure(
    n_hits: np.ndarray, n_reference: np.ndarray, n_estimated: np.ndarray, zero_if_silent: bool
) -> np.ndarray:
    """F1 of counts, in the order of sed_eval's operations.

    Precision is NaN without estimated events (0 with `zero_if_silent`), recall NaN without
    reference events, and F1 is NaN with either of them; it is 0 where both are 0.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(n_estimated > 0, n_hits / n_estimated, 0 if zero_if_silent else np.nan)
        recall = np.where(n_reference > 0, n_hits / n_reference, np.nan)
        f1 = 2 * precision * recall / (precision + recall)
    return np.where((precision == 0) & (recall == 0), 0.0, f1)


def error_rate(
    n_reference: np.ndarray, n_substituted: np.ndarray, n_deleted: np.ndarray, n_added: np.ndarray
) -> np.ndarray:
    """Substitutions, deletions and insertions per reference item.

    As in sed_eval the denominator is never 0 but at least 2.2e-16: where there is no reference,
    each insertion counts as 4.5e15, and without insertions the rate is 0.
    """
    total = n_reference + EPSILON
    return n_substituted / total + n_deleted / total + n_added / total
