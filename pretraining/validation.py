"""What decides during training: PSDS1 of a model's frames, or mAP of its clip scores.

PSDS1 is PretrainedSED's (Schmid et al., arXiv 2409.09546): a median of 9 frames on what the head
emits, the classes that both corpora have, clips without any event of theirs dropped; the mean over
classes without the penalty for unequal classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from downstream.metrics import PSDS1, StreamedPSDS
from hear_pretrainedsed.audio import AudioError
from hear_pretrainedsed.events import GRID
from hear_pretrainedsed.memory import in_smaller_batches
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.training.stream import frames_of, seen_by_head
from pretraining.clips import broken_line, decode, window
from pretraining.corpus import Corpus, Record
from pretraining.weak_metrics import weak_metrics

MEDIAN_FRAMES = 9
_CLIPS_AT_ONCE = {"cpu": 8, "cuda": 64}

Triple = tuple[float, float, str]


@dataclass(frozen=True)
class Shared:
    """The classes that a model and a corpus share: names, and where each has them."""

    labels: tuple[str, ...]
    of_model: np.ndarray
    of_corpus: np.ndarray


def shared_classes(model_labels: tuple[str, ...], corpus: Corpus) -> Shared:
    """Classes of both, in the model's order. Raises `ValueError` where there are none."""
    place = {label: number for number, label in enumerate(corpus.labels)}
    pairs = [(i, place[label]) for i, label in enumerate(model_labels) if label in place]
    if not pairs:
        raise ValueError(
            f"{corpus.folder} has none of the {len(model_labels)} classes that are learned "
            f"({', '.join(model_labels[:3])}, ...)"
        )
    of_model, of_corpus = (np.array(numbers) for numbers in zip(*pairs, strict=True))
    return Shared(tuple(model_labels[i] for i in of_model), of_model, of_corpus)


def check_events(labels: tuple[str, ...], corpus: Corpus) -> None:
    """Refuse a corpus on which a model with these classes has no PSDS1."""
    _reference(shared_classes(labels, corpus), corpus)


def check_clip_labels(labels: tuple[str, ...], corpus: Corpus) -> None:
    """Refuse a corpus on which a model with these classes has no mAP."""
    shared = shared_classes(labels, corpus)
    if not np.isin(corpus.index.weak_class, shared.of_corpus).any():
        raise ValueError(f"{corpus.folder}: no clip has a label of the shared classes")


def check_decodable(corpus: Corpus) -> None:
    """Refuse a corpus of which no clip can be decoded, instead of at the first validation."""
    broken: dict[str, str] = {}
    for record in map(corpus.__getitem__, range(len(corpus))):
        audio = _decoded(record)
        if not isinstance(audio, AudioError):
            return
        broken[record.name] = str(audio)
    raise ValueError(f"{corpus.folder}: {broken_line(broken)}")


def _reference(shared: Shared, corpus: Corpus) -> tuple[list[int], dict[str, list[Triple]]]:
    """Clips that have events of the shared classes: their numbers, and these events by name."""
    if not corpus.has_events:
        raise ValueError(f"{corpus.folder} has clips without events: PSDS1 needs a strong corpus")
    place = dict(zip(shared.of_corpus.tolist(), shared.labels, strict=True))
    reference: dict[str, list[Triple]] = {}
    numbers = []
    for number in range(len(corpus)):
        name, events, _ = corpus.index.row(number)
        known = [(a, b, place[c]) for a, b, c in events or () if c in place]
        if known:
            reference[name] = known
            numbers.append(number)
    if not numbers:
        raise ValueError(f"{corpus.folder}: no clip has an event of the shared classes")
    return numbers, reference


@torch.no_grad()
def psds1(model: SEDModel, corpus: Corpus) -> float:
    """PSDS1 of a model's frame scores, the mean over the shared classes that have events.

    Raises `ValueError` for a corpus without events or without shared classes.
    """
    assert model.labels is not None
    shared = shared_classes(model.labels, corpus)
    numbers, reference = _reference(shared, corpus)
    durations = dict.fromkeys(reference, GRID.window_samples / GRID.sample_rate)
    stream = StreamedPSDS(GRID.hop_s, shared.labels, _inside(reference), durations, **PSDS1)
    seen = set()
    for names, audio, _ in _batches(model, corpus, numbers):
        values = _in_parts(model, partial(_smooth_values, model), audio)
        for name, one in zip(names, values, strict=True):
            stream.add(name, one[:, shared.of_model])
            seen.add(name)
    for name in reference.keys() - seen:
        stream.skip(name)
    return float(stream.result().macro)


def mean_ap(model: SEDModel, corpus: Corpus) -> float:
    """Mean average precision of clip scores over the shared classes that have clips."""
    value = weak_metrics(*clip_table(model, corpus)).mean_ap
    return -math.inf if math.isnan(value) else value


@torch.no_grad()
def clip_table(model: SEDModel, corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """Clip scores in 0..1 and labels of the shared classes, both (clips, classes).

    Of each clip its beginning is seen: 10 s, or as much as the head sees at once if it pools
    tokens (`SEDModel.clip_samples`).
    """
    assert model.labels is not None
    shared = shared_classes(model.labels, corpus)
    scores, targets = [], []
    numbers = {name: number for number, name in enumerate(corpus.names)}
    size = model.clip_samples if model.pools_tokens else GRID.window_samples
    for names, audio, n_samples in _batches(model, corpus, range(len(corpus)), size):
        values = _in_parts(model, partial(clip_scores, model), audio, n_samples)
        for name, one in zip(names, values, strict=True):
            present = np.zeros(len(corpus.labels), np.uint8)
            present[list(corpus.index.row(numbers[name]).weak)] = 1
            scores.append(one[shared.of_model])
            targets.append(present[shared.of_corpus])
    return np.stack(scores), np.stack(targets)


def clip_scores(model: SEDModel, audio: Tensor, n_samples: Tensor) -> Tensor:
    """Audio (batch, samples) of clips that end at `n_samples`, silent from there -> clip scores.

    Returns (batch, classes), float32, in 0..1. Heads on tokens see each clip filled up by the front
    end's rule, as `SEDModel.weak_scores`; those on frames see the silence.
    """
    if model.pools_tokens:
        spec = model.frontend.clips(audio, n_samples, model.clip_samples)
    else:
        spec = model.frontend(audio)
    out = model.head.clip(seen_by_head(model, spec)).float()
    return out.sigmoid() if model.head.emits == "logits" else out


def median(values: Tensor, n_frames: int = MEDIAN_FRAMES) -> Tensor:
    """Median over an odd number of frames (batch, frames, classes), mirrored at both ends."""
    side = n_frames // 2
    ends = values[:, :side].flip(1), values[:, -side:].flip(1)
    padded = torch.cat([ends[0], values, ends[1]], dim=1)
    return padded.unfold(1, n_frames, 1).median(dim=-1).values


def _smooth_values(model: SEDModel, audio: Tensor) -> Tensor:
    return median(model.head(frames_of(model, model.frontend(audio))).float())


def _in_parts(model: SEDModel, compute: Callable[..., Tensor], *clips: Tensor) -> np.ndarray:
    """`compute` of some clips, as many at a time as the model takes; fewer if memory runs out."""

    def joined() -> np.ndarray:
        parts = zip(*(x.split(model.batch_size) for x in clips), strict=True)
        return np.concatenate([compute(*part).cpu().numpy() for part in parts])

    return in_smaller_batches(model, len(clips[0]), joined)


def _inside(reference: Mapping[str, Sequence[Triple]]) -> dict[str, list[Triple]]:
    """Events as they are heard in the first 10 s, those of a class that overlap or touch united."""
    end = GRID.window_samples / GRID.sample_rate
    out: dict[str, list[Triple]] = {}
    for name, events in reference.items():
        united: dict[str, list[tuple[float, float]]] = {}
        for onset_s, offset_s, label in sorted(events):
            if onset_s >= end:
                continue
            spans = united.setdefault(label, [])
            if spans and onset_s <= spans[-1][1]:
                onset_s, before = spans.pop()
                offset_s = max(before, offset_s)
            spans.append((onset_s, min(offset_s, end)))
        out[name] = [(a, b, label) for label, spans in united.items() for a, b in spans]
    return out


def _batches(
    model: SEDModel, corpus: Corpus, numbers: Sequence[int], n_first: int = GRID.window_samples
) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    """Names, audio (batch, n_first) from the clips' beginning, and where they end (batch,).

    Audio is on the model's device. Broken clips are left out.
    """
    size = model.options.batch_size or _CLIPS_AT_ONCE.get(model.device.type, 8)
    parts = [list(numbers[i : i + size]) for i in range(0, len(numbers), size)]
    broken: dict[str, str] = {}
    with ThreadPoolExecutor(1) as reader:  # reads while the model computes
        reading = [reader.submit(_read, corpus, part) for part in parts[:2]]
        for number in range(len(parts)):
            rows = reading.pop(0).result()
            if number + 2 < len(parts):
                reading.append(reader.submit(_read, corpus, parts[number + 2]))
            broken |= {name: str(audio) for name, audio in rows if isinstance(audio, AudioError)}
            good = [(name, audio) for name, audio in rows if not isinstance(audio, AudioError)]
            if good:
                audio = np.stack([window(audio, 0, n_first) for _, audio in good])
                n_samples = torch.tensor([min(len(audio), n_first) for _, audio in good])
                yield [n for n, _ in good], torch.from_numpy(audio).to(model.device), n_samples
    if len(broken) == len(numbers):
        raise ValueError(f"{corpus.folder}: {broken_line(broken)}")
    if broken:
        warnings.warn(f"{corpus.folder}: {broken_line(broken)}; they are left out", stacklevel=2)


def _read(corpus: Corpus, numbers: list[int]) -> list[tuple[str, np.ndarray | AudioError]]:
    return [(record.name, _decoded(record)) for record in map(corpus.__getitem__, numbers)]


def _decoded(record: Record) -> np.ndarray | AudioError:
    try:
        return decode(record.audio)
    except AudioError as error:
        return error
