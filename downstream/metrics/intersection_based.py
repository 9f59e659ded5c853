"""Intersection criteria on event lists: F1, and PSDS from operating points.

Rules, from Bilen et al., "A framework for the robust evaluation of sound event detection", 2020,
in the form of psds_eval 0.5.3:

- A detection is relevant if the part of it that meets reference events of its class is at least
  `dtc` of its length; one that is not relevant is a false positive.
- A reference event is found if the part of it that meets relevant detections is at least `gtc`.
- A false positive is also a cross-trigger of each other class whose reference events it meets for
  at least `cttc` of its length.
- Zero-length events are left out. Classes without reference events are NaN and count nowhere.
- A detection that begins at its clip's end or later is no false positive.

Shares are compared as psds_eval computes them, seconds divided by length and added up in float64:
from 2.2 s to 2.9 s is not 0.7 of a second. sed_scores_eval, and so `psds`, rounds to 6 decimals.
Criteria of 0 still want some part to meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from downstream.metrics import psd_roc
from downstream.metrics.event_table import (
    EventPair,
    Events,
    EventTable,
    event_pair,
    first_few,
    labels_of,
    with_length,
)
from downstream.metrics.matching import Pairs, in_ranges
from downstream.metrics.score import Score, class_score


@dataclass(frozen=True)
class _Counts:
    """One operating point: `found` and `false` (classes,), `crossed` (classes, classes)."""

    found: np.ndarray
    false: np.ndarray
    crossed: np.ndarray


def intersection_f1(
    reference: Events,
    estimated: Events,
    dtc: float = 0.5,
    gtc: float = 0.5,
    *,
    durations_s: Mapping[str, float] | None = None,
    labels: Sequence[str] | None = None,
) -> Score:
    """F1 with found reference events as hits: 2 found / (found + missed + found + false).

    `macro` is psds_eval's `compute_macro_f_score` (DESED's intersection F1, .5 and .5); `micro`
    takes the counts of all classes together. Without `durations_s` clips have no end.

    Raises `ValueError` as `event_pair` does, and for criteria outside 0..1 and events of a class
    that overlap.
    """
    psd_roc.check_fractions(dtc=dtc, gtc=gtc)
    pair = _usable(event_pair(reference, estimated, labels))
    if durations_s is not None:
        psd_roc.total_duration(durations_s, pair.files)
    counts = _count(pair, dtc, gtc, None, durations_s)
    n_ref = pair.reference.count(len(pair.labels))
    total = n_ref + counts.found + counts.false
    values = np.where(n_ref > 0, 2 * counts.found / np.maximum(total, 1), np.nan)
    there = n_ref > 0
    micro = 2 * counts.found[there].sum() / total[there].sum() if there.any() else np.nan
    return class_score(float(micro), values, pair.labels)


def intersection_counts(
    reference: Events,
    estimated: Events,
    dtc: float = 0.5,
    gtc: float = 0.5,
    *,
    durations_s: Mapping[str, float] | None = None,
    labels: Sequence[str] | None = None,
) -> np.ndarray:
    """Found and reference events and false positives by file (files, classes, 3).

    What `intersection_f1` sums up; files as in `event_based.event_counts`.
    """
    psd_roc.check_fractions(dtc=dtc, gtc=gtc)
    pair = _usable(event_pair(reference, estimated, labels))
    found, false = _judged(pair, dtc, gtc)
    size = (len(pair.files), len(pair.labels))
    tables = (found, pair.reference, _within(false, durations_s, pair.files))
    return np.stack([table.count_by_file(*size) for table in tables], axis=-1)


def psds_from_events(
    operating_points: Sequence[Events],
    reference: Events,
    durations_s: Mapping[str, float],
    dtc: float,
    gtc: float,
    *,
    cttc: float | None = None,
    alpha_ct: float = 0.0,
    alpha_st: float = 0.0,
    max_efpr: float = 100.0,
    labels: Sequence[str] | None = None,
) -> Score:
    """PSDS of events at several thresholds, for systems that have no frame scores to give.

    `operating_points` are estimated events at each threshold, in any order; events that were
    changed after thresholding, by change points for one, have no other PSDS. Where there are
    scores `psds` takes all thresholds into account. `durations_s` are the clips that are scored,
    with events or not. Parameters, `micro` and `macro` as in `psds`. The curves and the area under
    them are sed_scores_eval's.
    """
    psd_roc.check_parameters(dtc, gtc, cttc, alpha_ct, alpha_st, max_efpr)
    if not operating_points:
        raise ValueError("no operating points")
    cttc = cttc if alpha_ct else None
    labels = labels_of((reference, *operating_points)) if labels is None else labels
    missing = [name for name in reference if name not in durations_s]
    if missing:
        raise ValueError(f"no duration of {first_few(missing)}")
    total_s = psd_roc.total_duration(durations_s, durations_s)
    clips = {name: reference.get(name, ()) for name in durations_s}
    pairs = [_usable(event_pair(clips, events, labels)) for events in operating_points]
    psd_roc.total_duration(durations_s, {name for pair in pairs for name in pair.files})
    counts = [_count(pair, dtc, gtc, cttc, durations_s) for pair in pairs]
    table = pairs[0].reference
    n_ref = table.count(len(labels))
    t_ref = np.bincount(table.label, table.offset_s - table.onset_s, minlength=len(labels))
    there = np.flatnonzero(n_ref)
    found, false = (np.stack([getattr(c, n) for c in counts])[:, there] for n in ("found", "false"))
    crossed = np.stack([c.crossed for c in counts])[:, there][:, :, there]
    value, per_class = psd_roc.psds_of_counts(
        found, false, crossed, n_ref[there], t_ref[there], total_s, alpha_ct, alpha_st, max_efpr
    )
    values = np.full(len(labels), np.nan)
    values[there] = per_class
    return class_score(value, values, labels)


def _usable(pair: EventPair) -> EventPair:
    """Without zero-length events; raises where events of one class overlap."""
    sides = {"reference": with_length(pair.reference), "estimated": with_length(pair.estimated)}
    for side, table in sides.items():
        check_apart(side, table, pair.files, pair.labels, may_touch=True)
    return EventPair(sides["reference"], sides["estimated"], pair.files, pair.labels)


def check_apart(
    side: str, table: EventTable, files: Sequence[str], labels: Sequence[str], *, may_touch: bool
) -> None:
    """Raise `ValueError` if events of one class and file overlap (or touch)."""
    order = np.lexsort((table.offset_s, table.onset_s, table.label, table.file))
    table = table.rows(order)
    same = (np.diff(table.file) == 0) & (np.diff(table.label) == 0)
    gap = table.onset_s[1:] - table.offset_s[:-1]
    bad = np.flatnonzero(same & ((gap < 0) if may_touch else (gap <= 0)))
    if len(bad):
        what = first_few(
            f"{labels[table.label[i]]} at {table.onset_s[i + 1]:g} s in {files[table.file[i]]}"
            for i in bad
        )
        raise ValueError(
            f"{side}: events of one class {'overlap' if may_touch else 'overlap or touch'}: {what};"
            " hear_pretrainedsed.events.merge_events joins them"
        )


def _count(
    pair: EventPair,
    dtc: float,
    gtc: float,
    cttc: float | None,
    durations_s: Mapping[str, float] | None,
) -> _Counts:
    n_labels = len(pair.labels)
    found, false = _judged(pair, dtc, gtc)
    crossed = np.zeros((n_labels, n_labels), np.int64)
    if cttc is not None:
        crossed = _cross_triggers(pair.reference, false, cttc, n_labels)
    false = _within(false, durations_s, pair.files)
    return _Counts(found.count(n_labels), false.count(n_labels), crossed)


def _judged(pair: EventPair, dtc: float, gtc: float) -> tuple[EventTable, EventTable]:
    """Reference events that are found, and detections that are not relevant."""
    reference, estimated, n_labels = pair.reference, pair.estimated, len(pair.labels)
    groups = [table.file * n_labels + table.label for table in (reference, estimated)]
    ref, est, met_s = _meetings(reference, estimated, *groups)
    relevant = _enough(met_s / _length(estimated)[est], est, len(estimated), dtc)
    kept = relevant[est]
    ref, met_s = ref[kept], met_s[kept]
    found = _enough(met_s / _length(reference)[ref], ref, len(reference), gtc)
    return reference.rows(found), estimated.rows(~relevant)


def _within(
    table: EventTable, durations_s: Mapping[str, float] | None, files: Sequence[str]
) -> EventTable:
    """The events that begin before their clip's end."""
    if durations_s is None:
        return table
    ends = np.array([durations_s[name] for name in files])
    return table.rows(table.onset_s < ends[table.file])


def _cross_triggers(
    reference: EventTable, false: EventTable, cttc: float, n_labels: int
) -> np.ndarray:
    """False positives of class i that meet enough of class j (i, j)."""
    ref, est, met_s = _meetings(reference, false, reference.file, false.file)
    cells, place = np.unique(est * n_labels + reference.label[ref], return_inverse=True)
    hit = cells[_enough(met_s / _length(false)[est], place, len(cells), cttc)]
    crossed = np.zeros((n_labels, n_labels), np.int64)
    np.add.at(crossed, (false.label[hit // n_labels], hit % n_labels), 1)
    np.fill_diagonal(crossed, 0)
    return crossed


def _length(table: EventTable) -> np.ndarray:
    return table.offset_s - table.onset_s


def _enough(share: np.ndarray, group: np.ndarray, n_groups: int, needed: float) -> np.ndarray:
    """Whether the shares of each group add up to what is needed (groups,)."""
    return (_sums(share, group, n_groups) >= needed) & (np.bincount(group, minlength=n_groups) > 0)


def _sums(values: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Sums by group (groups,), compensated (Kahan) as those of psds_eval's tables are."""
    order = np.argsort(group, kind="stable")
    values, group = values[order], group[order]
    rank = np.arange(len(group)) - np.searchsorted(group, group)
    total, lost = np.zeros(n_groups), np.zeros(n_groups)
    for turn in range(rank.max(initial=-1) + 1):
        rows = np.flatnonzero(rank == turn)
        where, value = group[rows], values[rows]
        value = value - lost[where]
        new = total[where] + value
        lost[where] = (new - total[where]) - value
        total[where] = new
    return total


def _meetings(
    reference: EventTable, estimated: EventTable, ref_groups: np.ndarray, est_groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of a group that meet, and for how many seconds."""
    ref, est = _all_pairs(ref_groups, est_groups)
    end = np.minimum(reference.offset_s[ref], estimated.offset_s[est])
    met_s = end - np.maximum(reference.onset_s[ref], estimated.onset_s[est])
    meet = met_s > 0
    return ref[meet], est[meet], met_s[meet]


def _all_pairs(groups_a: np.ndarray, groups_b: np.ndarray) -> Pairs:
    order = np.argsort(groups_b, kind="stable")
    sides = (np.searchsorted(groups_b[order], groups_a, side) for side in ("left", "right"))
    row, place = in_ranges(*sides)
    return row, order[place]
