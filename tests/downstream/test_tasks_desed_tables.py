"""DESED's tables: what each of them has to have, and what is lost without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from downstream.build_task import build
from downstream.tasks import open_task
from downstream.tasks.checks import TaskWarning
from tests.downstream.task_folders import noise
from tests.downstream.test_tasks_desed import PARTS, raw_desed


@pytest.mark.parametrize(
    ("table", "heading", "match"),
    [
        (
            "train/audioset_strong.tsv",
            "filename\tonset\toffset\tevent_lable",
            "audioset_strong.tsv: unknown column 'event_label'; did you mean 'event_lable'",
        ),
        (
            "train/audioset_strong.tsv",
            "filename\tevent_labels",
            r"audioset_strong.tsv: unknown column 'onset' \(one of: filename, event_labels\)",
        ),
        ("validation/validation.tsv", "filename", "unknown column 'onset'"),
        ("train/weak.tsv", "filename\tonset\toffset\tevent_label", "unknown column 'event_labels'"),
        ("train/weak.tsv", "filename", "weak.tsv: unknown column 'event_labels'"),
        ("train/unlabel_in_domain.tsv", "file", "unknown column 'filename'; did you mean 'file'"),
    ],
)
def test_tables_without_their_columns(tmp_path: Path, table: str, heading: str, match: str) -> None:
    """Clips without events, or without labels, would be wrong: nothing sounds in them."""
    folder = raw_desed(tmp_path / "dataset")
    path = folder / "metadata" / table
    path.write_text("\n".join([heading, *path.read_text().splitlines()[1:], ""]))
    with pytest.raises(ValueError, match=match):
        open_task(folder)
    with pytest.raises(ValueError, match=match):
        build("desed", [folder], tmp_path / "o")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_weak_labels_in_several_rows_are_all_kept(tmp_path: Path) -> None:
    folder = raw_desed(tmp_path / "dataset")
    path = folder / "metadata" / "train" / "weak.tsv"
    path.write_text(path.read_text() + "Yw1_0_10.wav\tSpeech,Dog\n")
    labels = {clip.file: clip.labels for clip in open_task(folder).extra["weak"]}
    assert labels["Yw1_0_10.wav"] == ("Cat", "Dog", "Speech")


def test_extra_tables_of_a_built_folder_have_their_columns(tmp_path: Path) -> None:
    folder = build("desed", [raw_desed(tmp_path / "dataset")], tmp_path / "o")
    path = folder / "metadata" / "weak.tsv"
    path.write_text(path.read_text().replace("event_labels", "event_label"))
    with pytest.raises(ValueError, match="unknown column 'event_labels'; did you mean 'event_la"):
        open_task(folder)


def test_extra_tables_that_cannot_be_read(tmp_path: Path) -> None:
    folder = build("desed", [raw_desed(tmp_path / "dataset")], tmp_path / "o")
    path = folder / "metadata" / "weak.tsv"
    path.write_bytes(path.read_bytes() + b"\xe9\n")
    with pytest.raises(ValueError, match="weak.tsv: line 5 is in another encoding; save it as UTF"):
        open_task(folder)
    path = folder / "task_metadata.json"
    metadata = json.loads(path.read_text())
    metadata["metadata_tsv"]["weak"] = ["metadata/weak.tsv"]
    path.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="metadata_tsv is .*; wanted {'weak': a table's path"):
        open_task(folder)


@pytest.mark.parametrize("part", ["strong", "weak", "validation"])
def test_recordings_that_are_not_listed(tmp_path: Path, part: str) -> None:
    folder = raw_desed(tmp_path / "dataset")
    table, audio, *_ = PARTS[part]
    (folder / "audio" / audio / "0.jams").write_text("{}")  # as beside synthetic soundscapes
    assert open_task(folder, strict=True).name == "desed"
    noise(folder / "audio" / audio / "more.wav")
    told = rf"{table}: 1 audio files in audio/{audio} are not listed: more.wav"
    with pytest.warns(TaskWarning, match=told):
        open_task(folder)
    with pytest.raises(ValueError, match=f"{told} .refused because of strict"):
        open_task(folder, strict=True)
