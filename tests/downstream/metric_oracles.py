"""What the metric tests share: events by hypothesis, sed_eval as an oracle, fixtures' readers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from downstream.metrics import Score
from hear_pretrainedsed.events import merge_events

EventList = list[tuple[float, float, str]]
EventDict = dict[str, EventList]

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "metrics"
LABELS = ("a", "b", "c", "nowhere")
FILES = ("x.wav", "y.wav", "z.wav")

# Many multiples of 50 ms, so that differences equal to a collar and touching events are common.
TIMES = st.one_of(st.integers(0, 80).map(lambda n: n / 20), st.floats(0, 6, allow_subnormal=False))
LENGTHS = st.one_of(st.just(0.0), st.integers(0, 30).map(lambda n: n / 20), st.floats(0, 20))
EVENT = st.builds(lambda a, d, label: (a, a + d, label), TIMES, LENGTHS, st.sampled_from("abc"))
EVENTS = st.dictionaries(st.sampled_from(FILES), st.lists(EVENT, max_size=8), max_size=3)


def share_a_file(reference: EventDict, estimated: EventDict) -> bool:
    """Whether the sides can be of the same files at all."""
    return not (reference and estimated) or bool(reference.keys() & estimated.keys())


def sound_event() -> ModuleType:
    return pytest.importorskip("sed_eval").sound_event


def sed_eval_results(
    metric: Any, reference: EventDict, estimated: EventDict
) -> dict[str, dict[str, Any]]:
    """sed_eval's results, files evaluated one by one."""
    for name in dict.fromkeys((*reference, *estimated)):
        metric.evaluate(_dicts(reference.get(name, [])), _dicts(estimated.get(name, [])))
    with np.errstate(all="ignore"):
        return metric.results()


def _dicts(events: EventList) -> list[dict[str, Any]]:
    return [{"event_onset": a, "event_offset": b, "event_label": label} for a, b, label in events]


def assert_score(score: Score, results: dict[str, Any], kind: str, name: str) -> None:
    """Micro, macro and every class equal sed_eval's to 1e-12."""
    assert score.micro == approx(results["overall"][kind][name])
    assert score.macro == approx(results["class_wise_average"][kind][name])
    values = {label: row[kind][name] for label, row in results["class_wise"].items()}
    assert score.per_class == approx(values)


def approx(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True)


def near_misses(rng: np.random.Generator, events: EventList) -> EventList:
    """What a fair system makes of events: moved, lost, doubled, renamed, out of order."""
    found = []
    for a, b, label in events:
        if rng.random() < 0.15:
            continue
        label = label if rng.random() < 0.9 else str(rng.choice(["a", "b", "c"]))
        for _ in range(1 + (rng.random() < 0.1)):
            start = max(0.0, a + rng.normal(0, 0.15))
            found.append((start, max(start, b + rng.normal(0, 0.3)), label))
    return [found[i] for i in rng.permutation(len(found))]


def from_table(text: str, delimiter: str = "\t") -> EventDict:
    """Events of a table with DESED's columns."""
    events: EventDict = {}
    for row in csv.DictReader(text.splitlines(), delimiter=delimiter):
        rows = events.setdefault(row["filename"], [])
        if row["event_label"]:
            rows.append((float(row["onset"]), float(row["offset"]), row["event_label"]))
    return events


def from_rows(path: Path, columns: Sequence[int]) -> EventDict:
    """Events of a file without heading; columns of onset, offset, label and maybe the file."""
    events: EventDict = {}
    for line in path.read_text().splitlines():
        fields = line.split("\t")
        a, b, label, *name = (fields[i] for i in columns)
        events.setdefault(name[0] if name else "f", []).append((float(a), float(b), label))
    return events


def joined(events: EventDict) -> EventDict:
    """Same-class events that overlap or touch as one."""
    return {name: [event[:3] for event in merge_events(row)] for name, row in events.items()}
