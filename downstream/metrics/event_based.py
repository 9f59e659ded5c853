"""Onset F1, onset and offset F1, event error rate: sed_eval's EventBasedMetrics.

Rules, from sed_eval 0.2.1 (`sound_event.py`, `event_matching_type="optimal"`, its default since
0.2.0) and Mesaros, Heittola, Virtanen, "Metrics for polyphonic sound event detection", 2016:

- Files are matched one by one, and counts are added up over files before any division.
- Events match if |onset difference| <= collar; with an `offset_fraction` also |offset difference|
  <= max(collar, offset_fraction * length of the reference event).
- The number of hits is the size of a largest matching within a class.
- F1 = 2PR / (P + R); `macro` is the mean over the classes of the vocabulary whose F1 is defined.

heareval's scores (heareval/score.py) are `.micro`: `event_onset_200ms_fms` is `collar_s=0.2`,
`event_onset_50ms_fms` is `collar_s=0.05`, `event_onset_offset_50ms_20perc_fms` is `collar_s=0.05,
offset_fraction=0.2`. It leaves precision undefined where a system is silent, so that a set without
any estimated event has an F1 of NaN; DCASE's reports score 0 there (`zero_if_silent=True`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from downstream.metrics.event_table import EventPair, Events, event_pair
from downstream.metrics.matching import candidates, matched_references, ordered_matching
from downstream.metrics.score import Score, class_score, error_rate, f_measure


def event_f1(
    reference: Events,
    estimated: Events,
    collar_s: float = 0.2,
    offset_fraction: float | None = None,
    *,
    labels: Sequence[str] | None = None,
    zero_if_silent: bool = False,
) -> Score:
    """F1 of events matched by their onsets, and by their offsets where a fraction is given.

    `labels` is the vocabulary (default: the labels that occur). A class with neither reference nor
    estimated events is NaN and not in `macro`; so is a class with reference events that the system
    never names, as in sed_eval, unless `zero_if_silent`.

    Raises `ValueError` for a collar or fraction out of range and for bad events (`event_pair`).
    """
    _check(collar_s, offset_fraction)
    pair = event_pair(reference, estimated, labels)
    pairs = candidates(pair.reference, pair.estimated, collar_s, offset_fraction)
    matched = matched_references(pairs, len(pair.reference), len(pair.estimated))
    n_hits, n_ref, n_est = _counts(pair, matched)
    f1 = f_measure(n_hits, n_ref, n_est, zero_if_silent)
    micro = f_measure(n_hits.sum(), n_ref.sum(), n_est.sum(), zero_if_silent)
    return class_score(float(micro), f1, pair.labels)


def event_counts(
    reference: Events,
    estimated: Events,
    collar_s: float = 0.2,
    offset_fraction: float | None = None,
    *,
    labels: Sequence[str] | None = None,
) -> np.ndarray:
    """Hits, reference and estimated events by file (files, classes, 3): what `event_f1` sums up.

    Files are in the order of `reference`, those of `estimated` alone after them.
    """
    _check(collar_s, offset_fraction)
    pair = event_pair(reference, estimated, labels)
    pairs = candidates(pair.reference, pair.estimated, collar_s, offset_fraction)
    matched = matched_references(pairs, len(pair.reference), len(pair.estimated))
    size = (len(pair.files), len(pair.labels))
    tables = (pair.reference.rows(matched), pair.reference, pair.estimated)
    return np.stack([table.count_by_file(*size) for table in tables], axis=-1)


def event_error_rate(
    reference: Events,
    estimated: Events,
    collar_s: float = 0.2,
    offset_fraction: float | None = None,
    *,
    labels: Sequence[str] | None = None,
) -> Score:
    """(Substitutions + deletions + insertions) / reference events, matched as in `event_f1`.

    After the matching, each leftover reference event in turn takes the first leftover estimated
    event, whatever its class, that is near enough: a substitution. What remains is deleted or
    inserted. `per_class` knows no substitutions. Which events are left over depends on the order
    of a file's events (`ordered_matching`); sed_eval has the same dependence.

    A class without reference events has a rate of 0, or 4.5e15 an insertion (`error_rate`).
    """
    _check(collar_s, offset_fraction)
    pair = event_pair(reference, estimated, labels)
    pairs = candidates(pair.reference, pair.estimated, collar_s, offset_fraction)
    partner = ordered_matching(pairs)
    n_hits, n_ref, n_est = _counts(pair, np.array(list(partner), dtype=np.int64))
    n_swapped = _substitutions(pair, partner, collar_s, offset_fraction)
    n_missed, n_added = n_ref - n_hits, n_est - n_hits
    micro = error_rate(
        n_ref.sum(), np.int64(n_swapped), n_missed.sum() - n_swapped, n_added.sum() - n_swapped
    )
    per_class = error_rate(n_ref, np.zeros_like(n_ref), n_missed, n_added)
    return class_score(float(micro), per_class, pair.labels)


def _check(collar_s: float, offset_fraction: float | None) -> None:
    if not 0 < collar_s < float("inf"):
        raise ValueError(f"collar_s is a time above 0 seconds, got {collar_s}")
    if offset_fraction is not None and not 0 <= offset_fraction <= 1:
        raise ValueError(f"offset_fraction is None or from 0 to 1, got {offset_fraction}")


def _counts(pair: EventPair, matched: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, reference and estimated events of each class."""
    n_labels = len(pair.labels)
    n_hits = pair.reference.rows(matched).count(n_labels)
    return n_hits, pair.reference.count(n_labels), pair.estimated.count(n_labels)


def _substitutions(
    pair: EventPair, partner: dict[int, int], collar_s: float, offset_fraction: float | None
) -> int:
    left_ref = np.setdiff1d(np.arange(len(pair.reference)), list(partner))
    left_est = np.setdiff1d(np.arange(len(pair.estimated)), list(partner.values()))
    refs, ests = candidates(
        pair.reference.rows(left_ref),
        pair.estimated.rows(left_est),
        collar_s,
        offset_fraction,
        same_label=False,
    )
    served: set[int] = set()
    used: set[int] = set()
    for ref, est in zip(refs.tolist(), ests.tolist(), strict=True):
        if ref not in served and est not in used:
            served.add(ref)
            used.add(est)
    return len(served)
