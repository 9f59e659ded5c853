"""scores -> events, events <-> frame targets, and the files that events are kept in.

Frame i of the 40 ms grid covers [0.04 i, 0.04 (i + 1)) s. Decoding (median filter, threshold,
runs) and encoding follow PretrainedSED's code, float rounding included.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from hear_pretrainedsed.frames import FrameGrid

GRID = FrameGrid()
TSV_COLUMNS = ("filename", "onset", "offset", "event_label", "score")

_CLASSES_AT_ONCE = 32  # decoded together: an hour of 32 classes is 12 MB of scores
_LONGEST_MEDIAN = 90_000  # frames, an hour
_DECIMALS = 6  # of times and scores in files: finer than one sample at 16 kHz


class Event(NamedTuple):
    """A sound from `onset_s` to `offset_s`; `score` in 0..1, 1 for an annotated event."""

    onset_s: float
    offset_s: float
    label: str
    score: float = 1.0


def scores_to_events(
    scores: np.ndarray | torch.Tensor,
    labels: Sequence[str],
    *,
    threshold: float | Sequence[float] = 0.5,
    median_frames: int | Sequence[int] | None = None,
    min_duration_s: float | None = None,
    duration_s: float | None = None,
) -> list[Event]:
    """Scores (frames, classes) of one clip -> its events, sorted by onset, then label.

    An event is a run of frames whose score, after a median filter over `median_frames` frames, is
    above `threshold`, strictly; both are one value for all classes or one a class. Its score is the
    mean of the *unfiltered* scores over the run, so that it may lie below the threshold where the
    filter has bridged a gap. The filter is SciPy's: edges are reflected (as often as needed), an
    even window reaches one frame further back than ahead and takes the upper of its two middle
    values.

    With `duration_s`, times end there, and events that begin there or later (in frames that are
    padding) are dropped. `min_duration_s` drops shorter events, after that.

    Raises `ValueError` for scores with NaN and for labels or thresholds that don't fit them.
    """
    scores = _score_array(scores)
    _check_labels(labels, scores.shape[1])
    limits = _thresholds(threshold, scores)
    sizes = median_sizes(median_frames, scores.shape[1])
    _check_times(min_duration_s, duration_s)
    classes, first, end, mean = _all_runs(scores, limits, sizes)
    onset, offset = frame_times(first, duration_s), frame_times(end, duration_s)
    shortest = 0.0 if min_duration_s is None else min_duration_s - 1e-9  # 0.36 - 0.28 < 0.08
    kept = np.flatnonzero((offset > onset) & (offset - onset >= shortest))
    rank = np.argsort(np.argsort(np.array(labels, dtype=object)))
    kept = kept[np.lexsort((rank[classes[kept]], first[kept]))]
    columns = (column[kept].tolist() for column in (onset, offset, classes, mean))
    return [Event(a, b, labels[c], score) for a, b, c, score in zip(*columns, strict=True)]


def _score_array(scores: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(scores, torch.Tensor):
        scores = scores.detach().float().cpu().numpy()
    scores = np.asarray(scores)
    if scores.ndim != 2 or not np.issubdtype(scores.dtype, np.floating):
        raise ValueError(
            f"scores are floating point with the axes (frames, classes), "
            f"got {scores.dtype} {scores.shape}"
        )
    if scores.size and np.isnan(scores.min()):
        frame, number = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"NaN in the scores at frame {frame}, class {number}")
    return scores


def _check_labels(labels: Sequence[str], n_classes: int) -> None:
    if len(labels) != n_classes:
        raise ValueError(f"{len(labels)} labels for scores of {n_classes} classes")
    if len(set(labels)) != len(labels):
        twice = next(label for i, label in enumerate(labels) if label in labels[:i])
        raise ValueError(f"the label {twice!r} is given twice")


def _thresholds(threshold: float | Sequence[float], scores: np.ndarray) -> np.ndarray:
    """One threshold a class, in the scores' precision: a float32 0.1 is not above 0.1."""
    limits = np.asarray(threshold, dtype=scores.dtype)
    if limits.ndim > 1 or (limits.ndim == 1 and len(limits) != scores.shape[1]):
        raise ValueError(
            f"threshold is one number or {scores.shape[1]} (one a class), got {limits.shape}"
        )
    if np.isnan(limits).any():
        raise ValueError("threshold is NaN")
    return np.broadcast_to(limits, scores.shape[1:])


def median_sizes(median_frames: int | Sequence[int] | None, n_classes: int) -> np.ndarray:
    """Frames of the median filter (classes,), 1 where there is none; an hour at most."""
    sizes = np.asarray(1 if median_frames is None else median_frames)
    if sizes.ndim > 1 or (sizes.ndim == 1 and len(sizes) != n_classes):
        raise ValueError(
            f"median_frames is one number or {n_classes} (one a class), got {sizes.shape}"
        )
    if not ((sizes >= 1) & (sizes <= _LONGEST_MEDIAN) & (sizes == np.floor(sizes))).all():
        raise ValueError(
            f"median_frames is a whole number from 1 to {_LONGEST_MEDIAN}, got {median_frames}"
        )
    return np.broadcast_to(sizes.astype(np.int64), n_classes)


def _check_times(min_duration_s: float | None, duration_s: float | None) -> None:
    for name, value in (("min_duration_s", min_duration_s), ("duration_s", duration_s)):
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"{name} is a time in seconds, not negative, got {value}")


Runs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _all_runs(scores: np.ndarray, limits: np.ndarray, sizes: np.ndarray) -> Runs:
    """Runs of active frames: (class, first frame, end frame, mean score), each (runs,)."""
    candidates = np.flatnonzero((scores > limits).any(axis=0))  # no filter raises a class above
    parts = [
        _runs(scores, limits, candidates[i : i + _CLASSES_AT_ONCE], sizes)
        for i in range(0, max(1, len(candidates)), _CLASSES_AT_ONCE)
    ]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _runs(scores: np.ndarray, limits: np.ndarray, classes: np.ndarray, sizes: np.ndarray) -> Runs:
    """The runs of some classes."""
    part = np.ascontiguousarray(scores[:, classes].T)
    active = part > limits[classes, None]
    for size in np.unique(sizes[classes]).tolist():
        if size > 1 and active.size:
            same = sizes[classes] == size
            active[same] = median_of_active(active[same], size)
    n_classes, n_frames = part.shape
    edges = np.zeros((n_classes, n_frames + 2), np.int8)
    edges[:, 1:-1] = active
    steps = np.diff(edges, axis=1)
    row, first = np.nonzero(steps == 1)
    end = np.nonzero(steps == -1)[1]  # of the same rows, in the same order
    flat = np.append(part.astype(np.float64).ravel(), 0.0)  # reduceat needs every index to exist
    bounds = np.stack((row * n_frames + first, row * n_frames + end), axis=1).ravel()
    sums = np.add.reduceat(flat, bounds)[::2] if len(row) else np.zeros(0)
    return classes[row], first, end, sums / np.maximum(end - first, 1)


def median_of_active(active: np.ndarray, size: int) -> np.ndarray:
    """Median filter of (classes, frames) seen through a threshold.

    SciPy's median of a window is its element of rank size // 2; that is above a threshold exactly
    if at least size - size // 2 elements are, so counting the elements above gives the same result
    as filtering first, at the price of a running sum.
    """
    before = size // 2
    padded = np.pad(active, ((0, 0), (before, size - 1 - before)), mode="symmetric")
    counts = np.zeros((len(active), padded.shape[1] + 1), np.int32)
    np.cumsum(padded, axis=1, out=counts[:, 1:])
    return counts[:, size:] - counts[:, :-size] >= size - before


def frame_times(frames: np.ndarray, duration_s: float | None = None) -> np.ndarray:
    """Where frames begin, in seconds: frame * 4 / 100, clipped to the clip's length."""
    times = np.asarray(frames) * GRID.hop_samples / GRID.sample_rate
    return times if duration_s is None else np.minimum(times, duration_s)


def events_to_frames(
    events: Iterable[Event | tuple[float, float, str]],
    labels: Sequence[str],
    n_frames: int,
    *,
    ignore_unknown: bool = False,
    soft: bool = False,
) -> np.ndarray:
    """Events of one clip -> targets (frames, classes), float32, 1 where a class is active.

    A time t is at frame t * 16000 / 160 / 4, clipped to [0, n_frames]; an event fills the frames
    from the floor of its onset to the ceiling of its offset, end excluded (PretrainedSED's
    encoder). In float64 8.04 s is at 200.99999999999997: an event from there starts in frame 200,
    and some that end on a frame's edge reach into the next one likewise.
    Events that end before they start fill none.

    `soft` writes the events' scores instead of 1; of events that overlap, the last one's stays.
    Labels that are not in `labels` raise `ValueError`; with `ignore_unknown` they are left out, as
    PretrainedSED does (AudioSet Strong's evaluation set has classes that training has not).
    """
    targets = np.zeros((n_frames, len(labels)), np.float32)
    column = {label: i for i, label in enumerate(labels)}
    for event in map(_as_event, events):
        if event.label not in column:
            if not ignore_unknown:
                label_indices(labels, [event.label])
            continue
        first, end = (
            min(max(time_s * GRID.sample_rate / GRID.hop_samples, 0), n_frames)
            for time_s in (event.onset_s, event.offset_s)
        )
        value = event.score if soft else 1.0
        targets[int(first) : int(np.ceil(end)), column[event.label]] = value
    return targets


def _as_event(event: Event | tuple[float, float, str]) -> Event:
    event = Event(*event)
    if not (np.isfinite(event.onset_s) and np.isfinite(event.offset_s)):
        raise ValueError(f"event without finite times: {tuple(event)}")
    return event


def merge_events(events: Iterable[Event | tuple[float, float, str]]) -> list[Event]:
    """Join events of one class that overlap or touch; sorted by onset, then label.

    A joined event has the highest score of its parts.
    """
    merged: dict[str, list[Event]] = {}
    for event in sorted(map(_as_event, events)):
        row = merged.setdefault(event.label, [])
        if row and event.onset_s <= row[-1].offset_s:
            last = row.pop()
            offset = max(last.offset_s, event.offset_s)
            event = Event(last.onset_s, offset, event.label, max(last.score, event.score))
        row.append(event)
    rows = (event for row in merged.values() for event in row)
    return sorted(rows, key=lambda event: (event.onset_s, event.label))


def label_indices(labels: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where `wanted` classes are in `labels`; an unknown one is a ValueError with the nearest."""
    place = {label: i for i, label in enumerate(labels)}
    lower = {label.lower(): label for label in labels}
    for name in wanted:
        if name not in place:
            near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.0)
            hint = f"; the nearest is {lower[near[0]]!r}" if near else ""
            raise ValueError(f"no class {name!r} among the {len(labels)} classes{hint}")
    return [place[name] for name in wanted]


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name when it is complete, or not at all.

    Raises `OSError` with the file's name where the disk does not take it, for `torch.save` as well.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with disk_errors(path), open(part, "wb") as file:
            yield file
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """A full disk names no file by itself: the error that it gives is raised with one.

    torch's writer hides it behind a RuntimeError of its own.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        found = error if isinstance(error, OSError) else error.__context__
        if not isinstance(found, OSError) or found.filename is not None:
            raise
        raise OSError(found.errno, found.strerror or str(found), str(path)) from error


@contextmanager
def _whole_text(path: str | os.PathLike[str]) -> Iterator[io.TextIOWrapper]:
    with whole_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        yield text
        text.flush()
        text.detach()


def tsv(events: Mapping[str, Iterable[Event]], *, heading: bool = True) -> str:
    """Events by file name as a table, in the columns of DESED's and a score.

    A file without events has a row with nothing but its name, as in DESED.
    """
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    if heading:
        table.writerow(TSV_COLUMNS)
    for name, rows in events.items():
        lines = [(name, *_rounded(row).values()) for row in rows]
        table.writerows(lines or [(name, "", "", "", "")])
    return text.getvalue()


def write_tsv(path: str | os.PathLike[str], events: Mapping[str, Iterable[Event]]) -> None:
    """Write the table that `tsv` makes."""
    with _whole_text(path) as file:
        file.write(tsv(events))


def read_tsv(path: str | os.PathLike[str]) -> dict[str, list[Event]]:
    """Read what `write_tsv` wrote, or any such table; without a score column scores are 1.

    Raises `ValueError` naming the file, and the line where one is wrong.
    """
    events: dict[str, list[Event]] = {}
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.DictReader(file, delimiter="\t")
        missing = [name for name in TSV_COLUMNS[:4] if name not in (table.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: no column {missing[0]!r} in {table.fieldnames}")
        for row in table:
            rows = events.setdefault(row["filename"], [])
            if not (row["event_label"] or row["onset"] or row["offset"]):
                continue
            try:
                if not row["event_label"]:
                    raise ValueError
                onset, offset = float(row["onset"]), float(row["offset"])
                event = Event(onset, offset, row["event_label"], float(row.get("score") or 1))
                rows.append(_as_event(event))
            except (TypeError, ValueError):
                raise ValueError(f"{path}: line {table.line_num} is no event: {row}") from None
    return events


def write_json(path: str | os.PathLike[str], events: Iterable[Event], **facts: Any) -> None:
    """Write one clip's events as {facts..., "events": [{"onset_s": ..., ...}, ...]}."""
    rows = [_rounded(event) for event in events]
    with _whole_text(path) as file:
        json.dump({**facts, "events": rows}, file, indent=1, ensure_ascii=False)
        file.write("\n")


def write_audacity(path: str | os.PathLike[str], events: Iterable[Event]) -> None:
    """Write one clip's events as an Audacity label track: onset, offset, label; no heading."""
    with _whole_text(path) as file:
        for event in events:
            label = " ".join(event.label.split())  # the format has no escape for tabs and newlines
            file.write(f"{event.onset_s:.6f}\t{event.offset_s:.6f}\t{label}\n")


def write_scores(
    path: str | os.PathLike[str], scores: np.ndarray | torch.Tensor, labels: Sequence[str]
) -> None:
    """Write one clip's scores (frames, classes) as npz: `scores`, `labels`, `hop_s`.

    An array keeps its precision (float16 halves the file); a tensor is written in float32.
    """
    scores = _score_array(scores)
    _check_labels(labels, scores.shape[1])
    with whole_file(path) as file:
        np.savez(file, scores=scores, labels=np.array(labels, dtype=str), hop_s=GRID.hop_s)


def _rounded(event: Event) -> dict[str, float | str]:
    """An event's fields as written to files."""
    return {
        name: value if isinstance(value, str) else round(value, _DECIMALS)
        for name, value in event._asdict().items()
    }
