"""Raw data of which no task can be made: refused before anything is written."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from downstream.build_task import build
from downstream.tasks.hear_writer import Wanted, task_metadata, write_hear_folder
from downstream.tasks.sources import Member, Sources
from tests.downstream.task_folders import noise
from tests.downstream.test_tasks_desed import raw_desed

SPLITS = ("train", "valid", "test")


def refused(sources: list[Path], out: Path, match: str) -> None:
    """No clip is written, and nothing is left of the folder."""
    seen = []
    with pytest.raises(ValueError, match=match):
        build("desed", sources, out, lambda *n: seen.append(n))
    assert seen == [] and list(out.parent.glob(f"{out.name}*")) == []


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
    return target


@pytest.mark.parametrize(
    ("table", "row", "match"),
    [
        ("validation/validation.tsv", "Yv1_0_10.wav\tnan\t1\tCat", "Yv1_0_10.wav Cat nan to 1 s"),
        ("validation/validation.tsv", "Yv1_0_10.wav\t0\tinf\tCat", "Yv1_0_10.wav Cat 0 to inf s"),
        ("train/audioset_strong.tsv", "Ya1_0_10.wav\t-1\t1\tCat", "Ya1_0_10.wav Cat -1 to 1 s"),
        ("train/audioset_strong.tsv", "Ya1_0_10.wav\t2\t1\tCat", "Ya1_0_10.wav Cat 2 to 1 s"),
        ("train/audioset_strong.tsv", "Ya1_0_10.wav\t0\t1\tCow", "outside the vocabulary.*Cow"),
        ("train/weak.tsv", "Yw1_0_10.wav\tCow", "Yw1_0_10.wav: unknown label 'Cow'"),
    ],
)
def test_events_that_cannot_be(tmp_path: Path, table: str, row: str, match: str) -> None:
    folder = raw_desed(tmp_path / "dataset", without=("public", "unlabeled"))
    path = folder / "metadata" / table
    path.write_text(path.read_text() + row + "\n")
    refused([folder], tmp_path / "o", match)


@pytest.mark.parametrize("packed", [False, True])
def test_a_recording_that_is_trained_and_tested_on(tmp_path: Path, packed: bool) -> None:
    folder = raw_desed(tmp_path / "dataset", without=("public", "unlabeled"))
    weak, test = folder / "audio/train/weak", folder / "audio/validation/validation"
    shutil.copy(test / "Yv2_0_10.wav", weak / "Yw1_0_10.wav")
    given = zipped(folder, tmp_path / "a.zip") if packed else folder
    match = "same audio .*: Yv2_0_10.wav in 'test', Yw1_0_10.wav in 'weak': what is trained on"
    refused([given], tmp_path / "o", match)
    noise(weak / "Yw1_0_10.wav", 2.0, 8_000)
    noise(weak / "Yv2_0_10.wav", 2.0, 8_000)  # by its name: encoded again
    path = folder / "metadata/train/weak.tsv"
    path.write_text(path.read_text() + "Yv2_0_10.wav\tCat\n")
    given = zipped(folder, tmp_path / "b.zip") if packed else folder
    refused([given], tmp_path / "o", "the clip Yv2_0_10.wav is in 'test' and in 'weak'")


def test_two_recordings_of_one_stem(tmp_path: Path) -> None:
    """They would be written to one file."""
    members = [Member(noise(tmp_path / name, 0.1).name, tmp_path) for name in ("a.wav", "a.flac")]
    rows = [{"label": "x", "start": 0.0, "end": 50.0}]
    clips = {"train": [Wanted(member.stem, member, rows) for member in members]}
    for split in SPLITS[1:]:
        clips[split] = [
            Wanted(split, Member(noise(tmp_path / f"{split}.wav").name, tmp_path), rows)
        ]
    metadata = task_metadata("small", "v1", "full", SPLITS, 0.1, ("segment_1s_er",))
    with Sources([tmp_path]) as sources:
        with pytest.raises(ValueError, match="the clip a.wav is in 'train' and in 'train'"):
            write_hear_folder(tmp_path / "o", metadata, ["x"], clips, sources, lambda *n: None)
    assert not (tmp_path / "o").exists()


def test_equal_files_in_folders_and_archives(tmp_path: Path) -> None:
    size = 200_000
    texts = {"a": bytes(size), "b": bytes(size), "c": bytes(size - 1), "d": b"x" + bytes(size - 1)}
    texts["e"] = bytes(size - 1) + b"x"  # equal as far as what is looked at first
    for place in ("in", "packed"):
        (tmp_path / place).mkdir()
        for name, data in texts.items():
            (tmp_path / place / f"{place}_{name}").write_bytes(data)
    archive = zipped(tmp_path / "packed", tmp_path / "x.zip")
    with Sources([tmp_path / "in", archive]) as sources:
        found = sources.same_bytes(sources.members)
    assert sorted(sorted(member.file for member in group) for group in found) == [
        ["in_a", "in_b", "packed_a", "packed_b"],
        *(["in_" + name, "packed_" + name] for name in "cde"),
    ]


def test_a_damaged_member_of_an_archive_is_named(tmp_path: Path) -> None:
    text = np.random.default_rng(0).integers(0, 9, 20_000, np.uint8).tobytes()
    for name in ("a", "b"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(text)
    path = zipped(tmp_path / "in", tmp_path / "x.zip")
    content = bytearray(path.read_bytes())
    content[2_000:2_100] = b"\xff" * 100
    path.write_bytes(content)
    with Sources([path]) as sources:
        with pytest.raises(ValueError, match="x.zip: a: "):
            sources.read_bytes(sources.members[0])
        with pytest.raises(ValueError, match="x.zip: a: "):
            sources.same_bytes(sources.members)
