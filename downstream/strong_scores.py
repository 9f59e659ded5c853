"""A checkpoint's own head on AudioSet Strong: PSDS1 and segment AUROC, clip by clip.

Recordings are decoded in the background while the model computes, and what the metrics keep is
bounded: nothing grows with the number of clips but a score a second and class.

Protocol `paper` is PretrainedSED's evaluation (see `downstream.tasks.audioset_strong`): a median of
9 frames on **logits**. A median of an odd number of values goes through the sigmoid unchanged, and
both metrics look at the order of scores alone, so that filtering scores instead moves the numbers
only where float32 has rounded different logits to one score.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from downstream.metrics import PSDS1, Score, StreamedPSDS, StreamedSegmentAUROC
from downstream.postprocess import median_filter
from downstream.tasks.audioset_strong import StrongSet
from downstream.tasks.task import Clip, Progress
from hear_pretrainedsed.audio import AudioError, read_audio
from hear_pretrainedsed.events import GRID
from hear_pretrainedsed.heads import NoHeadError
from hear_pretrainedsed.memory import in_smaller_batches
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.registry import unknown

MEDIAN_FRAMES = 9
FILTERED = ("logits", "scores")
"""What the median filter is applied to: `logits` is the published way."""

_CLIPS_AT_ONCE = {"cpu": 8, "cuda": 64}
_MOST_DECODERS = 8


@dataclass(frozen=True)
class StrongScores:
    """What a model scores on AudioSet Strong.

    psds1: `macro` is the number that papers quote (mean over classes), `micro` has the penalty for
    unequal classes (alpha_st 1). segment_auroc: 1 s, up to a false positive rate of 0.1.
    filtered: one of `FILTERED`. n_clips: clips scored. failed: reason by clip whose recording
    cannot be read; they are left out.
    """

    psds1: Score
    segment_auroc: Score
    filtered: str
    n_clips: int
    failed: dict[str, str]


def evaluate_audioset_strong(
    model: SEDModel,
    clips: StrongSet,
    *,
    filtered: str | None = None,
    median_frames: int = MEDIAN_FRAMES,
    progress: Progress | None = None,
) -> StrongScores:
    """Score a model whose head has AudioSet Strong's classes.

    `filtered` is one of `FILTERED` (None: logits, or scores if the head emits those).
    `progress` is told how many clips are done, and of how many. When memory runs out, the model's
    batch size is halved.

    Raises `ValueError` for a head that has not all the classes, and where no recording can be read.
    """
    counts = _Counts(clips, _columns(model, clips.labels), median_frames)
    filtered = _filtered(model, filtered)
    output = model.logits if filtered == "logits" else model.scores
    failed: dict[str, str] = {}
    n_done = 0
    with ThreadPoolExecutor(1) as counter:  # counts while the model computes
        counting = counter.submit(lambda: None)
        for group, audio in decoded(clips.clips, _CLIPS_AT_ONCE[model.device.type]):
            n_done += len(group)
            if isinstance(audio, AudioError):
                failed[group[0].file] = str(audio)
            else:
                values = _computed(model, output, audio)
                counting.result()
                counting = counter.submit(counts.add, group, values)
            if progress is not None:
                progress(n_done, len(clips.clips))
        counting.result()
    if len(failed) == n_done:
        raise ValueError(f"none of {n_done} recordings can be read: {next(iter(failed.values()))}")
    return StrongScores(*counts.results(failed), filtered, n_done - len(failed), failed)


class _Counts:
    """The metrics of a model's values so far; `columns` of them are scored."""

    def __init__(self, clips: StrongSet, columns: np.ndarray, median_frames: int) -> None:
        self.columns, self.median_frames = columns, median_frames
        reference = {clip.file: clip.events for clip in clips.clips}
        durations = {clip.file: clip.duration_s for clip in clips.clips}
        sides = (GRID.hop_s, clips.labels, reference, durations)
        self.streams = (StreamedPSDS(*sides, **PSDS1), StreamedSegmentAUROC(*sides))

    def add(self, group: Sequence[Clip], values: np.ndarray) -> None:
        """Values (clips, frames, classes of the head) of some clips."""
        for clip, one in zip(group, values, strict=True):
            smooth = median_filter(one[:, self.columns], self.median_frames)
            for stream in self.streams:
                stream.add(clip.file, smooth)

    def results(self, skipped: Iterable[str]) -> tuple[Score, Score]:
        """PSDS1 and segment AUROC without the clips that are skipped."""
        for stream in self.streams:
            for file in skipped:
                stream.skip(file)
        return self.streams[0].result(), self.streams[1].result()


def _columns(model: SEDModel, labels: Sequence[str]) -> np.ndarray:
    """Where the classes are in the head's outputs."""
    if model.head is None or model.labels is None:
        raise NoHeadError(
            f"{model.provenance.get('checkpoint', 'this model')} has no trained head for AudioSet "
            "Strong's classes: take a strong checkpoint"
        )
    place = {label: i for i, label in enumerate(model.labels)}
    missing = [label for label in labels if label not in place]
    if missing:
        raise ValueError(
            f"the head has {len(labels) - len(missing)} of the {len(labels)} classes, not "
            f"{missing[0]!r} for one"
        )
    return np.array([place[label] for label in labels])


def _filtered(model: SEDModel, wanted: str | None) -> str:
    emitted = "logits" if model.head.emits == "logits" else "scores"
    if wanted is not None and wanted not in FILTERED:
        raise ValueError(unknown("filtered", wanted, FILTERED))
    if wanted == "logits" and emitted != "logits":
        raise NoHeadError(f"the head emits {model.head.emits}: filter scores instead of logits")
    return wanted or emitted


def decoded(
    clips: Sequence[Clip], n_at_once: int
) -> Iterator[tuple[list[Clip], Tensor | AudioError]]:
    """Clips of one length together, with their audio (clips, samples), read in the background.

    A clip whose recording cannot be read comes alone, with the error. Clips come shortest first.
    """
    ordered = sorted(clips, key=lambda clip: clip.duration_s)
    n_decoders = min(_MOST_DECODERS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(n_decoders) as decoders:
        waiting = []
        for i in range(0, len(ordered), n_at_once):
            group = ordered[i : i + n_at_once]
            waiting.append((group, [decoders.submit(_read, clip) for clip in group]))
            if len(waiting) > 2:
                yield from _batches(*waiting.pop(0))
        for group, reading in waiting:
            yield from _batches(group, reading)


def _read(clip: Clip) -> Tensor | AudioError:
    try:
        return read_audio(clip.path)
    except AudioError as error:
        return error


def _batches(group: Sequence[Clip], reading: Sequence) -> Iterator[tuple[list[Clip], object]]:
    audio = [future.result() for future in reading]
    for length, rows in groupby(zip(group, audio, strict=True), key=lambda row: _length(row[1])):
        clips, parts = zip(*rows, strict=True)
        if length is None:
            yield from (([clip], error) for clip, error in zip(clips, parts, strict=True))
        else:
            yield list(clips), torch.stack(parts)


def _length(audio: Tensor | AudioError) -> int | None:
    return len(audio) if isinstance(audio, Tensor) else None


@torch.no_grad()
def _computed(model: SEDModel, output: Callable[[Tensor], Tensor], audio: Tensor) -> np.ndarray:
    """What the head gives (clips, frames, classes)."""
    n_windows = len(audio) * model.n_windows(audio.shape[1])
    compute = partial(output, audio)
    return in_smaller_batches(model, n_windows, compute).float().cpu().numpy()
