"""What a task is: clips with events in splits, the rotations they are used in, and its facts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from downstream.tasks.audio_hashes import audio_hashes

if TYPE_CHECKING:
    from downstream.tasks.sources import Sources

Progress = Callable[[int, int], None]  # clips done, clips in all
Triple = tuple[float, float, str]  # onset_s, offset_s, label

# What numbers depend on beside the data: of a task's facts, and of HEAR's metadata.
_FACTS = ("metrics", "median_s", "min_duration_s")
_METADATA = ("task_name", "splits", "evaluation", "evaluation_params")
_METADATA += ("use_scoring_for_early_stopping",)


@dataclass(frozen=True)
class Clip:
    """A recording and what sounds in it.

    `file` is its name in events, scores and results; `unit` is the independent thing that it is
    part of (scene, piece, or itself), which intervals resample. `events_ms`: the events in HEAR's
    milliseconds where the task came with those: seconds cannot hold all of them exactly.
    """

    file: str
    path: Path
    events: tuple[Triple, ...]
    duration_s: float
    unit: str
    events_ms: tuple[Triple, ...] | None = None

    def in_ms(self) -> tuple[Triple, ...]:
        """The events in milliseconds, as HEAR has them."""
        if self.events_ms is not None:
            return self.events_ms
        return tuple((1000 * a, 1000 * b, label) for a, b, label in self.events)


@dataclass(frozen=True)
class ExtraClip:
    """A recording that is not labelled strongly: which classes sound in it, or None: not known."""

    file: str
    path: Path
    duration_s: float
    labels: tuple[str, ...] | None


@dataclass(frozen=True)
class Rotation:
    """Which splits are trained on, selected on and tested on; folds have several rotations."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class HeadScores:
    """What a model's own head scores on a task.

    metrics: by name, (`micro`, `macro`, value by class). recipe: how they were obtained. count:
    clips scored, in words. n_frames: how many frames that were.
    """

    metrics: Mapping[str, tuple[float, float, dict[str, float]]]
    recipe: Mapping[str, Any]
    count: str
    n_frames: int


def _recognises_none(folder: Path) -> bool:
    return False


@dataclass(frozen=True)
class Facts:
    """What is known of a task before its data is there.

    metrics: keys of `downstream.scoring.METRICS`; the first one is the main metric.
    unit: what intervals resample, in one word.
    median_s, min_duration_s: what protocol `paper` smooths scores with and drops (None: nothing).
    open: (folder, these facts, **options of the task) -> the task.
    score_head: of a task that is for evaluation only: (model, task, progress) -> what the model's
        own head scores.
    recognises: whether a folder, by the names in it, holds this task's data.
    build: (raw data, folder, progress) -> the folder in HEAR's layout; None: nothing to be built.
    """

    name: str
    version: str
    licence: str
    citation: str
    metrics: tuple[str, ...]
    unit: str
    open: Callable[..., Task]
    score_head: Callable[..., HeadScores] | None = None
    median_s: float = 0.25
    min_duration_s: float | None = 0.125
    recognises: Callable[[Path], bool] = _recognises_none
    build: Callable[[Sources, Path, Progress], None] | None = None


@dataclass(frozen=True)
class Task:
    """A task with its data: `splits` are clips by split name, `labels` the classes in order.

    `name` and `version` are those of the data; `hear` is HEAR's task metadata (what protocol `hear`
    is set by), `extra` what is not labelled strongly, by name (`weak`, `unlabeled`): for training.
    """

    facts: Facts
    name: str
    version: str
    folder: Path
    labels: tuple[str, ...]
    splits: Mapping[str, tuple[Clip, ...]]
    rotations: tuple[Rotation, ...]
    hear: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, tuple[ExtraClip, ...]] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of its metrics, the main one first."""
        return self.facts.metrics

    def clips(self, splits: str | Iterable[str]) -> tuple[Clip, ...]:
        """The clips of one split or of several, in order."""
        names = (splits,) if isinstance(splits, str) else splits
        return tuple(clip for name in names for clip in self.splits[name])

    def digest(self) -> str:
        """sha256 of what a result was measured against, and of what the task says on how.

        That is labels, splits, events and recordings; metrics, smoothing, HEAR's metadata.
        """
        paths = [clip.path for clip in self.clips(sorted(self.splits))]
        text = repr((self.labels_digest(), self._rules(), audio_hashes(self.folder, paths)))
        return hashlib.sha256(text.encode()).hexdigest()

    def _rules(self) -> str:
        """What selects and decodes, as JSON."""
        facts = {name: getattr(self.facts, name) for name in _FACTS}
        hear = {name: self.hear[name] for name in _METADATA if name in self.hear}
        return json.dumps([facts, hear], sort_keys=True)

    def labels_digest(self) -> str:
        """sha256 of labels, splits and events, whatever the recordings hold."""
        text = repr((self.labels, sorted(self.splits), self.rotations))
        found = hashlib.sha256(text.encode())
        for name in sorted(self.splits):
            for clip in self.splits[name]:
                found.update(repr((name, clip.file, clip.duration_s, clip.in_ms())).encode())
        return found.hexdigest()
