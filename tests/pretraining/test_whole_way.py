"""From real recordings to a distilled checkpoint, by the commands, on clips learned by heart."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from benchmarks.whole_way import STUDENT, TEACHER, WEAK, chance, whole_way
from pretraining.corpus import open_corpus

N_CLIPS, EPOCHS, BATCH = 8, 45, 4


def few_clips(data: Path, out: Path) -> Path:
    """A folder as `strong_mini-v1` of its first clips, which are the evaluation clips as well."""
    header, *rows = (data / "strong_mini_train_strong.tsv").read_text().splitlines()
    names = sorted({row.split("\t")[0] for row in rows})[:N_CLIPS]
    strong = [header, *(row for row in rows if row.split("\t")[0] in names)]
    weak = (data / "strong_mini_train_weak.csv").read_text().splitlines()
    clips = {name.rpartition("_")[0] for name in names}
    weak = [row for row in weak if row.startswith("#") or row.split(",")[0] in clips]
    assert len(weak) == N_CLIPS + 1
    for split in ("train", "eval"):
        (out / "audio" / split).mkdir(parents=True)
        for name in names:
            (out / "audio" / split / f"{name}.ogg").symlink_to(
                data / "audio" / "train" / f"{name}.ogg"
            )
        (out / f"{out.name}_{split}_strong.tsv").write_text("\n".join(strong) + "\n")
        (out / f"{out.name}_{split}_weak.csv").write_text("\n".join(weak) + "\n")
    shutil.copy(data / "class_labels_indices.csv", out)
    return out


@pytest.mark.slow
def test_from_recordings_to_a_student(shared: Path, tmp_path: Path) -> None:
    data = few_clips(shared / "data" / "strong_mini-v1", tmp_path / "few")
    stages = {stage.name: stage for stage in whole_way(data, tmp_path, EPOCHS, BATCH)}
    names = ["untrained", WEAK, TEACHER, "pseudo labels", STUDENT]
    assert list(stages) == names
    nothing = chance(open_corpus(tmp_path / "eval"))
    assert 0.01 < nothing < 0.1
    assert stages["untrained"].frame_map < 1.5 * nothing
    assert stages[TEACHER].frame_map > 2 * nothing
    assert stages[STUDENT].frame_map > 2 * nothing
    cards = {
        name: json.loads((tmp_path / name / "card.json").read_text())
        for name in ("best_weak", "strong_teacher", "fmn_student")
    }
    assert all(math.isfinite(card["metrics"]["loss"]) for card in cards.values())
    parents = {name: [p["role"] for p in card["parents"]] for name, card in cards.items()}
    assert parents["fmn_student"] and "pseudo labels" in parents["fmn_student"]
