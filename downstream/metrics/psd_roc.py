"""Counts at thresholds -> PSD-ROC curves and the area under them, by sed_scores_eval.

sed_scores_eval takes counts as changes ("deltas"): by how much true positives, false positives
and cross-triggers change when the threshold falls below a score. That is the one border at which
this project hands it numbers, whether they come from its own code (`psds`) or from event lists.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from downstream.metrics import score_runs

_HOUR_S = 3600.0
_LONG_FRAMES = 300  # sed_scores_eval's time and memory grow with their square or cube
Roc = tuple[np.ndarray, np.ndarray]


def sed_scores_eval() -> ModuleType:
    """The package's intersection-based part; it imports slowly, and not every use needs it."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="dcase_util")  # imported by it, and outdated
            from sed_scores_eval import intersection_based
    except ImportError as error:
        raise ImportError(
            "PSDS needs sed_scores_eval, which is not installed with the other dependencies: "
            "pip install --no-deps sed_scores_eval"
        ) from error
    return intersection_based


def check_fractions(**values: float) -> None:
    """Raise `ValueError` for one that is not in 0..1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is from 0 to 1, got {value}")


def check_parameters(
    dtc: float, gtc: float, cttc: float | None, alpha_ct: float, alpha_st: float, max_efpr: float
) -> None:
    """Raise `ValueError` for parameters that make no PSDS."""
    check_fractions(dtc=dtc, gtc=gtc, alpha_ct=alpha_ct)
    if alpha_ct and cttc is None:
        raise ValueError(f"alpha_ct = {alpha_ct} needs a cttc")
    if cttc is not None:
        check_fractions(cttc=cttc)
    for name, value in (("alpha_st", alpha_st), ("max_efpr", max_efpr)):
        if not 0 <= value < math.inf or (name == "max_efpr" and value == 0):
            raise ValueError(f"{name} is finite and not negative (max_efpr not 0), got {value}")


def total_duration(durations_s: Mapping[str, float], files: Iterable[str]) -> float:
    """Seconds of all files; `ValueError` for one that has no duration or none above 0."""
    for name in files:
        if name not in durations_s:
            raise ValueError(f"no duration of {name!r}")
        if not 0 < durations_s[name] < math.inf:
            raise ValueError(f"the duration of {name!r} is {durations_s[name]}")
    return sum(durations_s[name] for name in files)


def psds_of_counts(
    found: np.ndarray,
    false: np.ndarray,
    crossed: np.ndarray,
    n_reference: np.ndarray,
    reference_s: np.ndarray,
    total_s: float,
    alpha_ct: float,
    alpha_st: float,
    max_efpr: float,
) -> tuple[float, np.ndarray]:
    """PSDS and its value of each class (classes,) from counts at operating points.

    `found` and `false` are (points, classes), `crossed` (points, classes, other classes),
    `n_reference` and `reference_s` number and seconds of the reference events (classes,).
    """
    n_classes = len(n_reference)
    if not n_classes:
        raise ValueError("no reference events")
    rank = np.arange(len(found), dtype=np.float64)  # in place of thresholds
    changes: dict[str, Any] = {}
    for i in range(n_classes):
        cts: Any = np.zeros(len(found))
        counts = {"tps": _change(found[:, i]), "fps": _change(false[:, i]), "cts": cts}
        if alpha_ct:
            del counts["cts"]
            others = (j for j in range(n_classes) if j != i)
            counts |= {f"cts\\{class_name(j)}": _change(crossed[:, i, j]) for j in others}
        changes[class_name(i)] = (rank, counts)
    stubs = [_stub(i, n_reference[i], reference_s[i]) for i in range(n_classes)]
    value, per_class, *_ = sed_scores_eval().psds(
        None,
        {"all": [event for stub in stubs for event in stub]},
        {"all": total_s},
        deltas={"all": changes},
        dtc_threshold=0.5,  # this and the next two are not looked at: they are in the counts
        gtc_threshold=0.5,
        cttc_threshold=0.5 if alpha_ct else None,
        alpha_ct=alpha_ct,
        alpha_st=alpha_st,
        max_efpr=max_efpr,
    )
    return float(value), np.array([per_class[class_name(i)] for i in range(n_classes)])


def is_long(scores: np.ndarray) -> bool:
    """Whether sed_scores_eval is too slow for scores (frames, ...) and takes too much memory."""
    return len(scores) > _LONG_FRAMES


def clip_changes(
    scores: np.ndarray,
    frame_s: float,
    onset_s: np.ndarray,
    offset_s: np.ndarray,
    dtc: float,
    gtc: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Changes that one clip makes to the counts of one class that occurs in it.

    `scores` are (frames,), the reference events (events,) sorted and apart. Gives the scores at
    which counts change, and by how much true and false positives do, each (changes,): the parts
    that sed_scores_eval's `intermediate_statistics_deltas` consists of, without its tables. Of a
    long clip `score_runs` finds the same ones.
    """
    if is_long(scores):
        return score_runs.clip_changes(scores, frame_s, onset_s, offset_s, dtc, gtc)
    module = sed_scores_eval()
    times = np.arange(len(scores) + 1) * frame_s
    thresholds, *detections = module.intermediate_statistics.statistics.onset_offset_curves(
        scores.astype(np.float64), times
    )
    events = (onset_s, offset_s, {}, {})
    counts = module.intermediate_statistics.statistics_fn(*detections, *events, dtc, gtc, None)
    found, false = _change(counts["tps"]), _change(counts["fps"])
    changed = (found != 0) | (false != 0)
    return thresholds[changed], found[changed], false[changed]


def class_roc(
    scores: np.ndarray,
    found: np.ndarray,
    false: np.ndarray,
    n_reference: int,
    total_s: float,
    max_efpr: float,
) -> tuple[float, Roc]:
    """One class without cross-triggers: its PSDS and (true positive ratio, eFPR per hour).

    `found` and `false` (changes,) say how the counts change where the threshold falls below
    `scores` (changes,).
    """
    if not len(scores):  # nothing is detected, or never within the limit
        return 0.0, (np.zeros(1), np.zeros(1))
    changes = {"tps": found, "fps": false, "cts": np.zeros(len(scores))}
    value, _, _, curves = sed_scores_eval().psds(
        None,
        {"all": _stub(0, n_reference, float(n_reference))},
        {"all": total_s},
        deltas={"all": {class_name(0): (scores, changes)}},
        dtc_threshold=0.5,
        gtc_threshold=0.5,
        max_efpr=max_efpr,
    )
    ratio, efpr, _ = curves[class_name(0)]
    return float(value), (ratio, efpr)


def joined_psds(curves: Iterable[Roc], alpha_st: float, max_efpr: float) -> float:
    """PSDS of several classes' curves."""
    module = sed_scores_eval()
    named = {class_name(i): curve for i, curve in enumerate(curves)}
    ratio, efpr = module.multi_class_psd_roc_from_single_class_psd_rocs(
        named, alpha_st=alpha_st, max_efpr=max_efpr
    )
    return float(module.psds_from_psd_roc(ratio, efpr, max_efpr))


def beyond(n_false: np.ndarray, total_s: float, max_efpr: float) -> np.ndarray:
    """Whether so many false positives are more than `max_efpr` an hour, rounded as there."""
    return n_false / total_s * _HOUR_S > max_efpr


def class_name(i: int) -> str:
    """A class's name inside sed_scores_eval, which does not take every label."""
    return f"class {i}"


def _change(counts: np.ndarray) -> np.ndarray:
    return counts - np.append(counts[1:], 0)


def _stub(i: int, n_events: int, seconds: float) -> list[tuple[float, float, str]]:
    """Events that don't touch, of this number and total length: all that is looked at here."""
    empty = [(-k / n_events, -k / n_events, class_name(i)) for k in range(1, n_events)]
    return [*empty, (0.0, float(seconds), class_name(i))]
