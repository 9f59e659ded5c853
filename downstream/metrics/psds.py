"""PSDS over all thresholds, from frame scores, by sed_scores_eval.

Bilen et al. 2020 (the score) and Ebbers, Serizel, Haeb-Umbach, "Threshold-independent evaluation
of sound event detection scores", 2022 (exact over all thresholds). sed_scores_eval wants a table a
clip in memory and keeps every change of every clip and class: for AudioSet Strong's 17 000 clips x
447 classes that is tens of GB. Without cross-triggers `psds` reads clips one at a time, in worker
processes, and keeps what matters (`psds_stream`), with equal results.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from downstream.metrics import psd_roc
from downstream.metrics.event_table import Events, first_few
from downstream.metrics.expected_clips import ExpectedClips
from downstream.metrics.psds_stream import Progress, StreamedPSDS, add_all, psds_clips
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
    progress: Progress | None = None,
) -> Score:
    """PSDS of frame scores {file: (frames, classes)}; frame i is from i to (i + 1) * `frame_s`.

    `micro` is the PSDS with the given penalties (`**PSDS1`, `**PSDS2`); `macro` the mean over
    classes, without the penalty for unequal classes: what papers on AudioSet Strong quote.
    `max_efpr` is in false positives an hour. Scores may be of any scale, filtered or not; -inf is
    never detected. The mapping may read a file when it is asked for it, which it is once; scores
    that are computed as they are scored go to `StreamedPSDS`.

    Every file of `reference` must have scores; files with scores and no events are silence.
    `durations_s` may hold more files. Zero-length reference events are left out. A class without
    reference events is NaN and counts nowhere (sed_scores_eval refuses it). `jobs` is the number
    of worker processes (default: every core, or none of them where there is little to do).
    `progress` is called with the number of clips done and of all clips, from time to time.

    Raises `ValueError` for bad events (`event_pair`), reference events of one class that overlap
    or touch, files without scores or duration, and scores of the wrong shape or with NaN.
    """
    psd_roc.check_parameters(dtc, gtc, cttc, alpha_ct, alpha_st, max_efpr)
    known = set(scores)  # asking a lazy mapping whether it has a file may read it
    if missing := [name for name in reference if name not in known]:
        raise ValueError(f"no scores of {first_few(missing)}")
    clips = {name: reference.get(name, ()) for name in scores}
    jobs = _jobs(jobs, len(clips) * len(labels))
    sides = (frame_s, labels, clips, durations_s)
    if alpha_ct:
        found = psds_clips(*sides)
        setting = dict(dtc_threshold=dtc, gtc_threshold=gtc, cttc_threshold=cttc)
        setting |= dict(alpha_ct=alpha_ct, alpha_st=alpha_st, max_efpr=max_efpr, num_jobs=jobs)
        return _with_cross_triggers(scores, found, setting)
    stream = StreamedPSDS(*sides, dtc, gtc, alpha_st=alpha_st, max_efpr=max_efpr)
    add_all(stream, scores, jobs, progress)
    return stream.result()


def _jobs(jobs: int | None, size: int) -> int:
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs is a number from 1, got {jobs}")
    if sys.platform != "linux":
        return 1  # workers inherit the scores by forking, which is safe on Linux only
    if jobs is not None:
        return jobs
    return len(os.sched_getaffinity(0)) if size >= _WORTH_PROCESSES else 1


def _with_cross_triggers(
    scores: Mapping[str, np.ndarray], clips: ExpectedClips, setting: dict[str, Any]
) -> Score:
    """All classes at once, as sed_scores_eval has it: DESED's size, not AudioSet's."""
    import pandas as pd

    there = np.unique(clips.table.label)
    names = [psd_roc.class_name(label) for label in there.tolist()]
    frames, events = {}, {}
    for number, file in enumerate(clips.files):
        score = clips.checked(file, scores[file])[:, there]
        times = np.arange(len(score) + 1) * clips.frame_s
        columns = np.column_stack((times[:-1], times[1:], score))
        frames[file] = pd.DataFrame(columns, columns=["onset", "offset", *names])
        events[file] = clips.named_events(number)
    value, per_class, *_ = psd_roc.sed_scores_eval().psds(
        frames, events, dict(zip(clips.files, clips.duration_s.tolist(), strict=True)), **setting
    )
    values = np.full(len(clips.labels), np.nan)
    values[there] = [per_class[name] for name in names]
    return class_score(float(value), values, clips.labels)
