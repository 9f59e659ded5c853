"""Small tasks with made-up events and scores, and what a protocol might say about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

from downstream.protocols.base import Found
from downstream.tasks.task import Clip, Facts, Rotation, Task, Triple

HOP_S = 0.04


def some_events(
    rng: np.random.Generator, labels: tuple[str, ...], duration_s: float, n: int
) -> tuple[Triple, ...]:
    """Events that don't touch others of their class."""
    events: list[Triple] = []
    for onset_s in np.sort(rng.uniform(0, duration_s - 0.2, n)):
        label = labels[rng.integers(len(labels))]
        offset_s = min(duration_s, onset_s + rng.uniform(0.1, 1.5))
        ends = [b for _, b, other in events if other == label]
        if not ends or onset_s > max(ends) + 0.01:
            events.append((float(onset_s), float(offset_s), label))
    return tuple(events)


def small_task(
    rng: np.random.Generator,
    metrics: tuple[str, ...],
    *,
    n_folds: int = 1,
    n_clips: int = 6,
    n_labels: int = 3,
    duration_s: float = 4.0,
    n_events: int = 4,
    clips_a_unit: int = 1,
) -> Task:
    """A task of `n_folds` rotations, each of which tests `n_clips` clips."""
    labels = tuple(f"class{i}" for i in range(n_labels))
    splits = {
        f"fold{k}": tuple(
            Clip(
                f"{k}_{i}.wav",
                Path(f"{k}_{i}.wav"),
                some_events(rng, labels, duration_s, n_events),
                duration_s,
                f"unit{k}_{i // clips_a_unit}",
            )
            for i in range(n_clips)
        )
        for k in range(n_folds)
    }
    facts = Facts("small", "1.0.0", "CC0", "", metrics, "scene", small_task)
    rotations = tuple(Rotation((), (), (name,)) for name in splits)
    return Task(facts, "small", "1.0.0", Path("."), labels, splits, rotations)


def some_found(
    rng: np.random.Generator, task: Task, noise: float = 1.0, n_levels: int | None = None
) -> Found:
    """Noisy scores of every clip, perhaps of a few levels only, and noisy events."""
    scores, events = {}, {}
    for clip in task.clips(task.splits):
        n_frames = round(clip.duration_s / HOP_S)
        x = noise * rng.normal(size=(n_frames, len(task.labels)))
        for a, b, label in clip.events:
            x[int(a / HOP_S) : int(b / HOP_S) + 1, task.labels.index(label)] += 1
        score = 1 / (1 + np.exp(-4 * gaussian_filter1d(x, 1.5, axis=0)))
        if n_levels:
            score = np.round(score * n_levels) / n_levels
        scores[clip.file] = score.astype(np.float32)
        events[clip.file] = _moved(rng, clip.events, noise)
        if rng.random() < noise / 2:
            events[clip.file].append((0.5, 0.75, task.labels[0]))
    folds = tuple(tuple(c.file for c in task.clips(r.test)) for r in task.rotations)
    return Found(scores, events, folds, ({"lr": 0.1},) * len(folds), {"k": 1})


def _moved(rng: np.random.Generator, events: tuple[Triple, ...], noise: float) -> list[Triple]:
    found = []
    for a, b, label in events:
        if rng.random() > noise / 4:
            start = max(0.0, a + noise * rng.normal(0, 0.1))
            found.append((start, max(start, b + noise * rng.normal(0, 0.1)), label))
    return found
