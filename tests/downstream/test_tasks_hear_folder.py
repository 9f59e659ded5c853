"""Tasks in HEAR's layout: metadata that cannot be used, other encodings, clips that leak."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from downstream.tasks import open_task
from tests.downstream.task_folders import BOTH, hear_task, noise, three_splits
from tests.downstream.test_tasks import bad


@pytest.mark.parametrize("file", ["task_metadata.json", "labelvocabulary.csv", "test.json"])
def test_other_encodings(tmp_path: Path, file: str) -> None:
    folder = hear_task(tmp_path / "t", three_splits())
    path = folder / file
    text = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + text)  # a byte-order mark is none
    assert open_task(folder, strict=True).labels == ("a", "b")
    path.write_bytes(text + b"\xe9")
    bad(folder, rf"{file}: line \d is in another encoding; save it as UTF-8")


POSTPROCESSING = {"median_filter_ms": [250], "min_duration": [125, 250]}


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"task_name": 3}, "task_name is 3; wanted a name"),
        ({"splits": "train"}, "splits is 'train'; wanted a list of names"),
        ({"splits": ["train", "valid", "test", 3]}, "splits is .*; wanted a list of names"),
        ({"splits": ["train", "valid", "eval"]}, "splits are train, valid, eval; .* valid, test"),
        ({"splits": ["train", "test"]}, "splits are train, test; split_mode trainvaltest needs"),
        ({"splits": ["train", "valid", "test", "test"]}, "splits has 'test' twice"),
        ({"evaluation": []}, r"evaluation is \[\]; wanted a list of names"),
        ({"evaluation": {"segment_1s_er": 1}}, "evaluation is .*; wanted a list of names"),
        ({"evaluation": ["segment_1s_re"]}, "unknown metric in evaluation 'segment_1s_re'; did"),
        ({"evaluation_params": []}, r"evaluation_params is \[\]; wanted {name"),
        ({"evaluation_params": {"task_specific_param_grid": {"lr": 1}}}, "grid is .*; wanted {na"),
        ({"evaluation_params": {"event_postprocessing_grid": [1]}}, r"is \[1\]; wanted {name"),
    ],
)
def test_metadata_that_cannot_be_used(tmp_path: Path, metadata: dict, match: str) -> None:
    path = hear_task(tmp_path / "t", three_splits()) / "task_metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | metadata))
    bad(path.parent, f"task_metadata.json: .*{match}")


@pytest.mark.parametrize(
    ("grid", "match"),
    [
        (
            {**POSTPROCESSING, "min_durtion": [1]},
            "entry 'min_durtion'; did you mean 'min_duration'",
        ),
        ({"median_filter_ms": [250]}, "event_postprocessing_grid has no 'min_duration'"),
        ({**POSTPROCESSING, "min_duration": []}, r"grid is .*\[\]}; wanted {name: \[value"),
        ({**POSTPROCESSING, "min_duration": ["1"]}, "min_duration is '1'; wanted milliseconds"),
        ({**POSTPROCESSING, "median_filter_ms": [-1]}, "median_filter_ms is -1; wanted millisec"),
        ({**POSTPROCESSING, "median_filter_ms": [math.nan]}, "median_filter_ms is nan; wanted"),
    ],
)
def test_postprocessing_that_cannot_be_used(tmp_path: Path, grid: dict, match: str) -> None:
    params = {"evaluation_params": {"event_postprocessing_grid": POSTPROCESSING}}
    task = open_task(hear_task(tmp_path / "t", three_splits(), **params))
    assert (task.facts.median_s, task.facts.min_duration_s) == (0.25, 0.125)
    params = {"evaluation_params": {"event_postprocessing_grid": grid}}
    bad(hear_task(tmp_path / "u", three_splits(), **params), f"task_metadata.json: .*{match}")


def test_one_of_each_split_is_told_first(tmp_path: Path) -> None:
    splits = three_splits() | {"train": {f"{i}.wav": BOTH for i in range(4)}}
    folder = hear_task(tmp_path / "t", splits)
    for copy in ("train/1.wav", "train/2.wav", "train/3.wav", "test/z.wav"):
        shutil.copy(folder / "16000/train/0.wav", folder / "16000" / copy)
    bad(folder, "split: 0.wav in 'train', z.wav in 'test', 1.wav in 'train' and 2 more: what is")


@pytest.mark.parametrize("kind", ["weak", "unlabeled"])
@pytest.mark.parametrize(("file", "split"), [("y.wav", "valid"), ("z.wav", "test")])
def test_extra_clips_by_the_name_of_one_held_out(
    tmp_path: Path, kind: str, file: str, split: str
) -> None:
    """A recording that was encoded again has other bytes."""
    folder = hear_task(tmp_path / "t", three_splits(), metadata_tsv={kind: "extra.tsv"})
    noise(folder / "16000" / kind / "x.wav")
    (folder / "extra.tsv").write_text("filename\tevent_labels\nx.wav\ta\n")
    assert [clip.file for clip in open_task(folder, strict=True).extra[kind]] == ["x.wav"]
    noise(folder / "16000" / kind / file)
    (folder / "extra.tsv").write_text(f"filename\tevent_labels\nx.wav\ta\n{file}\ta\n")
    bad(folder, f"the clip {file} is in '{split}' and in '{kind}': what is trained on would be")
