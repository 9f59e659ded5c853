"""Label files with enhanced labels, in the form of those they are made from and can replace.

PSLA's JSON (`importers.psla`), AudioSet's CSV of clip labels and FSD50K's CSV are told apart by
their content. What a file says beside its labels stays as it is.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hear_pretrainedsed.events import whole_file
from pretraining.importers.fsd50k import read_rows
from pretraining.importers.listing import pick
from pretraining.label_enhancement import TYPES, Ontology, enhance_by
from pretraining.vocabulary import Vocabulary, first_few


@dataclass(frozen=True)
class Enhanced:
    """What was done: clips in the file, those without scores (left as they were), labels added.

    by_class: how many labels were added of each class that any was, most first.
    """

    n_clips: int
    n_without_scores: int
    n_added: int
    by_class: Mapping[str, int]


@dataclass
class _Row:
    """A clip of a label file: its name, its labels as written, how others are written in."""

    name: str
    labels: list[str]
    write: Callable[[list[str], list[str]], None]  # labels, ids of those that were added


@dataclass
class _Table:
    """A label file: its clips, and its text as it is with the labels that they have now."""

    rows: list[_Row]
    text: Callable[[], str]


def clip_names(source: Path, vocabulary: Vocabulary) -> list[str]:
    """Names of the clips of a label file. Raises `ValueError` as `enhance_file`."""
    table = _opened(source)
    _classes(table, vocabulary, source)
    return [row.name for row in table.rows]


def enhance_file(
    source: Path,
    target: Path,
    names: Sequence[str],
    scores: np.ndarray,
    vocabulary: Vocabulary,
    ontology: Ontology,
    rule: str,
    types: Iterable[int] = TYPES,
) -> Enhanced:
    """Write `source` with enhanced labels to `target`, whole or not at all.

    names: of the clips that have scores (clips, classes), as a corpus has them. A clip of the file
    that is not among them keeps its labels. Added labels are written after those of a clip, by id
    or by name as these are; by the other where the class list would not read that back, as a name
    with a comma. rule, types: as in `label_enhancement`.

    Raises `ValueError` for a file of another form, labels that are not in the class list, an added
    one that could not be read back either way, and where no clip of the file has scores.
    """
    table = _opened(source)
    classes = _classes(table, vocabulary, source)
    place = {name: number for number, name in enumerate(names)}
    found = [pick(row.name, place) for row in table.rows]
    scored = [number for number, name in enumerate(found) if name is not None]
    if not scored:
        told = first_few((row.name for row in table.rows), "clip")
        raise ValueError(f"{source}: {told} without scores, and no clip has any")
    numbers = [place[str(found[number])] for number in scored]
    if numbers != list(range(len(scores))):  # else as they are: a copy would be of gigabytes
        scores = scores[numbers]
    own = [classes[number] for number in scored]
    enhanced = enhance_by(ontology, vocabulary, own, scores, rule, types)
    ids = {number: one for one, number in ontology.places(vocabulary).items()}
    counts: Counter[int] = Counter()
    for number, after in zip(scored, enhanced, strict=True):
        added = sorted(set(after) - set(classes[number]))
        _add(table.rows[number], added, ids, vocabulary)
        counts.update(added)
    with whole_file(target) as file:
        file.write(table.text().encode("utf-8"))
    by_class = {vocabulary.labels[number]: n for number, n in counts.most_common()}
    return Enhanced(len(table.rows), len(table.rows) - len(scored), counts.total(), by_class)


def _classes(table: _Table, vocabulary: Vocabulary, source: Path) -> list[list[int]]:
    """The classes of each clip, by number."""
    strange = {label for row in table.rows for label in row.labels} - vocabulary.places.keys()
    if strange:
        raise ValueError(vocabulary.refusal(strange, str(source)))
    return [[vocabulary.places[label] for label in row.labels] for row in table.rows]


def _add(row: _Row, added: Sequence[int], ids: Mapping[int, str], vocabulary: Vocabulary) -> None:
    """Write classes beside a clip's labels: by id where these are ids, else by name."""
    by_id = all(ids.get(vocabulary.places[label]) == label for label in row.labels)
    added_ids = [ids[one] for one in added]  # they came from the ontology: each has one
    names = [_written(one, ids[one], by_id, vocabulary) for one in added]
    row.write(row.labels + names, added_ids)


def _written(number: int, own_id: str, by_id: bool, vocabulary: Vocabulary) -> str:
    """A class as it is written into a list with commas, so that it is that class when read."""
    name = vocabulary.labels[number]
    for text in (own_id, name) if by_id else (name, own_id):
        if _labels(text) == [text] and vocabulary.places.get(text) == number:
            return text
    raise ValueError(
        f"the class {name!r} cannot be written into a label file: names stand between commas, "
        f"and {vocabulary.source} has no class of the id {own_id!r}; give a class list with ids"
    )


def _opened(path: Path) -> _Table:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if text.lstrip().startswith("{"):
        return _psla(text, path)
    heading = next(csv.reader(text.splitlines()), [])
    return _fsd50k(text, path) if "fname" in heading else _audioset(text, path)


def _psla(text: str, path: Path) -> _Table:
    try:
        content = json.loads(text)
        rows = [_psla_row(entry) for entry in content["data"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path}: not of the form {{"data": [{{"wav", "labels"}}, ...]}}: {error}'
        ) from None
    return _Table(rows, lambda: json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _psla_row(entry: dict[str, Any]) -> _Row:
    def write(labels: list[str], _: list[str]) -> None:
        entry["labels"] = ",".join(labels)

    return _Row(Path(entry["wav"]).stem, _labels(entry["labels"]), write)


def _fsd50k(text: str, path: Path) -> _Table:
    """Columns fname, labels, and mids beside the labels where there are any."""
    columns, entries = read_rows(io.StringIO(text, newline=""), path)
    rows = [_fsd50k_row(entry) for entry in entries]

    def now() -> str:
        out = io.StringIO()
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(entries)
        return out.getvalue()

    return _Table(rows, now)


def _fsd50k_row(entry: dict[str, Any]) -> _Row:
    def write(labels: list[str], added_ids: list[str]) -> None:
        entry["labels"] = ",".join(labels)
        if entry.get("mids"):
            entry["mids"] = ",".join([*_labels(entry["mids"]), *added_ids])

    return _Row(entry["fname"], _labels(entry["labels"]), write)


def _audioset(text: str, path: Path) -> _Table:
    """Lines of id, start, end, "labels"; lines from # on are comments."""
    lines: list[Any] = text.splitlines()
    rows = []
    for number, line in enumerate(lines):
        if line.strip() and not line.startswith("#"):
            rows.append(_audioset_row(lines, number, path))
    if not rows:
        raise ValueError(f"{path}: no clip labels in it")
    return _Table(rows, lambda: "\n".join(lines) + "\n")


def _audioset_row(lines: list[str], number: int, path: Path) -> _Row:
    fields = next(csv.reader([lines[number]], skipinitialspace=True))
    try:
        recording, start, end, *labels = fields
        start_ms = round(1000 * float(start))
    except (ValueError, OverflowError):
        raise ValueError(
            f'{path}, line {number + 1}: a line is id, start, end, "labels"; got {fields}'
        ) from None

    def write(labels: list[str], _: list[str]) -> None:
        lines[number] = f'{recording}, {start}, {end}, "{",".join(labels)}"'

    return _Row(f"{recording}_{start_ms}", _labels(",".join(labels)), write)


def _labels(text: str) -> list[str]:
    return [label.strip() for label in text.split(",") if label.strip()]
