"""Recordings -> train, valid and test, such that each class is in each where that can be.

The greedy part follows Sechidis, Tsoumakas, Vlahavas, "On the Stratification of Multi-label Data",
ECML PKDD 2011: the rarest class that is left is divided first.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

SPLITS = ("train", "valid", "test")
_SHARE = 0.2  # of valid, and of test
_ENOUGH = len(SPLITS)  # files that a class needs to be in every split


def stratified(labels: Mapping[str, Collection[str]], seed: int) -> dict[str, str]:
    """The split of each file, given the classes in it; 60 / 20 / 20.

    The same files, classes and seed give the same splits. A class in three files or more is in
    every split, but for rare cases in which classes exclude one another. Raises `ValueError` for
    fewer than three files.
    """
    if len(labels) < _ENOUGH:
        raise ValueError(f"{len(labels)} files: train, valid and test need at least {_ENOUGH}")
    order = sorted(labels)
    random.Random(seed).shuffle(order)
    draft = _Draft({file: frozenset(labels[file]) for file in order})
    draft.divide()
    while draft.repair():
        pass
    return {file: draft.split[file] for file in sorted(labels)}


def _wanted(n: int) -> Counter[str]:
    """How `n` files are to be divided."""
    part = max(1, round(_SHARE * n))
    return Counter(train=n - 2 * part, valid=part, test=part)


@dataclass
class _Draft:
    labels: Mapping[str, frozenset[str]]  # by file, in a drawn order
    split: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = Counter(label for found in self.labels.values() for label in found)
        self._n = Counter({label: n[label] for label in n if n[label] >= _ENOUGH})
        self._there: Counter[tuple[str, str]] = Counter()  # files by class and split
        self._size: Counter[str] = Counter()

    def divide(self) -> None:
        """Give each file a split, those of the rarest class first, classes in one or two last."""
        wanted = {label: _wanted(n) for label, n in self._n.items()}
        size = _wanted(len(self.labels))
        left = Counter(self._n)
        while left:
            rarest = min(left, key=lambda label: (left[label], label))
            for file in self.labels:
                if rarest in self.labels[file] and file not in self.split:
                    self._put(file, self._poorest(wanted[rarest], rarest, size))
                    left -= Counter(self.labels[file])
            left.pop(rarest, None)
        for file in sorted(self.labels, key=lambda file: not self.labels[file]):
            if file not in self.split:
                self._put(file, max(SPLITS, key=lambda name: size[name] - self._size[name]))

    def _poorest(self, wanted: Counter[str], label: str, size: Counter[str]) -> str:
        def lack(name: str) -> tuple[int, int]:
            return wanted[name] - self._there[label, name], size[name] - self._size[name]

        return max(SPLITS, key=lack)

    def _put(self, file: str, name: str) -> None:
        before = self.split.get(file)
        self.split[file] = name
        for label in self.labels[file]:
            self._there[label, name] += 1
            if before:
                self._there[label, before] -= 1
        self._size[name] += 1
        if before:
            self._size[before] -= 1

    def _n_gaps(self, labels: Collection[str]) -> int:
        """Splits that classes are not in although they could be."""
        wide = [label for label in labels if label in self._n]
        return sum(not self._there[label, name] for label in wide for name in SPLITS)

    def repair(self) -> bool:
        """Move a file, or exchange two, so that fewer classes lack a split; False: no way."""
        gaps = [
            (label, name)
            for label in sorted(self._n)
            for name in SPLITS
            if not self._there[label, name]
        ]
        for label, name in gaps:
            for file in [file for file in self.labels if label in self.labels[file]]:
                others = [other for other in self.labels if self.split[other] == name]
                if any(self._better(file, name, other) for other in (None, *others)):
                    return True
        return False

    def _better(self, file: str, name: str, other: str | None) -> bool:
        """Move a file to a split, and another one back, if that closes gaps; else undo it."""
        touched = self.labels[file] | (self.labels[other] if other else frozenset())
        before, n_before = self.split[file], self._n_gaps(touched)
        self._put(file, name)
        if other:
            self._put(other, before)
        if self._n_gaps(touched) < n_before and self._size[before]:
            return True
        self._put(file, before)
        if other:
            self._put(other, name)
        return False
