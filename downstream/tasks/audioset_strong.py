"""AudioSet Strong, evaluation only: 407 classes of the evaluation clips, 10 s each.

The folder of the corpus holds

- one table of events named `*eval_strong.tsv`, as AudioSet publishes it: segment_id (a recording's
  id, an underscore, where the segment begins in ms), start_time_seconds, end_time_seconds, label (a
  class's machine id, its "mid");
- the recordings in `audio/eval`, `eval`, `audio` or the folder itself, in any format, each named by
  the segment's id or the recording's (with or without the letter Y before it, as it is often
  distributed);
- optionally `*eval_durations.csv` (filename, duration; with a heading or without, as PretrainedSED
  has it); else durations are read from the files.

What is scored are the classes of both the training and the evaluation list; events of others and
clips that are left without any event are dropped; events of one class that overlap or touch are
one (PretrainedSED's evaluation). Recordings disappear: clips without one are named, not refused,
and scores of fewer than the 16 996 clips of the published numbers are not quite comparable.
Departures: a clip shorter than 10 s has only the frames that it lasts, where PretrainedSED scores
the padded window; each clip counts with its own duration, of the recording as it is here.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from downstream.tasks import checks
from downstream.tasks.sources import duration_s
from downstream.tasks.task import (
    Clip,
    Facts,
    HeadScores,
    Progress,
    Rotation,
    Task,
    Triple,
)
from hear_pretrainedsed.audio import EXTENSIONS
from hear_pretrainedsed.events import GRID, merge_events
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.registry import read_labels, unknown

N_PUBLISHED = 16_996
"""Clips that the published numbers are of."""

_COLUMNS = ("segment_id", "start_time_seconds", "end_time_seconds", "label")
_PLACES = ("audio/eval", "eval", "audio", ".")
_NEAR = 3  # classes named when one is unknown


@dataclass(frozen=True)
class StrongSet:
    """AudioSet Strong's evaluation clips, as far as they are there.

    labels: the classes that are scored. clips: those with events and a recording. missing: segments
    with events of these classes and no recording. empty: segments without such events. unlisted:
    recordings that the table does not have.
    """

    folder: Path
    labels: tuple[str, ...]
    clips: tuple[Clip, ...]
    missing: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()

    def count(self, n_clips: int) -> str:
        """A number of clips, beside that which the published scores are of."""
        return f"{n_clips} of {N_PUBLISHED:,}".replace(",", " ")


@cache
def scored_labels() -> tuple[str, ...]:
    """The 407 classes of both lists, in the order of the training list."""
    evaluated = set(read_labels("audioset_strong_eval"))
    return tuple(label for label in read_labels("audioset_strong_train") if label in evaluated)


@cache
def names_of_mids() -> Mapping[str, str]:
    """The 456 machine ids of AudioSet Strong and their classes' names."""
    path = files("hear_pretrainedsed").joinpath("assets", "audioset_strong_mids.tsv")
    rows = csv.DictReader(path.read_text("utf-8").splitlines(), delimiter="\t")
    return {row["mid"]: row["name"] for row in rows}


def read_strong_set(folder: str | Path) -> StrongSet:
    """Find the evaluation clips of a corpus; see the module for its layout.

    Raises `ValueError` for a folder without table or recordings, and for what is wrong in the
    table: columns, times, unknown mids.
    """
    folder = Path(folder)
    labels = scored_labels()
    events = {
        segment: tuple(tuple(e[:3]) for e in merge_events(e for e in rows if e[2] in set(labels)))
        for segment, rows in read_strong_table(_only(folder, "*eval_strong.tsv")).items()
    }
    recordings = find_recordings(folder)
    lengths = read_durations(folder)
    clips, missing, used = [], [], set()
    for segment, rows in events.items():
        stem = next((stem for stem in _stems(segment) if stem in recordings), None)
        if stem is not None:
            used.add(stem)
        if rows and stem is None:
            missing.append(segment)
        elif rows:
            path = recordings[stem]
            length = next((lengths[s] for s in _stems(segment) if s in lengths), None)
            clips.append(Clip(segment, path, rows, length or duration_s(path), segment))
    if not clips:
        raise ValueError(
            f"{folder}: none of {len(missing)} clips has a recording: {checks.first_few(missing)}"
        )
    return StrongSet(
        folder,
        labels,
        tuple(clips),
        tuple(missing),
        tuple(segment for segment, rows in events.items() if not rows),
        tuple(path.name for stem, path in recordings.items() if stem not in used),
    )


def read_strong_table(path: Path) -> dict[str, list[Triple]]:
    """Events by segment of a table as AudioSet Strong's, with names for mids.

    A row without a label stands for a segment without events. Raises `ValueError` that names the
    line.
    """
    names = names_of_mids()
    events: dict[str, list[Triple]] = {}
    with _lines(path) as file:
        table = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        for column in _COLUMNS:
            if column not in (table.fieldnames or ()):
                raise ValueError(f"{path}: no column {column!r} in {table.fieldnames}")
        for row in table:
            rows = events.setdefault(row["segment_id"], [])
            place = f"{path}, line {table.line_num}"
            if row["label"] and row["label"] not in names:
                raise ValueError(f"{place}: {_unknown_mid(row['label'])}")
            if row["label"]:
                rows.append((*_times(row, place), names[row["label"]]))
            elif any(row[column] for column in _COLUMNS[1:3]):
                raise ValueError(f"{place}: times without a label, got {dict(row)}")
    if not events:
        raise ValueError(f"{path}: no events in it")
    return events


def _lines(path: Path) -> io.StringIO:
    return io.StringIO(checks.read_utf8(path), newline="")


def _times(row: Mapping[str, str], place: str) -> tuple[float, float]:
    try:
        onset_s, offset_s = (float(row[column]) for column in _COLUMNS[1:3])
        fits = 0 <= onset_s <= offset_s < math.inf
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"{place}: times are finite with 0 <= start <= end, got {dict(row)}")
    return onset_s, offset_s


def _unknown_mid(mid: str) -> str:
    names = names_of_mids()
    near = difflib.get_close_matches(mid, names, n=_NEAR, cutoff=0.0)
    by_name = {name: mid for mid, name in names.items()}
    if mid in by_name:
        return f"{mid!r} is a name; the label is a mid, here {by_name[mid]!r}"
    return f"{unknown('mid', mid, near)[:-1]} and {len(names) - len(near)} more)"


def find_recordings(folder: Path) -> dict[str, Path]:
    """Recordings of the evaluation set by the name without extension.

    Raises `ValueError` where there are none, or two of one name.
    """
    for place in _PLACES:
        below = (folder / place).rglob("*") if (folder / place).is_dir() else ()
        paths = sorted(path for path in below if path.suffix.lower() in EXTENSIONS)
        if not paths:
            continue
        found: dict[str, Path] = {}
        for path in paths:
            if found.setdefault(path.stem, path) != path:
                raise ValueError(f"two recordings of one name: {found[path.stem]} and {path}")
        return found
    raise ValueError(f"{folder}: no recordings in {', '.join(_PLACES)}")


def read_durations(folder: Path) -> dict[str, float]:
    """Seconds by recording of `*eval_durations.csv`; none where there is no such file."""
    if not list(folder.glob("*eval_durations.csv")):
        return {}
    path = _only(folder, "*eval_durations.csv")
    with _lines(path) as file:
        table = [row for row in csv.reader(file) if row and row != ["filename", "duration"]]
    try:
        rows = {name: float(length) for name, length in table}
    except ValueError:
        raise ValueError(f"{path}: wanted two columns, filename and duration (s)") from None
    for name, length in rows.items():
        if not 0 < length < math.inf:
            raise ValueError(f"{path}: the duration of {name} is {length} s")
    return {_without_extension(name): length for name, length in rows.items()}


def _without_extension(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in EXTENSIONS else name


def _stems(segment: str) -> Iterable[str]:
    """Names that a segment's recording may have."""
    recording = segment.rpartition("_")[0] or segment
    return (segment, f"Y{segment}", recording, f"Y{recording}")


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        told = checks.first_few(path.name for path in found) or "none"
        raise ValueError(f"{folder}: wanted one file {pattern}, there are: {told}")
    return found[0]


def open_audioset_strong(folder: Path, facts: Facts, *, strict: bool = False) -> Task:
    """The corpus as a task whose only split is `eval`; nothing of it is for training."""
    with checks.strictly(strict):
        found = read_strong_set(folder)
        n_listed = len(found.clips) + len(found.missing)
        if found.missing:
            told = checks.first_few(found.missing)
            checks.warn(f"{len(found.missing)} of {n_listed} clips have no recording: {told}")
        if found.unlisted:
            told = checks.first_few(found.unlisted)
            checks.warn(f"{len(found.unlisted)} recordings are not listed: {told}")
        if beyond := list(_beyond(found.clips)):
            told = checks.first_few(beyond)
            checks.warn(f"{len(beyond)} events reach beyond their clip: {told}")
    return Task(
        facts=facts,
        name=facts.name,
        version=facts.version,
        folder=folder,
        labels=found.labels,
        splits={"eval": found.clips},
        rotations=(Rotation((), (), ("eval",)),),
    )


def _beyond(clips: Iterable[Clip]) -> Iterator[str]:
    """Events that end after their clip: some recordings are shorter than what was annotated."""
    for clip in clips:
        for onset_s, offset_s, label in clip.events:
            if offset_s > clip.duration_s + checks.BEYOND_S:
                event = f"{clip.file} {label} {onset_s:g} to {offset_s:g} s"
                yield f"{event} (clip: {clip.duration_s:g} s)"


def score_head(model: SEDModel, task: Task, progress: Progress | None = None) -> HeadScores:
    """PSDS1 with and without the variance penalty, and segment AUROC, of a model's own head."""
    from downstream.strong_scores import MEDIAN_FRAMES, evaluate_audioset_strong

    clips = StrongSet(task.folder, task.labels, task.splits["eval"])
    found = evaluate_audioset_strong(model, clips, progress=progress)
    if found.failed:
        told = checks.first_few(f"{name}: {why}" for name, why in found.failed.items())
        checks.warn(f"{len(found.failed)} recordings cannot be read and are left out: {told}")
    plain = replace(found.psds1, micro=found.psds1.macro)  # without the variance penalty
    scores = dict(zip(task.metrics, (plain, found.psds1, found.segment_auroc), strict=True))
    recipe = {"median_frames": MEDIAN_FRAMES, "filtered": found.filtered}
    recipe |= {"clips": clips.count(found.n_clips), "failed": found.failed}
    n_frames = sum(GRID.n_frames(round(c.duration_s * GRID.sample_rate)) for c in clips.clips)
    facts = {name: (s.micro, s.macro, s.per_class) for name, s in scores.items()}
    return HeadScores(facts, recipe, clips.count(found.n_clips), n_frames)


AUDIOSET_STRONG = Facts(
    name="audioset_strong",
    version="eval-2021",
    licence="annotations: CC BY 4.0; recordings: each its own (YouTube's)",
    citation=(
        "Hershey, Ellis, Fonseca, Jansen, Liu, Moore, Plakal, The Benefit of Temporally-Strong "
        "Labels in Audio Event Classification, ICASSP 2021"
    ),
    metrics=("psds1_macro", "psds1", "segment_auroc"),
    unit="clip",
    open=open_audioset_strong,
    score_head=score_head,
    median_s=0.36,
    min_duration_s=None,
)
