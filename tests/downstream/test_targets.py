"""Labels of frames: the reference's DCASE labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from downstream.targets import frame_targets
from downstream.tasks import Clip


def clip(events_ms: list[tuple[float, float, str]]) -> Clip:
    events = tuple((a / 1000, b / 1000, label) for a, b, label in events_ms)
    return Clip("a.wav", Path("a.wav"), events, 10.0, "a", tuple(events_ms))


def test_is_the_reference(shared: Path) -> None:
    facts = json.loads((shared / "parity" / "training.json").read_text())
    wanted = np.load(shared / "parity" / "training.npz")["dcase_labels.b"]
    events = [(e["start"], e["end"], e["label"]) for e in facts["dcase_labels"]["events"]]
    labels = sorted(facts["score"]["label_to_idx"], key=facts["score"]["label_to_idx"].get)
    np.testing.assert_array_equal(frame_targets(clip(events), labels, 250), wanted.T)


def test_both_ends_are_inside_and_what_lies_beyond_the_clip_is_not() -> None:
    found = frame_targets(clip([(20, 60, "a"), (380, 900, "b")]), ("a", "b"), 10)
    assert found[:, 0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert found[:, 1].tolist() == [0] * 9 + [1]
