"""Tasks in HEAR's layout: what is read, what is refused, what is warned of."""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from downstream.tasks import TASKS, Task, audio_hashes, open_task
from downstream.tasks.checks import TaskWarning, same_bytes
from tests.downstream.task_folders import BOTH, hear_task, noise, three_splits


def test_a_folder_is_read_as_it_is(tmp_path: Path) -> None:
    folder = hear_task(tmp_path / "t", three_splits(test=((0, 333.3, "b"), (500, 1000, "a"))))
    task = open_task(folder, strict=False)
    assert (task.name, task.version, task.labels) == ("small", "v1", ("a", "b"))
    assert task.metrics == ("event_onset_200ms_fms", "segment_1s_er")
    assert [(r.train, r.valid, r.test) for r in task.rotations] == [
        (("train",), ("valid",), ("test",))
    ]
    (clip,) = task.clips("test")
    assert clip.events == ((0.0, 0.3333, "b"), (0.5, 1.0, "a"))
    assert clip.in_ms() == ((0.0, 333.3, "b"), (500.0, 1000.0, "a"))
    assert (clip.file, clip.duration_s, clip.unit) == ("z.wav", 1.0, "z.wav")
    assert clip.path.is_file()
    assert [c.file for c in task.clips(("train", "test"))] == ["x.wav", "z.wav"]


def test_folds_rotate_as_in_heareval(tmp_path: Path) -> None:
    folds = {f"fold{i:02d}": {f"{i}.wav": BOTH} for i in range(4)}
    task = open_task(hear_task(tmp_path / "t", folds))
    assert [r.test for r in task.rotations] == [(fold,) for fold in folds]
    assert [r.valid for r in task.rotations] == [("fold01",), ("fold02",), ("fold03",), ("fold00",)]
    assert [r.train for r in task.rotations] == [
        ("fold02", "fold03"),
        ("fold00", "fold03"),
        ("fold00", "fold01"),
        ("fold01", "fold02"),
    ]


def test_reference_tasks_open(shared: Path) -> None:
    tasks = shared / "data" / "tasks"
    office = open_task(tasks / "office_like-v1-small", strict=True)
    assert {split: len(clips) for split, clips in office.splits.items()} == {
        "train": 12,
        "valid": 4,
        "test": 6,
    }
    assert sum(len(clip.events) for clip in office.clips("test")) == 220
    domestic = open_task(tasks / "domestic_like-v1-small", strict=True)
    assert domestic.name == domestic.facts.name == "domestic_like"
    assert domestic.metrics == (
        *("psds1", "psds2", "intersection_f1", "collar_f1"),
        *("event_onset_200ms_fms", "segment_1s_er"),
    )
    weak, unlabeled = domestic.extra["weak"], domestic.extra["unlabeled"]
    assert (len(weak), len(unlabeled)) == (120, 150)
    assert weak[0].labels == ("Alarm_bell_ringing", "Running_water", "Speech")
    assert {clip.labels for clip in unlabeled} == {None}
    assert {clip.duration_s for clip in (*weak, *unlabeled)} == {10.0}


def test_a_task_warns_once(shared: Path) -> None:
    folder = shared / "data" / "tasks" / "piano_like-v1-small"
    with pytest.warns(TaskWarning) as caught:
        task = open_task(folder)
    (warning,) = caught
    assert "in train of 5 of 5 rotations: 21, 22, 23 and" in str(warning.message)
    assert (task.facts.median_s, task.facts.min_duration_s) == (0.15, 0.05)
    with pytest.raises(ValueError, match="piano_like: classes without .* because of strict"):
        open_task(folder, strict=True)


def test_the_digest_tells_tasks_apart(tmp_path: Path) -> None:
    first = hear_task(tmp_path / "0", three_splits())
    same = open_task(first).digest()

    def digest(name: str, **more: object) -> str:
        """Of a task with other labels and the same audio."""
        folder = hear_task(tmp_path / name, **more)
        shutil.copytree(first / "16000", folder / "16000", dirs_exist_ok=True)
        return open_task(folder).digest()

    assert digest("1", splits=three_splits()) == same
    moved = three_splits(test=((100, 400.5, "a"), (300, 900, "b")))
    assert digest("2", splits=moved) != same
    assert digest("3", splits=three_splits(), labels=("b", "a")) != same


@pytest.mark.parametrize(
    "change",
    [
        {"evaluation": ["segment_1s_er", "event_onset_200ms_fms"]},
        {"evaluation_params": {"task_specific_param_grid": {"hidden_dim": [8]}}},
        {
            "evaluation_params": {
                "event_postprocessing_grid": {"median_filter_ms": [120], "min_duration": [50, 90]}
            }
        },
        {"use_scoring_for_early_stopping": False},
    ],
)
def test_the_digest_tells_apart_what_selects_and_decodes(tmp_path: Path, change: dict) -> None:
    folder = hear_task(tmp_path / "t", three_splits())
    path = folder / "task_metadata.json"
    first, metadata = open_task(folder), json.loads(path.read_text())
    path.write_text(json.dumps(metadata | change))
    other = open_task(folder)
    assert other.labels_digest() == first.labels_digest() and other.version == first.version
    assert other.digest() != first.digest()
    path.write_text(json.dumps(metadata | {"description": "other words"}))
    assert open_task(folder).digest() == first.digest()


def test_the_digest_tells_recordings_apart(tmp_path: Path) -> None:
    task = open_task(hear_task(tmp_path / "t", three_splits()))
    path = task.clips("test")[0].path
    content, stat, first = path.read_bytes(), path.stat(), task.digest()
    assert open_task(task.folder).digest() == first
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1, content[-1]]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = task.digest()
    assert changed != first and task.labels_digest() == open_task(task.folder).labels_digest()
    path.write_bytes(content)
    assert task.digest() == first
    path.unlink()
    assert task.digest() not in (first, changed)


def test_recordings_are_read_once_for_the_digest(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = open_task(hear_task(tmp_path / "t", three_splits()))
    first = task.digest()
    assert not list(own_cache.rglob("*.json"))  # too young for their times to tell a change
    monkeypatch.setattr(audio_hashes, "FRESH_NS", 0)
    assert task.digest() == first
    (record,) = own_cache.glob("audio/*")
    with monkeypatch.context() as patch:
        patch.setattr(audio_hashes, "_sha256", lambda file: pytest.fail(f"read again: {file}"))
        assert task.digest() == first
    path = task.clips("test")[0].path
    stat = path.stat()
    path.write_bytes(path.read_bytes()[:-2] + b"xy")  # as long as before, and with its time
    while (
        path.stat().st_ctime_ns == stat.st_ctime_ns or path.stat().st_mtime_ns != stat.st_mtime_ns
    ):
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a clock may tick slowly
    changed = task.digest()
    assert changed != first
    for text in ("{", "[]", '{"a": [1]}', "null"):
        record.write_text(text)
        assert task.digest() == changed and len(json.loads(record.read_text())) == 3
    shutil.rmtree(own_cache)
    own_cache.write_text("no folder")
    assert task.digest() == changed


# ---- the registry


def test_facts_are_complete() -> None:
    from downstream import scoring

    for name, facts in TASKS.items():
        assert facts.name == name
        assert facts.version and facts.licence and facts.unit and callable(facts.open)
        assert facts.citation or name == "own"
        assert facts.metrics and set(facts.metrics) <= set(scoring.METRICS)


def test_a_task_is_named_or_in_a_known_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown task 'mastro_5hr'; did you mean 'maestro_5hr'"):
        open_task("mastro_5hr")
    with pytest.raises(ValueError, match="maestro_5hr: give the folder of its data"):
        open_task("maestro_5hr")
    with pytest.raises(ValueError, match="maestro_5hr: .*none is no folder"):
        open_task("maestro_5hr", tmp_path / "none")
    with pytest.raises(ValueError, match="no audio in .*flac, .*nor the layout of a task"):
        open_task(tmp_path)
    with pytest.raises(ValueError, match="there is no folder .*/none$"):
        open_task(str(tmp_path / "none"))
    (tmp_path / "a").write_text("")
    with pytest.raises(ValueError, match="a task is a folder, and .*/a is a file"):
        open_task(str(tmp_path / "a"))
    folder = hear_task(tmp_path / "t", three_splits())
    with pytest.raises(ValueError, match="'stric'; did you mean 'strict'"):
        open_task(folder, stric=True)
    for name in ("maestro_5hr", "dcase2016_task2"):
        with pytest.raises(ValueError, match=f"holds the task 'small', not {name}"):
            open_task(name, folder)


# ---- bad input


def bad(folder: Path, match: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TaskWarning)
        with pytest.raises(ValueError, match=match):
            open_task(folder)


def odd(folder: Path, match: str) -> Task:
    """Warned of, and refused when strict."""
    with pytest.warns(TaskWarning, match=match):
        task = open_task(folder)
    with pytest.raises(ValueError, match=match):
        open_task(folder, strict=True)
    return task


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([(100, 200, "c")], r"small: 1 events .* outside the vocabulary: z.wav c.*one of: a, b"),
        ([(-1, 200, "a")], r"not negative.*z.wav a -0.001 to 0.2 s"),
        ([(math.nan, 200, "a")], r"finite.*z.wav a nan to 0.2 s"),
        ([(100, math.nan, "a")], "finite.*0.1 to nan"),
        ([(100, math.inf, "a")], "finite.*0.1 to inf"),
        ([(math.inf, math.inf, "a")], "finite.*inf to inf"),
        ([(300, 200, "a")], "an onset is not after its offset: z.wav a 0.3 to 0.2"),
        ([(1000, 1001, "a")], r"begin after their clip's end: z.wav a 1 to 1.001 s \(clip: 1 s\)"),
        ([(-1, 5, "a")] * 5, r"z.wav a .* and 2 more"),
        ([("x", 5, "a")], "z.wav: an event has label, start and end"),
        ([], "no event in any clip of the split 'test'"),
    ],
)
def test_events_that_cannot_be(tmp_path: Path, rows: list, match: str) -> None:
    bad(hear_task(tmp_path / "t", three_splits(test=rows)), match)


def test_events_beyond_the_clip(tmp_path: Path) -> None:
    rows = ((100, 1050, "a"), (300, 1051, "b"))  # up to 50 ms are rounding
    folder = hear_task(tmp_path / "t", three_splits(test=rows))
    task = odd(folder, r"small: 1 events reach beyond their clip: z.wav b 0.3 to 1.051 s")
    assert task.clips("test")[0].events[1][1] == 1.051


def test_missing_and_extra_audio(tmp_path: Path) -> None:
    folder = hear_task(tmp_path / "t", three_splits())
    noise(folder / "16000" / "valid" / "more.wav")
    (folder / "16000" / "valid" / ".DS_Store").write_text("x")
    odd(folder, "valid: 1 audio files are not listed: more.wav")
    (folder / "16000" / "test" / "z.wav").unlink()
    bad(folder, "test: 1 of 1 clips have no audio in .*: z.wav")
    shutil.rmtree(folder / "16000" / "test")
    bad(folder, "no folder .*test: HEAR tasks hold their audio at 16 kHz there")


def test_wrong_audio(tmp_path: Path) -> None:
    bad(hear_task(tmp_path / "t", three_splits(), rate=44_100), "x.wav: 44100 Hz, wanted 16000 Hz")
    folder = hear_task(tmp_path / "u", three_splits())
    (folder / "16000" / "valid" / "y.wav").write_bytes(b"RIFF")
    bad(folder, "y.wav: no audio that libsndfile reads")


def test_empty_splits(tmp_path: Path) -> None:
    splits = three_splits() | {"valid": {}}
    bad(hear_task(tmp_path / "t", splits), "small: the split 'valid' is empty")


def test_a_class_without_events(tmp_path: Path) -> None:
    folder = hear_task(tmp_path / "t", three_splits(train=((0, 1, "b"),)), ("a", "b"))
    odd(folder, "small: classes without an event in train: a$|because of strict")
    folds = {f"fold{i:02d}": {f"{i}.wav": BOTH if i else ((0, 1, "b"),)} for i in range(3)}
    folder = hear_task(tmp_path / "u", folds)
    odd(folder, "in valid of 1 of 3 rotations: a; in test of 1 of 3 rotations: a")


def test_one_name_in_two_splits(tmp_path: Path) -> None:
    splits = three_splits() | {"test": {"x.wav": BOTH}}
    bad(hear_task(tmp_path / "t", splits), "x.wav is in 'train' and in 'test'.*tested on")


def copy_to(split: str) -> Callable[[Path], None]:
    def copy(folder: Path) -> None:
        audio = folder / "16000"
        (target,) = (audio / split).iterdir()
        shutil.copy(audio / "train" / "x.wav", target)

    return copy


@pytest.mark.parametrize("split", ["valid", "test"])
def test_the_same_audio_in_two_splits(tmp_path: Path, split: str) -> None:
    folder = hear_task(tmp_path / "t", three_splits())
    copy_to(split)(folder)
    bad(folder, f"same audio .*: x.wav in 'train', [yz].wav in '{split}': what is trained on would")


def test_the_same_audio_in_two_folds(tmp_path: Path) -> None:
    folds = {f"fold{i:02d}": {f"{i}.wav": BOTH} for i in range(4)}
    folder = hear_task(tmp_path / "t", folds)
    shutil.copy(folder / "16000/fold02/2.wav", folder / "16000/fold03/3.wav")
    bad(folder, "2.wav in 'fold02', 3.wav in 'fold03'")


def test_extra_clips_may_be_in_train_alone(tmp_path: Path) -> None:
    tables = {"weak": "metadata/weak.tsv"}
    folder = hear_task(tmp_path / "t", three_splits(), metadata_tsv=tables)
    (folder / "metadata").mkdir()
    (folder / "metadata" / "weak.tsv").write_text("filename\tevent_labels\nw.wav\ta,b\n")
    (folder / "16000" / "weak").mkdir()
    shutil.copy(folder / "16000/train/x.wav", folder / "16000/weak/w.wav")
    assert open_task(folder, strict=True).extra["weak"][0].labels == ("a", "b")
    shutil.copy(folder / "16000/test/z.wav", folder / "16000/weak/w.wav")
    bad(folder, "z.wav in 'test', w.wav in 'weak'")
    noise(folder / "16000/weak/w.wav", rate=8_000)
    bad(folder, "w.wav: 8000 Hz, wanted 16000 Hz")
    noise(folder / "16000/weak/w.wav")
    (folder / "metadata" / "weak.tsv").write_text("filename\tevent_labels\nw.wav\ta,c\n")
    bad(folder, "w.wav: unknown label 'c'")


def test_equal_files_are_found_whatever_their_size(tmp_path: Path) -> None:
    size = 200_000
    texts = {"a": bytes(size), "b": bytes(size), "c": bytes(size - 1), "d": b"", "e": b""}
    texts["f"] = bytes(30_000) + b"x" + bytes(size - 30_001)  # between the blocks that are sampled
    for name, data in texts.items():
        (tmp_path / name).write_bytes(data)
    found = same_bytes(tmp_path / name for name in texts)
    assert sorted(sorted(p.name for p in group) for group in found) == [["a", "b"], ["d", "e"]]


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("task_metadata.json", "{", "task_metadata.json: no JSON"),
        ("task_metadata.json", '{"task_name": "x"}', "no 'version' in it"),
        ("labelvocabulary.csv", "idx,label\n0,a\n2,b\n", r"without a gap, got \[0, 2\]"),
        ("labelvocabulary.csv", "a,b\n", "idx has to count|wanted the columns"),
        ("test.json", "[", "test.json: no JSON"),
        ("labelvocabulary.csv", "idx,label\n0,a\n1,b\n1,c\n", r"got \[0, 1, 1\]"),
        ("labelvocabulary.csv", "idx,label\n0,a\n1,b\n2,a\n", "the label 'a' is in it twice"),
        ("labelvocabulary.csv", "idx,label\n0,a\n1\n", "no label at idx 1"),
        ("test.json", "[]", "test.json: wanted an object, {key: value}, got list"),
        ("test.json", '{"z.wav": 3}', "test.json: z.wav: wanted a list of events, got 3"),
        ("test.json", '{"z.wav": [3]}', "z.wav: an event has label, start and end .ms., got 3"),
        ("test.json", '{"z.wav": [], "y.wav": [], "z.wav": []}', "json: 'z.wav' is a key twice"),
        ("test.json", '{"z.wav": [{"end": 1, "end": 2}]}', "test.json: 'end' is a key twice"),
        ("task_metadata.json", "3", "task_metadata.json: wanted an object, {key: value}, got int"),
    ],
)
def test_damaged_tables(tmp_path: Path, file: str, text: str, match: str) -> None:
    folder = hear_task(tmp_path / "t", three_splits())
    (folder / file).write_text(text)
    bad(folder, match)


def test_other_kinds_of_tasks(tmp_path: Path) -> None:
    for i, (key, value, match) in enumerate(
        [
            ("embedding_type", "scene", "only event tasks"),
            ("split_mode", "other", "split_mode is 'other'; allowed: trainvaltest"),
        ]
    ):
        bad(hear_task(tmp_path / f"{i}", three_splits(), **{key: value}), match)
    folds = {f"fold{i:02d}": {f"{i}.wav": BOTH} for i in range(2)}
    bad(hear_task(tmp_path / "folds", folds), "2 folds: test, valid and train need at least 3")
    folder = hear_task(tmp_path / "none", three_splits())
    for file in ("labelvocabulary.csv", "valid.json"):
        os.rename(folder / file, folder / "gone")
        bad(folder, f"no {file} in it")
        os.rename(folder / "gone", folder / file)
    assert json.loads((folder / "valid.json").read_text())
