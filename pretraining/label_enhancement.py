"""Labels that a clip ought to have by an ontology and a teacher's scores (PSLA's enhancement).

Gong, Chung and Glass, TASLP 2021. A teacher's scores for the training clips give a threshold for
each class. Type 1 looks down: a direct child of a label that a clip has is added where the clip's
score for it is above the child's threshold. Type 2 looks up, to all ancestors. Both start from the
labels as they were; nothing that was added leads any further.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from hear_pretrainedsed.registry import unknown
from pretraining.vocabulary import Vocabulary

RULES = ("none", "mean", "median", "25", "10", "5")
"""What a threshold is of the scores of clips that have the class; numbers are percentiles.

None: whatever the score.
"""
TYPES = (1, 2)

_ABSTRACT = "abstract"
_CLIPS_AT_ONCE = 1 << 14

Labels = Sequence[Sequence[int]]
"""The classes of each clip, by number."""


@dataclass(frozen=True)
class Ontology:
    """Which sounds are kinds of which.

    names: of each id. children: direct ones of each id that may be a parent. Abstract ids are none;
    any other restriction counts for nothing.
    """

    names: Mapping[str, str]
    children: Mapping[str, tuple[str, ...]]

    def ancestors(self) -> dict[str, set[str]]:
        """All ids above each id. Raises `ValueError` for an id that is above itself."""
        parents: dict[str, set[str]] = {}
        for parent, children in self.children.items():
            for child in children:
                parents.setdefault(child, set()).add(parent)
        found = {}
        for start in self.names:
            above: set[str] = set()
            todo = list(parents.get(start, ()))
            while todo:
                one = todo.pop()
                if one not in above:
                    above.add(one)
                    todo += parents.get(one, ())
            if start in above:
                raise ValueError(f"the ontology has {start!r} ({self.names[start]}) above itself")
            found[start] = above
        return found

    def links(self, vocabulary: Vocabulary, kind: int) -> np.ndarray:
        """Which class (column) a label (row) may add, (classes, classes) bool, for type 1 or 2.

        Classes are found in the ontology by id, else by name; one that is not there has no links.
        Raises `ValueError` for another type, and where no class is in the ontology.
        """
        if kind not in TYPES:
            raise ValueError(unknown("type of label enhancement", kind, TYPES))
        place = self.places(vocabulary)
        if not place:
            raise ValueError(
                f"none of the {len(vocabulary.labels)} classes of {vocabulary.source} is in the "
                f"ontology, neither by id nor by name"
            )
        reached = self.children if kind == 1 else self.ancestors()
        links = np.zeros((len(vocabulary.labels),) * 2, dtype=bool)
        for one, others in reached.items():
            for other in others:
                if one in place and other in place:
                    links[place[one], place[other]] = True
        return links

    def places(self, vocabulary: Vocabulary) -> dict[str, int]:
        """The class's number of each id that is one of the vocabulary."""
        known = vocabulary.places
        pairs = ((one, known.get(one, known.get(name))) for one, name in self.names.items())
        return {one: place for one, place in pairs if place is not None}


def read_ontology(path: Path) -> Ontology:
    """AudioSet's `ontology.json`, or one of its form.

    A list of {"id", "name", "restrictions", "child_ids"}. Raises `ValueError` in one line for any
    other content.
    """
    try:
        nodes = json.loads(path.read_text("utf-8"))
        names = {str(node["id"]): str(node.get("name", node["id"])) for node in nodes}
        children = {
            str(node["id"]): tuple(map(str, node["child_ids"]))
            for node in nodes
            if _ABSTRACT not in node.get("restrictions", ())
        }
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path}: no ontology, a list of {{"id", "name", "restrictions", "child_ids"}}: {error}'
        ) from None
    if len(names) != len(nodes):
        raise ValueError(f"{path}: an id is there twice")
    return Ontology(names, children)


def thresholds(labels: Labels, scores: np.ndarray, rule: str) -> np.ndarray:
    """The threshold of each class (classes,), of scores (clips, classes) for clips that have it.

    NaN for a class that no clip has: nothing is above that. Raises `ValueError` for another rule,
    and for scores and labels that don't fit.
    """
    if rule not in RULES:
        raise ValueError(unknown("threshold", rule, RULES))
    _check(labels, scores)
    n_classes = scores.shape[1]
    if rule == "none":
        return np.full(n_classes, -np.inf)
    sizes = [len(row) for row in labels]
    clips = np.repeat(np.arange(len(labels)), sizes)
    classes = np.fromiter(chain.from_iterable(labels), dtype=np.int64, count=sum(sizes))
    values = np.asarray(scores[clips, classes], dtype=np.float64)  # in a file's own order
    values = values[np.argsort(classes, kind="stable")]
    ends = np.cumsum(np.bincount(classes, minlength=n_classes))
    parts = np.split(values, ends[:-1])
    return np.array([_statistic(part, rule) if len(part) else np.nan for part in parts])


def enhance(
    labels: Labels, scores: np.ndarray, links: np.ndarray, limits: np.ndarray
) -> list[tuple[int, ...]]:
    """The labels of each clip with those that are added, in the order of the classes.

    scores (clips, classes): a teacher's, in 0..1, an array or a memory-mapped file. links (classes,
    classes): as of `Ontology.links`; the union of two is the union of what they add. limits
    (classes,): as of `thresholds`. Raises `ValueError` for scores that don't fit.
    """
    _check(labels, scores)
    reach = links.astype(np.float32)
    enhanced: list[tuple[int, ...]] = []
    for first in range(0, len(labels), _CLIPS_AT_ONCE):
        rows = labels[first : first + _CLIPS_AT_ONCE]
        has = np.zeros((len(rows), scores.shape[1]), dtype=bool)
        for row, classes in zip(has, rows, strict=True):
            row[list(classes)] = True
        linked = has.astype(np.float32) @ reach > 0
        above = np.asarray(scores[first : first + len(rows)], dtype=np.float64) > limits
        enhanced += [tuple(np.flatnonzero(row).tolist()) for row in has | (linked & above)]
    return enhanced


def enhance_by(
    ontology: Ontology,
    vocabulary: Vocabulary,
    labels: Labels,
    scores: np.ndarray,
    rule: str,
    types: Iterable[int] = TYPES,
) -> list[tuple[int, ...]]:
    """The whole of it: thresholds of a rule, links of some types, labels enhanced."""
    limits = thresholds(labels, scores, rule)
    links = np.zeros((scores.shape[1],) * 2, dtype=bool)
    for kind in types:
        links |= ontology.links(vocabulary, kind)
    return enhance(labels, scores, links, limits)


def _statistic(values: np.ndarray, rule: str) -> float:
    if rule == "mean":
        return float(values.mean())
    return float(np.percentile(values, 50 if rule == "median" else float(rule)))


def _check(labels: Labels, scores: np.ndarray) -> None:
    if scores.ndim != 2 or len(scores) != len(labels):
        raise ValueError(
            f"scores of shape {scores.shape} for {len(labels)} clips; wanted (clips, classes)"
        )
