"""Names, events and clip labels of many clips in columns: two million take a few 100 MB."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

IndexEvent = tuple[float, float, int]
"""Onset and offset in seconds, class index."""


class Labelled(NamedTuple):
    """A clip's name and labels; `events` is None where only the whole clip is labelled."""

    name: str
    events: tuple[IndexEvent, ...] | None
    weak: tuple[int, ...]


class Names(Sequence[str]):
    """Names, one after another in a single array of UTF-8."""

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self._text, self._ends = text, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> str:  # type: ignore[override]
        number = range(len(self))[number]
        first = self._ends[number - 1] if number else 0
        return self._text[first : self._ends[number]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))


@dataclass(frozen=True, eq=False)
class ClipIndex:
    """Columns of clips and of their labels; those of clip i end at `*_ends[i]`.

    name_text (bytes,) uint8, UTF-8; name_ends, event_ends, weak_ends (clips,) int64; is_strong
    (clips,) bool: whether a clip's events are known; onset_s, offset_s (events,) float64, so that
    frames are those of the label file's numbers to the last bit; event_class (events,) and
    weak_class (clip labels,) int32; duration_s (clips,) float64, NaN where it is not known yet.
    """

    name_text: np.ndarray
    name_ends: np.ndarray
    is_strong: np.ndarray
    event_ends: np.ndarray
    onset_s: np.ndarray
    offset_s: np.ndarray
    event_class: np.ndarray
    weak_ends: np.ndarray
    weak_class: np.ndarray
    duration_s: np.ndarray

    def __len__(self) -> int:
        return len(self.name_ends)

    @classmethod
    def of(cls, rows: Iterable[Labelled]) -> ClipIndex:
        """The columns of clips."""
        text = bytearray()
        columns = {name: array(code) for name, code in _CODES.items()}
        for name, events, weak in rows:
            text += name.encode()
            columns["name_ends"].append(len(text))
            columns["is_strong"].append(events is not None)
            for onset_s, offset_s, number in events or ():
                columns["onset_s"].append(onset_s)
                columns["offset_s"].append(offset_s)
                columns["event_class"].append(number)
            columns["event_ends"].append(len(columns["onset_s"]))
            columns["weak_class"].extend(weak)
            columns["weak_ends"].append(len(columns["weak_class"]))
            columns["duration_s"].append(float("nan"))
        arrays = {name: np.array(column) for name, column in columns.items()}
        arrays["is_strong"] = arrays["is_strong"].astype(bool)
        return cls(name_text=np.frombuffer(bytes(text), np.uint8), **arrays)

    @property
    def names(self) -> Names:
        """The clips' names."""
        return Names(self.name_text, self.name_ends)

    def row(self, number: int) -> Labelled:
        """Name and labels of a clip."""
        events, weak = (
            slice(ends[number - 1] if number else 0, ends[number])
            for ends in (self.event_ends, self.weak_ends)
        )
        columns = (c[events].tolist() for c in (self.onset_s, self.offset_s, self.event_class))
        known = tuple(zip(*columns, strict=True)) if self.is_strong[number] else None
        return Labelled(self.names[number], known, tuple(self.weak_class[weak].tolist()))

    def rows(self, numbers: Iterable[int]) -> ClipIndex:
        """The clips of these numbers."""
        chosen = np.fromiter(numbers, np.int64)
        out = {
            "is_strong": self.is_strong[chosen],
            "duration_s": self.duration_s[chosen],
        }
        groups = (
            ("name_ends", ("name_text",)),
            ("event_ends", ("onset_s", "offset_s", "event_class")),
            ("weak_ends", ("weak_class",)),
        )
        for ends_name, names in groups:
            ends = getattr(self, ends_name)
            starts = np.concatenate(([0], ends))[:-1] if len(ends) else ends
            sizes = (ends - starts)[chosen]
            out[ends_name] = np.cumsum(sizes)
            shift = starts[chosen] - (out[ends_name] - sizes)
            places = np.arange(sizes.sum()) + np.repeat(shift, sizes)
            out |= {name: getattr(self, name)[places] for name in names}
        return ClipIndex(**out)

    @property
    def event_clip(self) -> np.ndarray:
        """The clip of each event (events,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.event_ends, prepend=0))

    @property
    def weak_clip(self) -> np.ndarray:
        """The clip of each clip label (clip labels,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.weak_ends, prepend=0))

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns by name, as they are written to a file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


_CODES = {  # type codes of `array`
    "name_ends": "q",
    "is_strong": "b",
    "event_ends": "q",
    "onset_s": "d",
    "offset_s": "d",
    "event_class": "i",
    "weak_ends": "q",
    "weak_class": "i",
    "duration_s": "d",
}
