"""Class lists: which labels a corpus has, in the order of the head's outputs, by name and by mid.

AudioSet's lists come with the package: the 447 classes of AudioSet Strong's training set, the 416
of its evaluation set (407 are in both) and the 527 of the whole clips' labels.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from hear_pretrainedsed.registry import read_labels, unknown

SHIPPED = {  # class list -> the table of its mids
    "audioset_strong_train": "audioset_strong_mids.tsv",
    "audioset_strong_eval": "audioset_strong_mids.tsv",
    "audioset_527": "audioset_527_mids.tsv",
}

_NAMED = 3  # offenders in a message


@dataclass(frozen=True)
class Vocabulary:
    """Class names in order; `places` has the index of each name and each mid."""

    source: str
    labels: tuple[str, ...]
    places: Mapping[str, int]

    def refusal(self, labels: Iterable[str], where: str) -> str:
        """One line on labels of which some are not in the list."""
        others = sorted({label for label in labels if label not in self.places})
        near = difflib.get_close_matches(others[0], self.places, n=1, cutoff=0.5)
        hint = f"; the nearest to the first is {near[0]!r}" if near else ""
        return (
            f"{where}: {first_few(others, 'label')} not among the {len(self.labels)} classes of "
            f"{self.source}{hint}"
        )


def first_few(names: Iterable[str], what: str) -> str:
    """How many there are, and the first ones by name: "2 labels ('a', 'b') are"."""
    found = list(names)
    shown = ", ".join(repr(name) for name in found[:_NAMED])
    more = ", ..." if len(found) > _NAMED else ""
    return f"{len(found)} {what}{'s'[: len(found) != 1]} ({shown}{more}) " + (
        "are" if len(found) != 1 else "is"
    )


def open_vocabulary(which: str | Path) -> Vocabulary:
    """A class list that is shipped, by name, or one in a file.

    A file is a table with the columns mid and display_name, as AudioSet's and PSLA's
    class_labels_indices.csv; FSD50K's vocabulary.csv (index, name, mid, no heading); or plain text,
    a name a line. Raises `ValueError` for a file that cannot be read and for names given twice.
    """
    if str(which) in SHIPPED:
        labels = read_labels(str(which))
        return _vocabulary(str(which), labels, _shipped_mids(SHIPPED[str(which)]))
    path = Path(which)
    if not path.is_file():
        raise ValueError(unknown("class list", which, [*SHIPPED, "a file"]))
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: the class list cannot be read: {error}") from None
    labels, mids = _names_and_mids(text)
    if not labels or "" in labels:
        raise ValueError(f"{path}: a class list without names, or with an empty one")
    return _vocabulary(str(path), labels, mids)


def _names_and_mids(text: str) -> tuple[tuple[str, ...], dict[str, str]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if rows and {"mid", "display_name"} <= set(rows[0]):
        mid, name = (rows[0].index(column) for column in ("mid", "display_name"))
        rows = [row for row in rows[1:] if len(row) > max(mid, name)]
    elif rows and all(len(row) == 3 and row[0] == str(i) for i, row in enumerate(rows)):
        mid, name = 2, 1
    else:
        lines = tuple(line.strip() for line in text.splitlines() if line.strip())
        return lines, {}
    return tuple(row[name] for row in rows), {row[mid]: row[name] for row in rows}


def _shipped_mids(file: str) -> dict[str, str]:
    text = files("hear_pretrainedsed").joinpath("assets", file).read_text("utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return {row["mid"]: row["name"] for row in rows}


def _vocabulary(source: str, labels: tuple[str, ...], mids: Mapping[str, str]) -> Vocabulary:
    places = {label: i for i, label in enumerate(labels)}
    if len(places) != len(labels):
        twice = sorted({label for label in labels if labels.count(label) > 1})
        raise ValueError(f"{source}: {first_few(twice, 'class')} given twice")
    by_mid = {mid: places[name] for mid, name in mids.items() if name in places}
    return Vocabulary(source, labels, {**by_mid, **places})
