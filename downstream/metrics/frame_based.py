"""Average precision over frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from downstream.metrics.score import Score, class_score


def frame_map(
    scores: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray], labels: Sequence[str]
) -> Score:
    """Average precision of frames: `macro` is the mean over classes (mAP), `micro` pools them.

    `scores` are {file: (frames, classes)}, `targets` the same shapes, active where above 0 (as
    from `hear_pretrainedsed.events.events_to_frames`). The sum of precision times the step in
    recall over distinct scores, without interpolation: scikit-learn's `average_precision_score`,
    heareval's "mAP". A class that is active nowhere is NaN and not in `macro`, where scikit-learn
    counts 0 with a warning.

    Raises `ValueError` for files, shapes or labels that don't fit, and for NaN.
    """
    score, target = _joined(scores, targets, labels)
    values = [average_precision(score[:, i], target[:, i]) for i in range(len(labels))]
    micro = average_precision(score.ravel(), target.ravel())
    return class_score(micro, np.array(values, dtype=np.float64), labels)


def average_precision(scores: np.ndarray, active: np.ndarray) -> float:
    """Average precision of scores (n,) against activity (n,), NaN if nothing is active."""
    n_active = np.count_nonzero(active)
    if not n_active:
        return float("nan")
    order = np.argsort(scores)[::-1]
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # equal scores are one threshold
    hits = np.cumsum(active[order], dtype=np.int64)[last]
    precision = hits / (np.flatnonzero(last) + 1)
    return float(np.sum(np.diff(hits, prepend=0) / n_active * precision))


def _joined(
    scores: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray], labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    if not scores:
        raise ValueError("no scores")
    apart = sorted(scores.keys() ^ targets.keys())
    if apart:
        side = "scores" if apart[0] in scores else "targets"
        raise ValueError(f"{len(apart)} files on one side only, the first, {apart[0]!r}, in {side}")
    rows, active = [], []
    for name, score in scores.items():
        score, target = np.asarray(score), np.asarray(targets[name])
        if score.ndim != 2 or score.shape[1] != len(labels) or score.shape != target.shape:
            raise ValueError(
                f"{name!r}: scores {score.shape}, targets {target.shape}, "
                f"wanted (frames, {len(labels)})"
            )
        if np.isnan(score).any() or np.isnan(target).any():
            raise ValueError(f"{name!r}: NaN in scores or targets")
        rows.append(score)
        active.append(target > 0)
    return np.concatenate(rows), np.concatenate(active)
