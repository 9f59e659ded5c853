"""A listing -> a corpus on disk, shard by shard, so that an interrupted import goes on.

The corpus is made in `OUT.part` and gets its name when it is whole. There every shard appears whole
with a note beside it of what is in it; what a kill or a full disk leaves of a shard is made anew.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hear_pretrainedsed import __version__
from hear_pretrainedsed.audio import AudioError
from hear_pretrainedsed.end_with_parent import end_with_parent
from hear_pretrainedsed.events import whole_file
from pretraining.clip_index import ClipIndex, Labelled
from pretraining.clips import duration_s
from pretraining.corpus import (
    FORMAT,
    INDEX,
    MANIFEST,
    NAME,
    SPLIT,
    CorpusError,
    Progress,
    sha256_of,
)
from pretraining.encoding import active_seconds
from pretraining.importers.listing import Listing

SHARD_CLIPS = 1000
"""Clips in a shard: some 100 MB of AudioSet's."""

_NOTES = "notes"  # folder in OUT.part: what each whole shard holds, and of what they are parts
_WRITER = "group_size:1,uncompressed"  # a record is read alone; audio is compressed already
_HASHED_BYTES = 1 << 30  # label files have less; HDF5 files of audio are named only


@dataclass(frozen=True)
class Note:
    """What a whole shard holds.

    numbers: its clips, counted within the listing's part. digests: of each of them. missing,
    broken: names of clips without audio, and names and reasons of those that are no audio.
    """

    file: str
    bytes: int
    sha256: str
    numbers: list[int] = field(default_factory=list)
    durations_s: list[float] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)


def write_corpus(
    listing: Listing,
    out: str | os.PathLike[str],
    *,
    n_workers: int = 0,
    shard_clips: int = SHARD_CLIPS,
    licence: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the corpus of a listing to the folder `out`; returns it.

    n_workers: processes that write shards, 0: this one. licence: of the audio, in words, for the
    cards of what is trained on it. An import that was interrupted goes on with the shards that are
    not there yet. Clips that cannot be read or are no audio are left out
    and named in the manifest.

    Raises `CorpusError` where `out` is there already, where `OUT.part` is of other clips, labels or
    audio files, where no clip can be read, and where the disk does not take it.
    """
    out = Path(out)
    if out.exists():
        raise CorpusError(f"{out}: is there already; remove it, or give another folder")
    part = out.with_name(out.name + ".part")
    with _disk_errors(out):
        _begin(part, listing, shard_clips)
        notes = _shards(listing, part, n_workers, shard_clips, progress or (lambda done, all: None))
        _finish(listing, part, notes, shard_clips, licence)
        os.replace(part, out)
    shutil.rmtree(out / _NOTES)
    return out


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """A disk that takes no more is one line, not a traceback."""
    try:
        yield
    except OSError as error:
        kept = (
            f"; shards that are whole are kept in {out.name}.part: the same import goes on from "
            "there"
        )
        there = out.with_name(out.name + ".part").is_dir()
        told = f"{out}: cannot be written ({error.strerror or error})"
        raise CorpusError(told + (kept if there else "")) from None


def _begin(part: Path, listing: Listing, shard_clips: int) -> None:
    """Make the folder, or see that what is in it are shards of the same listing."""
    plan = part / _NOTES / "plan.json"
    digest = hashlib.sha256(repr((listing.importer, listing.labels, shard_clips)).encode())
    for name, column in listing.index.arrays().items():
        digest.update(name.encode() + np.ascontiguousarray(column).data)
    audio = hashlib.sha256()
    for place in listing.places:
        audio.update(f"{place!r}\n".encode())
    wanted = {"sha256": digest.hexdigest(), "audio_sha256": audio.hexdigest()}
    if plan.is_file():
        there = json.loads(plan.read_text("utf-8"))
        if there["sha256"] != wanted["sha256"]:
            raise CorpusError(
                f"{part}: begun with other clips, labels or settings; remove it to start anew"
            )
        if there != wanted:
            raise CorpusError(
                f"{part}: begun with other audio than {listing.places[0]} and so on; files that "
                f"moved count as others: move them back, or remove {part.name} to start anew"
            )
        return
    plan.parent.mkdir(parents=True, exist_ok=True)
    _write_json(plan, wanted)


def _shards(
    listing: Listing, part: Path, n_workers: int, shard_clips: int, progress: Progress
) -> list[Note]:
    """The notes of all shards, of which those that are not there yet are written."""
    n_shards = -(-len(listing.index) // shard_clips)
    notes: dict[int, Note] = {}
    for number in range(n_shards):
        if (note := _noted(part, number, n_shards)) is not None:
            notes[number] = note
    progress(len(notes), n_shards)
    todo = (
        (listing.part(i * shard_clips, (i + 1) * shard_clips), part, i, n_shards)
        for i in range(n_shards)
        if i not in notes
    )
    for number, note in _results(todo, n_workers):
        notes[number] = note
        progress(len(notes), n_shards)
    return [notes[number] for number in range(n_shards)]


Task = tuple[Listing, Path, int, int]  # clips, folder, number of the shard, number of shards


def _results(todo: Iterator[Task], n_workers: int) -> Iterator[tuple[int, Note]]:
    if n_workers < 1:
        yield from map(_write_shard, todo)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's and HDF5's threads
    with ProcessPoolExecutor(n_workers, context, end_with_parent, (os.getpid(),)) as pool:
        jobs = [pool.submit(_write_shard, task) for task in todo]
        try:
            for job in as_completed(jobs):
                yield job.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _shard_file(number: int, n_shards: int) -> str:
    """A shard's name, by tensorflow-datasets' template."""
    return f"{NAME}-{SPLIT}.array_record-{number:05d}-of-{n_shards:05d}"


def _noted(part: Path, number: int, n_shards: int) -> Note | None:
    """The note of a shard, if that is there and whole."""
    path = part / _NOTES / f"{number:05d}.json"
    shard = part / _shard_file(number, n_shards)
    if not (path.is_file() and shard.is_file()):
        return None
    note = Note(**json.loads(path.read_text("utf-8")))
    return note if shard.stat().st_size == note.bytes else None


def _write_shard(task: Task) -> tuple[int, Note]:
    """Write a shard and its note; the shard's number and the note."""
    from array_record.python.array_record_module import ArrayRecordWriter

    clips, part, number, n_shards = task
    path = part / _shard_file(number, n_shards)
    whole = path.with_name(f".{path.name}.part")
    note = Note(path.name, 0, "")
    features = _features()
    try:
        # The writer reports a disk's refusal as RuntimeError, at a write or when it is closed.
        writer = _as_disk_error(lambda: ArrayRecordWriter(str(whole), _WRITER))
        try:
            for place, row, audio in _readable(clips, note):
                data = features.serialize_example(features.encode_example(_example(row, audio)))
                _as_disk_error(lambda data=data: writer.write(data))
                note.numbers.append(place)
                note.digests.append(_digest(row, audio))
        finally:
            _as_disk_error(writer.close)
        note = replace(note, bytes=whole.stat().st_size, sha256=sha256_of(whole))
        os.replace(whole, path)
    except BaseException:
        whole.unlink(missing_ok=True)
        raise
    _write_json(part / _NOTES / f"{number:05d}.json", note.__dict__)
    return number, note


def _as_disk_error(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except RuntimeError as error:
        raise OSError(0, " ".join(str(error).split(";")[0].split())) from None


def _readable(clips: Listing, note: Note) -> Iterator[tuple[int, Labelled, bytes]]:
    """Clips that can be read, with their numbers; the others are noted."""
    for number, place in enumerate(clips.places):
        row = clips.index.row(number)
        try:
            audio = clips.read(place)
            note.durations_s.append(duration_s(audio))
        except FileNotFoundError:
            note.missing.append(row.name)
            continue
        except (AudioError, OSError) as error:
            note.broken[row.name] = " ".join(str(error).split())
            continue
        yield number, row, audio


def _features() -> Any:
    """What a record holds, for tensorflow-datasets; floats of a record have 32 bits."""
    import tensorflow_datasets as tfds

    def column(dtype: Any) -> Any:
        return tfds.features.Tensor(shape=(None,), dtype=dtype)

    return tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(),
            "audio": tfds.features.Tensor(shape=(), dtype=np.object_),
            "has_events": tfds.features.Scalar(np.bool_),
            "onset_s": column(np.float32),
            "offset_s": column(np.float32),
            "event_class": column(np.int32),
            "weak_class": column(np.int32),
        }
    )


def _example(row: Labelled, audio: bytes) -> dict[str, Any]:
    onset_s, offset_s, classes = zip(*(row.events or ()), strict=True) if row.events else ((),) * 3
    return {
        "name": row.name,
        "audio": audio,
        "has_events": row.events is not None,
        "onset_s": np.array(onset_s, np.float32),
        "offset_s": np.array(offset_s, np.float32),
        "event_class": np.array(classes, np.int32),
        "weak_class": np.array(row.weak, np.int32),
    }


def _digest(row: Labelled, audio: bytes) -> str:
    labels = repr((row.name, row.events, row.weak)).encode()
    return hashlib.sha256(hashlib.sha256(audio).digest() + labels).hexdigest()


def _finish(
    listing: Listing, part: Path, notes: Sequence[Note], shard_clips: int, licence: str | None
) -> None:
    """Write index, tensorflow-datasets' metadata and manifest."""
    kept = [i * shard_clips + n for i, note in enumerate(notes) for n in note.numbers]
    if not kept:
        broken = {name: reason for note in notes for name, reason in note.broken.items()}
        first = f", the first: {next(iter(broken.items()))}" if broken else ""
        raise CorpusError(f"{part}: none of {len(listing.index)} clips can be read{first}")
    lengths = np.array([s for note in notes for s in note.durations_s])
    index = replace(listing.index.rows(kept), duration_s=lengths)
    with whole_file(part / INDEX) as file:
        np.savez(file, **index.arrays())
    _write_metadata(part, notes)
    manifest = _manifest(listing, part, notes, index)
    stated = {} if licence is None else {"licence": licence}
    _write_json(part / MANIFEST, {**manifest, **stated}, indent=1)


def _write_metadata(part: Path, notes: Sequence[Note]) -> None:
    """`dataset_info.json` and `features.json`, from which tensorflow-datasets opens the folder."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    template = tfds.core.ShardedFileTemplate(
        data_dir=part, dataset_name=NAME, split=SPLIT, filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=[len(note.numbers) for note in notes],
        num_bytes=sum(note.bytes for note in notes),
        filename_template=template,
    )
    version = tfds.core.Version(f"{FORMAT}.0.0")
    identity = DatasetIdentity(name=NAME, version=version, data_dir=str(part), module_name="")
    info = tfds.core.DatasetInfo(builder=identity, features=_features())
    info.set_file_format("array_record")
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(part)


def _manifest(
    listing: Listing, part: Path, notes: Sequence[Note], index: ClipIndex
) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(listing.labels).encode())
    for note in notes:
        digest.update("".join(note.digests).encode())
    shards = [
        {"file": n.file, "n_clips": len(n.numbers), "bytes": n.bytes, "sha256": n.sha256}
        for n in notes
    ]
    path = part / INDEX
    return {
        "format": FORMAT,
        "n_clips": len(index),
        "n_clips_with_events": int(index.is_strong.sum()),
        "n_events": len(index.onset_s),
        "hours": round(float(index.duration_s.sum()) / 3600, 4),
        "sha256": digest.hexdigest(),
        "importer": listing.importer,
        "version": __version__,
        "sources": [_source(path) for path in listing.sources],
        "missing": [*listing.missing, *(name for note in notes for name in note.missing)],
        "broken": {name: reason for note in notes for name, reason in note.broken.items()},
        "classes": _classes(listing.labels, index),
        "labels": list(listing.labels),
        "index": {"file": INDEX, "bytes": path.stat().st_size, "sha256": sha256_of(path)},
        "shards": shards,
    }


def _source(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    digest = sha256_of(path) if size < _HASHED_BYTES else None
    return {"file": path.name, "bytes": size, "sha256": digest}


def _classes(labels: Sequence[str], index: ClipIndex) -> dict[str, dict[str, float]]:
    """Clips, events and seconds of each class that has any."""
    n_classes = len(labels)
    counts = active_seconds(index, n_classes)
    seconds = np.bincount(counts.label, weights=counts.amount, minlength=n_classes)
    n_events = np.bincount(index.event_class, minlength=n_classes)
    n_clips = np.bincount(index.weak_class, minlength=n_classes)
    return {
        label: {
            "n_clips": int(n_clips[i]),
            "n_events": int(n_events[i]),
            "seconds": round(float(seconds[i]), 3),
        }
        for i, label in enumerate(labels)
        if n_clips[i] or n_events[i]
    }


def _write_json(path: Path, content: Mapping[str, Any], indent: int | None = None) -> None:
    with whole_file(path) as file:
        file.write(json.dumps(content, indent=indent, ensure_ascii=False).encode())
