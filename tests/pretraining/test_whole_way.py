"""From real recordings to a distilled checkpoint, by the commands; few steps of each stage."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.whole_way import STUDENT, TEACHER, WEAK, whole_way


@pytest.mark.slow
def test_from_recordings_to_a_student(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "strong_mini-v1"
    stages = list(whole_way(data, tmp_path, 1, more=("--max-steps", "3")))
    names = ["untrained", WEAK, TEACHER, "pseudo labels", STUDENT]
    assert [stage.name for stage in stages] == names
    assert all(0 <= s.psds1 <= 1 for s in stages if s.name != "pseudo labels")
    cards = {
        name: json.loads((tmp_path / name / "card.json").read_text())
        for name in ("best_weak", "strong_teacher", "fmn_student")
    }
    assert all(math.isfinite(card["metrics"]["loss"]) for card in cards.values())
    parents = {name: [p["role"] for p in card["parents"]] for name, card in cards.items()}
    assert parents["fmn_student"] and "pseudo labels" in parents["fmn_student"]
