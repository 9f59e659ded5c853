"""HEAR's recipes of splits, against HEAR's own archive; and scenes of DCASE 2016."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import tarfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

import pytest

from downstream.tasks import dcase2016_task2, hear_splits, maestro_5hr


def test_folds_of_hears_archive(shared: Path) -> None:
    """An archive of the HEAR release: five folds, each in the order of its JSON file."""
    (archive,) = (shared / "data" / "hear_archive").glob("*.tar.gz")
    folds = {}
    with tarfile.open(archive) as files:
        for member in files:
            name = PurePosixPath(member.name)
            if re.fullmatch(r"fold\d+\.json", name.name):
                folds[name.stem] = list(json.load(files.extractfile(member)))
    assert len(folds) == 5
    stems = [PurePosixPath(file).stem for files in folds.values() for file in files]
    made = hear_splits.kfold(reversed(stems), 5)
    assert {fold: [f"{s}.wav" for s in sorted(made[fold])] for fold in made} == folds


def test_parts_of_hears_recipes() -> None:
    stems = [f"s{i:04d}" for i in range(1276)]
    folds = hear_splits.kfold(stems, 5)
    assert [len(fold) for fold in folds.values()] == [256, 255, 255, 255, 255]
    assert sorted(stem for fold in folds.values() for stem in fold) == stems
    kept = hear_splits.subsample(folds["fold00"], "fold00", 37)
    assert len(set(kept)) == 37 and set(kept) <= set(folds["fold00"])
    assert hear_splits.subsample(reversed(folds["fold00"]), "fold00", 37) == kept
    assert hear_splits.subsample(folds["fold00"], "fold00", 50)[:37] == kept
    assert hear_splits.subsample(folds["fold00"], "fold01", 37) != kept
    parts = hear_splits.trainvaltest(stems)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 766,
        "valid": 255,
        "test": 255,
    }
    assert sorted(stem for part in parts.values() for stem in part) == stems


def test_recipes_do_not_drift() -> None:
    """The shuffles are those of the standard library and of numpy's legacy generator."""
    stems = [f"{i:02d}" for i in range(10)]
    assert hear_splits.kfold(stems, 3)["fold00"] == KFOLD
    assert hear_splits.trainvaltest(stems)["valid"] == VALID
    assert hear_splits.subsample(stems, "fold00", 4) == SUBSAMPLE


KFOLD = ["05", "03", "07", "09"]
VALID = ["04", "08"]
SUBSAMPLE = ["04", "09", "06", "01"]


def test_maestros_performances(shared: Path) -> None:
    with (shared / "data" / "meta" / "maestro" / "maestro-v3.0.0.csv").open() as file:
        stems = [PurePosixPath(row["audio_filename"]).stem for row in csv.DictReader(file)]
    folds = maestro_5hr.draw(stems)
    assert [len(fold) for fold in folds.values()] == [37] * 5
    assert len({stem for fold in folds.values() for stem in fold}) == 185


# ---- DCASE 2016


@pytest.fixture
def annotations(shared: Path) -> dict[str, str]:
    files = (shared / "data" / "meta" / "dcase2016_task2").rglob("*.txt")
    return {path.stem: path.read_text() for path in files}


def test_scenes_have_one_annotation_each(annotations: dict[str, str]) -> None:
    scenes = defaultdict(list)
    for stem, text in annotations.items():
        scenes[dcase2016_task2.scene_of(stem)].append(text)
    assert (len(annotations), len(scenes)) == (72, 24)
    assert {len(texts) for texts in scenes.values()} == {3}
    assert {len(set(texts)) for texts in scenes.values()} == {1}
    assert len({texts[0] for texts in scenes.values()}) == 24
    for texts in scenes.values():  # every class in each scene
        assert len(set(re.findall(r"[a-z]+", texts[0]))) == 11


def test_every_official_test_file_has_a_twin(annotations: dict[str, str]) -> None:
    parts = hear_splits.trainvaltest(annotations)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 44,
        "valid": 14,
        "test": 14,
    }
    heard = {annotations[stem] for name in ("train", "valid") for stem in parts[name]}
    assert [stem for stem in parts["test"] if annotations[stem] not in heard] == []


def test_scene_folds_divide_scenes(annotations: dict[str, str]) -> None:
    scenes = {dcase2016_task2.scene_of(stem) for stem in annotations}
    folds = dcase2016_task2.scene_folds(scenes)
    assert sorted(scene for fold in folds.values() for scene in fold) == sorted(scenes)
    for fold in folds.values():
        assert sorted(scene[-1] for scene in fold) == ["0", "0", "1", "1"]
    text = json.dumps(folds)
    assert hashlib.sha256(text.encode()).hexdigest() == SCENES, folds


SCENES = "a46f826b74f0d717a48ed39ee5a5485915550e3c3b365a7f1da711476a7a70d7"


def test_scene_of_another_name() -> None:
    with pytest.raises(ValueError, match="office_01.wav: wanted a name as dev_1_ebr"):
        dcase2016_task2.scene_of("office_01.wav")
