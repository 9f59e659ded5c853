"""AudioSet Strong's evaluation set: tables, recordings, what is missing."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from downstream.tasks.audioset_strong import (
    AUDIOSET_STRONG,
    N_PUBLISHED,
    names_of_mids,
    open_audioset_strong,
    read_durations,
    read_strong_set,
    read_strong_table,
    scored_labels,
)
from downstream.tasks.checks import TaskWarning
from hear_pretrainedsed.registry import read_labels

HEADING = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
SPEECH, DOG = "/m/09x0r", "/m/0bt9lr"
ROWS = (
    f"abcdefghij0_30000\t0.5\t2.0\t{SPEECH}\n"
    f"abcdefghij0_30000\t1.5\t3.0\t{SPEECH}\n"
    f"abcdefghij0_30000\t3.0\t4.0\t{SPEECH}\n"
    f"abcdefghij0_30000\t2.0\t2.5\t{DOG}\n"
    f"-_bcdefghi1_0\t0.0\t9.0\t{SPEECH}\n"
    f"abcdefghij2_10000\t0.0\t9.0\t{SPEECH}\n"
)


def corpus(
    folder: Path, recordings: list[str], rows: str = ROWS, place: str = "audio/eval"
) -> Path:
    (folder / place).mkdir(parents=True)
    (folder / "audioset_eval_strong.tsv").write_text(HEADING + rows, "utf-8")
    for name in recordings:
        soundfile.write(folder / place / name, np.zeros(16_000), 16_000)
    return folder


def only_in(lists: str, other: str) -> str:
    """A mid of a class that only one of the lists has."""
    ours, theirs = read_labels(lists), set(read_labels(other))
    name = next(name for name in ours if name not in theirs)
    return next(mid for mid, one in names_of_mids().items() if one == name)


def test_the_lists() -> None:
    labels = scored_labels()
    assert len(labels) == 407
    assert list(labels) == [x for x in read_labels("audioset_strong_train") if x in set(labels)]
    names = names_of_mids()
    both = {*read_labels("audioset_strong_train"), *read_labels("audioset_strong_eval")}
    assert len(names) == 456 and set(names.values()) == both
    assert (names[SPEECH], names[DOG]) == ("Speech", "Dog")


def test_the_mids_are_the_reference_datas(shared: Path) -> None:
    meta = shared / "data" / "meta"
    with (meta / "audioset_strong_class_labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert names_of_mids() == {row["mid"]: row["display_name"] for row in rows}
    common = (meta / "audioset_strong_common_407.txt").read_text().split()
    assert {names_of_mids()[mid] for mid in common} == set(scored_labels())


def test_strong_mini(shared: Path) -> None:
    found = read_strong_set(shared / "data" / "strong_mini-v1")
    assert len(found.clips) == 70
    assert (found.missing, found.empty, found.unlisted) == ((), (), ())
    assert sum(len(clip.events) for clip in found.clips) == 257
    assert len({event[2] for clip in found.clips for event in clip.events}) == 47
    assert found.clips[0].events == ((5.263, 10.0, "Aircraft"),)
    assert {clip.duration_s for clip in found.clips} == {10.0}
    assert found.count(len(found.clips)) == "70 of 16 996"
    assert N_PUBLISHED == 16_996


def test_events_are_merged_and_missing_and_unlisted_recordings_named(tmp_path: Path) -> None:
    names = ["Yabcdefghij0.wav", "-_bcdefghi1_0.flac", "somethingelse.wav", "Yabcdefghij0.txt"]
    corpus(tmp_path, names[:3])
    (tmp_path / "audio" / "eval" / names[3]).touch()
    found = read_strong_set(tmp_path)
    assert [clip.file for clip in found.clips] == ["abcdefghij0_30000", "-_bcdefghi1_0"]
    assert found.clips[0].events == ((0.5, 4.0, "Speech"), (2.0, 2.5, "Dog"))
    assert [clip.path.name for clip in found.clips] == names[:2]
    assert found.clips[0].duration_s == 1.0
    assert found.missing == ("abcdefghij2_10000",)
    assert found.unlisted == ("somethingelse.wav",)


@pytest.mark.parametrize("place", ["audio/eval", "audio/eval/parts/0", "eval", "audio", "here"])
@pytest.mark.parametrize(
    "name", ["abcdefghij0_30000", "Yabcdefghij0_30000", "abcdefghij0", "Yabcdefghij0"]
)
def test_where_recordings_lie_and_how_they_are_named(tmp_path: Path, place: str, name: str) -> None:
    corpus(tmp_path, [f"{name}.wav"], place=place)
    found = read_strong_set(tmp_path)
    assert [clip.path for clip in found.clips] == [tmp_path / place / f"{name}.wav"]


def test_training_recordings_beside_those_of_evaluation_are_not_looked_at(tmp_path: Path) -> None:
    corpus(tmp_path, ["abcdefghij0.wav"])
    (tmp_path / "audio" / "train").mkdir()
    (tmp_path / "audio" / "train" / "abcdefghij2.wav").touch()
    found = read_strong_set(tmp_path)
    assert (len(found.clips), found.unlisted) == (1, ())


def test_classes_of_one_list_only_and_clips_left_without_events_are_dropped(
    tmp_path: Path,
) -> None:
    rows = ROWS
    for i, lists in enumerate([("train", "eval"), ("eval", "train")]):
        mid = only_in(*(f"audioset_strong_{name}" for name in lists))
        rows += f"only{i}_0\t0.0\t1.0\t{mid}\nabcdefghij0_30000\t8.0\t9.0\t{mid}\n"
    rows += "silent_0\t\t\t\n"
    corpus(tmp_path, ["abcdefghij0.wav", "only0.wav", "silent.wav"], rows)
    found = read_strong_set(tmp_path)
    assert [clip.file for clip in found.clips] == ["abcdefghij0_30000"]
    assert {event[2] for event in found.clips[0].events} == {"Speech", "Dog"}
    assert found.empty == ("only0_0", "only1_0", "silent_0")
    assert found.missing == ("-_bcdefghi1_0", "abcdefghij2_10000")
    assert found.unlisted == ()


@pytest.mark.parametrize("name", ["abcdefghij0_30000.ogg", "Yabcdefghij0", "abcdefghij0.wav"])
def test_durations_of_the_table_come_first(tmp_path: Path, name: str) -> None:
    corpus(tmp_path, ["abcdefghij0.wav", "-_bcdefghi1.wav"])
    (tmp_path / "eval_durations.csv").write_text(f"filename,duration\n{name},9.5\n")
    found = read_strong_set(tmp_path)
    assert [clip.duration_s for clip in found.clips] == [9.5, 1.0]


def test_published_durations(shared: Path, tmp_path: Path) -> None:
    import gzip

    text = gzip.open(shared / "data" / "meta" / "audioset_eval_durations.csv.gz").read()
    (tmp_path / "audioset_eval_durations.csv").write_bytes(text)
    found = read_durations(tmp_path)
    assert len(found) == 16_935 and found["YYd10enP9ykM"] == 10.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x_0\t0\t1\t/m/09x0\n", r"line 2: unknown mid '/m/09x0'; did you mean '/m/09x0r'"),
        ("x_0\t0\t1\tDog\n", "'Dog' is a name; the label is a mid, here '/m/0bt9lr'"),
        (f"x_0\t2\t1\t{DOG}\n", "line 2: times are finite with 0 <= start <= end"),
        (f"x_0\tnan\t1\t{DOG}\n", "times are finite"),
        (f"x_0\t\t1\t{DOG}\n", "times are finite"),
        ("x_0\t0\t1\t\n", "line 2: times without a label, got {.*'x_0'"),
        (f"x_0\t-1\t1\t{DOG}\n", "times are finite"),
        (f"x_0\t0\tinf\t{DOG}\n", "times are finite"),
        ("", "no events in it"),
    ],
)
def test_bad_tables(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "table.tsv"
    path.write_text(HEADING + row)
    with pytest.raises(ValueError, match=message) as caught:
        read_strong_table(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wanted one file \*eval_strong.tsv, there are: none"):
        read_strong_set(tmp_path)
    corpus(tmp_path, [])
    with pytest.raises(ValueError, match="no recordings in audio/eval, eval, audio"):
        read_strong_set(tmp_path)
    audio = tmp_path / "audio" / "eval"
    soundfile.write(audio / "other.wav", np.zeros(9), 16_000)
    with pytest.raises(ValueError, match="none of 3 clips has a recording: abcdefghij0_30000"):
        read_strong_set(tmp_path)
    soundfile.write(audio / "other.flac", np.zeros(9), 16_000)
    with pytest.raises(ValueError, match="two recordings of one name: .*flac and .*wav"):
        read_strong_set(tmp_path)
    (tmp_path / "audioset_eval_strong.tsv").write_text("segment_id\tlabel\nx\ty\n")
    with pytest.raises(ValueError, match="no column 'start_time_seconds' in"):
        read_strong_set(tmp_path)
    (tmp_path / "a_eval_strong.tsv").touch()
    with pytest.raises(ValueError, match="a_eval_strong.tsv, audioset_eval_strong.tsv"):
        read_strong_set(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename,duration\na,1,2\n", "wanted two columns, filename and duration"),
        ("filename,duration\na,long\n", "wanted two columns, filename and duration"),
        ("filename,duration\na,0\n", "the duration of a is 0.0 s"),
    ],
)
def test_bad_durations(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "eval_durations.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_durations(tmp_path)


@pytest.mark.parametrize("table", ["audioset_eval_strong.tsv", "eval_durations.csv"])
def test_tables_in_other_encodings(tmp_path: Path, table: str) -> None:
    corpus(tmp_path, ["abcdefghij0.wav"])
    (tmp_path / "eval_durations.csv").write_text("filename,duration\n")
    path = tmp_path / table
    path.write_bytes(path.read_bytes() + b"\xe9\n")
    with pytest.raises(ValueError, match=rf"{table}: line \d is in another encoding"):
        read_strong_set(tmp_path)


def test_as_a_task(tmp_path: Path) -> None:
    corpus(tmp_path, ["abcdefghij0.wav", "-_bcdefghi1.wav", "more.wav"])
    with pytest.warns(TaskWarning) as told:
        task = open_audioset_strong(tmp_path, AUDIOSET_STRONG)
    assert [str(one.message) for one in told] == [
        "1 of 3 clips have no recording: abcdefghij2_10000",
        "1 recordings are not listed: more.wav",
        "3 events reach beyond their clip: abcdefghij0_30000 Speech 0.5 to 4 s (clip: 1 s), "
        "abcdefghij0_30000 Dog 2 to 2.5 s (clip: 1 s), -_bcdefghi1_0 Speech 0 to 9 s (clip: 1 s)",
    ]
    assert [clip.file for clip in task.clips("eval")] == ["abcdefghij0_30000", "-_bcdefghi1_0"]
    assert task.rotations[0].train == task.rotations[0].valid == ()
    assert len(task.labels) == 407
    with pytest.raises(ValueError, match="1 of 3 clips have no recording"):
        open_audioset_strong(tmp_path, AUDIOSET_STRONG, strict=True)
