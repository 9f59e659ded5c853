"""A teacher's clip scores for label enhancement: computed over a corpus, or from a file.

A file is an .npz with `names` (clips,) and `scores` (clips, classes) in 0..1, the classes in the
order of the class list, or of `labels` (classes,) where it has them.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hear_pretrainedsed.audio import AudioError
from hear_pretrainedsed.events import GRID, whole_file
from hear_pretrainedsed.model import SEDModel
from pretraining.clips import MAX_BROKEN, broken_line, decode, window
from pretraining.corpus import Corpus, Progress
from pretraining.vocabulary import Vocabulary, first_few

NAMES, SCORES, LABELS = "names", "scores", "labels"

_LONG_SAMPLES = GRID.window_samples + GRID.sample_rate // 2  # mp3 fills up its last frame


@dataclass(frozen=True)
class TeacherScores:
    """Scores (clips, classes) in 0..1 of clips by name, the classes in a class list's order."""

    names: tuple[str, ...]
    scores: np.ndarray

    def write(self, path: Path, vocabulary: Vocabulary) -> None:
        """Write what `read_scores` reads, whole or not at all."""
        parts = {NAMES: np.array(self.names), SCORES: self.scores}
        with whole_file(path) as file:
            np.savez(file, **parts, **{LABELS: np.array(vocabulary.labels)})


@torch.no_grad()
def compute_scores(
    model: SEDModel,
    corpus: Corpus,
    numbers: Sequence[int],
    vocabulary: Vocabulary,
    *,
    batch_size: int = 8,
    progress: Progress = lambda n_done, n_all: None,
) -> TeacherScores:
    """The scores of some clips of a corpus, by number.

    As in training, a head that pools tokens sees a clip as its front end fills it up, and one on
    frames sees silence after up to 10 s; a longer clip is seen whole.

    Raises `ValueError` for a model without clip scores or without some of the classes, and where
    more than 1 % of the clips cannot be decoded; fewer are left out.
    """
    if model.head is None or model.labels is None:
        raise ValueError("the teacher has no clip scores of known classes: take another checkpoint")
    columns = _columns(model.labels, vocabulary, "the teacher")
    scores = np.empty((len(numbers), len(columns)), np.float32)
    names: list[str] = []
    broken: dict[str, str] = {}
    for first in range(0, len(numbers), batch_size):
        part = numbers[first : first + batch_size]
        found, failed = _decoded(corpus, part)
        broken |= failed
        if len(broken) > max(1, MAX_BROKEN * len(numbers)) or len(broken) == len(numbers):
            raise ValueError(f"{corpus.folder}: {broken_line(broken)}")
        for group, audio in _alike(found, fill=not model.pools_tokens):
            values = model.weak_scores(audio.to(model.device)).float().cpu().numpy()
            scores[len(names) : len(names) + len(group)] = values[:, columns]
            names += group
        progress(first + len(part), len(numbers))
    return TeacherScores(tuple(names), scores[: len(names)])


def read_scores(path: Path, vocabulary: Vocabulary) -> TeacherScores:
    """Scores from a file.

    Raises `ValueError` in one line for a file that is none, tables that do not belong together,
    other classes, a clip given twice, and numbers that are no scores.
    """
    parts = _arrays(path)
    names = tuple(str(name) for name in parts[NAMES].tolist())
    scores, labels = parts[SCORES], parts.get(LABELS)
    n_columns = len(vocabulary.labels) if labels is None else len(labels)
    if scores.ndim != 2 or scores.shape != (len(names), n_columns):
        raise ValueError(
            f"{path}: {SCORES} has the shape {scores.shape}; wanted {(len(names), n_columns)} "
            f"(clips, classes) for its {NAMES} and the classes of {vocabulary.source}"
        )
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise ValueError(f"{path}: {first_few(twice, 'clip')} given twice")
    if scores.dtype.kind != "f" or (scores.size and not (scores.min() >= 0 and scores.max() <= 1)):
        raise ValueError(f"{path}: {SCORES} has to hold numbers from 0 to 1, not logits or NaN")
    if labels is not None:
        scores = scores[:, _columns([str(one) for one in labels.tolist()], vocabulary, str(path))]
    return TeacherScores(names, scores)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            parts = {name: file[name] for name in (NAMES, SCORES, LABELS) if name in file}
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file of scores") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: no .npz of scores, or damaged: {reason}") from None
    if missing := [name for name in (NAMES, SCORES) if name not in parts]:
        raise ValueError(f"{path}: it lacks {missing[0]!r}; it has to hold {NAMES} and {SCORES}")
    return parts


def _columns(labels: Sequence[str], vocabulary: Vocabulary, source: str) -> list[int]:
    """Where each class of the class list is among `labels`."""
    place = {label: number for number, label in enumerate(labels)}
    if missing := [label for label in vocabulary.labels if label not in place]:
        told = first_few(missing, "label")
        raise ValueError(f"{source}: {told} of {vocabulary.source} without a score")
    return [place[label] for label in vocabulary.labels]


def _decoded(
    corpus: Corpus, numbers: Sequence[int]
) -> tuple[list[tuple[str, np.ndarray]], dict[str, str]]:
    """Names with audio (samples,), and reasons by name of clips that cannot be decoded."""
    found, broken = [], {}
    for number in numbers:
        record = corpus[number]
        try:
            found.append((record.name, decode(record.audio)))
        except AudioError as error:
            broken[record.name] = str(error)
    return found, broken


def _alike(
    found: Sequence[tuple[str, np.ndarray]], *, fill: bool
) -> list[tuple[list[str], torch.Tensor]]:
    """Names and audio (batch, samples) of clips of one length; `fill`: up to 10 s is made 10 s."""
    groups: dict[int, list[tuple[str, np.ndarray]]] = {}
    for name, audio in found:
        alike = window(audio, 0) if fill and len(audio) <= _LONG_SAMPLES else audio
        groups.setdefault(len(alike), []).append((name, alike))
    return [
        ([name for name, _ in group], torch.from_numpy(np.stack([audio for _, audio in group])))
        for group in groups.values()
    ]
