"""PSDS over all thresholds, from frame scores, by sed_scores_eval.

Bilen et al. 2020 (the score) and Ebbers, Serizel, Haeb-Umbach, "Threshold-independent evaluation
of sound event detection scores", 2022 (exact over all thresholds). sed_scores_eval wants a table a
clip in memory and keeps every change of every clip and class: for AudioSet Strong's 17 000 clips x
447 classes that is tens of GB. Without cross-triggers classes don't depend on each other, and
`psds` then reads clips one at a time, in worker processes (`psds_shards`), with equal results.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from downstream.metrics import psd_roc
from downstream.metrics.event_table import Events, EventTable, event_pair, first_few, with_length
from downstream.metrics.intersection_based import check_apart
from downstream.metrics.psds_shards import Task, class_rocs, frame_scores
from downstream.metrics.score import Score, class_score

PSDS1: dict[str, Any] = {"dtc": 0.7, "gtc": 0.7, "alpha_st": 1.0}
"""DCASE task 4's first scenario: react fast, locate precisely."""

PSDS2: dict[str, Any] = {"dtc": 0.1, "gtc": 0.1, "cttc": 0.3, "alpha_ct": 0.5, "alpha_st": 1.0}
"""Its second one: don't confuse classes."""

_WORTH_PROCESSES = 200_000  # clips x classes: a few seconds of work


def psds(
    scores: Mapping[str, np.ndarray],
    frame_s: float,
    labels: Sequence[str],
    reference: Events,
    durations_s: Mapping[str, float],
    dtc: float,
    gtc: float,
    *,
    cttc: float | None = None,
    alpha_ct: float = 0.0,
    alpha_st: float = 0.0,
    max_efpr: float = 100.0,
    jobs: int | None = None,
) -> Score:
    """PSDS of frame scores {file: (frames, classes)}; frame i is from i to (i + 1) * `frame_s`.

    `micro` is the PSDS with the given penalties (`**PSDS1`, `**PSDS2`); `macro` the mean over
    classes, without the penalty for unequal classes: what papers on AudioSet Strong quote.
    `max_efpr` is in false positives an hour. Scores may be of any scale, filtered or not; -inf is
    never detected. The mapping may read a file when it is asked for it, twice at most.

    Every file of `reference` must have scores; files with scores and no events are silence.
    `durations_s` may hold more files. Zero-length reference events are left out. A class without
    reference events is NaN and counts nowhere (sed_scores_eval refuses it). `jobs` is the number
    of worker processes (default: every core, or none of them where there is little to do).

    Raises `ValueError` for bad events (`event_pair`), reference events of one class that overlap
    or touch, files without scores or duration, and scores of the wrong shape or with NaN.
    """
    psd_roc.check_parameters(dtc, gtc, cttc, alpha_ct, alpha_st, max_efpr)
    table, files, labels = _reference(scores, frame_s, labels, reference)
    total_s = psd_roc.total_duration(durations_s, files)
    n_ref = table.count(len(labels))
    kept = np.flatnonzero(n_ref)
    if not len(kept):
        raise ValueError("no reference events")
    psd_roc.sed_scores_eval()  # imported once, not in every worker
    jobs = _jobs(jobs, len(files) * len(kept))
    task = Task(scores, files, len(labels), kept, table, frame_s, total_s, dtc, gtc, max_efpr)
    if alpha_ct:
        assert cttc is not None
        value, per_class = _with_cross_triggers(task, cttc, alpha_ct, alpha_st, jobs)
    else:
        per_class, curves = class_rocs(task, jobs)
        value = psd_roc.joined_psds(curves, alpha_st, max_efpr)
    values = np.full(len(labels), np.nan)
    values[kept] = per_class
    return class_score(value, values, labels)


def _reference(
    scores: Mapping[str, np.ndarray], frame_s: float, labels: Sequence[str], reference: Events
) -> tuple[EventTable, tuple[str, ...], tuple[str, ...]]:
    """Reference events, sorted by file and onset, with numbers of the files that have scores."""
    if not 0 < frame_s < float("inf"):
        raise ValueError(f"frame_s is a time above 0 seconds, got {frame_s}")
    known = set(scores)  # asking a lazy mapping whether it has a file may read it
    missing = [name for name in reference if name not in known]
    if missing:
        raise ValueError(f"no scores of {first_few(missing)}")
    everything = {name: reference.get(name, ()) for name in scores}
    pair = event_pair(everything, {}, labels)
    table = with_length(pair.reference)
    check_apart("reference", table, pair.files, pair.labels, may_touch=False)
    return table.rows(np.lexsort((table.onset_s, table.file))), pair.files, pair.labels


def _jobs(jobs: int | None, size: int) -> int:
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs is a number from 1, got {jobs}")
    if sys.platform != "linux":
        return 1  # workers inherit the scores by forking, which is safe on Linux only
    if jobs is not None:
        return jobs
    return len(os.sched_getaffinity(0)) if size >= _WORTH_PROCESSES else 1


def _with_cross_triggers(
    task: Task, cttc: float, alpha_ct: float, alpha_st: float, jobs: int
) -> tuple[float, np.ndarray]:
    """All classes at once, as sed_scores_eval has it: DESED's size, not AudioSet's."""
    import pandas as pd

    names = [psd_roc.class_name(i) for i in range(len(task.kept))]
    frames, events = {}, {}
    for i, file in enumerate(task.files):
        score = frame_scores(task, i)
        times = np.arange(len(score) + 1) * task.frame_s
        columns = np.column_stack((times[:-1], times[1:], score))
        frames[file] = pd.DataFrame(columns, columns=["onset", "offset", *names])
        events[file] = task.events(i)
    value, per_class, *_ = psd_roc.sed_scores_eval().psds(
        frames,
        events,
        dict.fromkeys(task.files, 0.0) | {task.files[0]: task.total_s},  # only their sum counts
        dtc_threshold=task.dtc,
        gtc_threshold=task.gtc,
        cttc_threshold=cttc,
        alpha_ct=alpha_ct,
        alpha_st=alpha_st,
        max_efpr=task.max_efpr,
        num_jobs=jobs,
    )
    return float(value), np.array([per_class[name] for name in names])
