"""Recordings and labels of the user's own."""

from __future__ import annotations

import json
import random
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from downstream.tasks import Task, open_task
from downstream.tasks.checks import TaskWarning
from downstream.tasks.own_split import SPLITS, stratified
from hear_pretrainedsed.events import Event, write_audacity, write_tsv
from tests.downstream.task_folders import noise

HEAD = "filename\tonset\toffset\tevent_label"
FILES = [f"{name}.wav" for name in "abcdefghij"]
EVENTS = {file: [(0.1, 0.3, "dog"), (0.2, 0.45, "cat")] for file in FILES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten recordings of half a second, no labels."""
    for file in FILES:
        noise(tmp_path / "mine" / file, 0.5)
    return tmp_path / "mine"


def table(folder: Path, *rows: str, head: str = HEAD, name: str = "labels.tsv") -> Path:
    path = folder / name
    path.write_text("\n".join([head, *rows, ""]))
    return path


def write(folder: Path, form: str, events: dict = EVENTS) -> None:
    """`events` in one of the forms."""
    named = {file: [Event(a, b, label, 1.0) for a, b, label in r] for file, r in events.items()}
    if form == "tsv":
        write_tsv(folder / "labels.tsv", named)
    elif form == "json":
        keys = ("onset_s", "offset_s", "label")
        rows = {f: [dict(zip(keys, e, strict=True)) for e in r] for f, r in events.items()}
        (folder / "labels.json").write_text(json.dumps(rows))
    else:
        for file, rows in named.items():
            write_audacity(folder / Path(file).with_suffix(form), rows)


def events_of(task: Task) -> dict[str, tuple]:
    return {clip.file: clip.events for clip in task.clips(task.splits)}


@pytest.mark.parametrize("form", ["tsv", "json", ".txt", ".labels.txt"])
def test_every_form_gives_one_task(folder: Path, form: str) -> None:
    events = EVENTS | {"a.wav": []}
    write(folder, form, events)
    task = open_task(folder, strict=True)
    assert (task.name, task.facts.name, task.facts.unit) == ("mine", "own", "file")
    assert task.labels == ("cat", "dog")
    assert events_of(task) == {file: tuple(sorted(rows)) for file, rows in events.items()}
    assert {s: len(c) for s, c in task.splits.items()} == {"train": 6, "valid": 2, "test": 2}
    assert task.metrics == ("event_onset_200ms_fms", "segment_1s_er", "psds1", "frame_map")
    assert task.hear["evaluation"] == ["event_onset_200ms_fms", "segment_1s_er"]
    assert {clip.unit for clip in task.clips(task.splits)} == set(FILES)


def test_the_version_is_that_of_the_labels(folder: Path) -> None:
    write(folder, "tsv")
    first = open_task(folder)
    assert open_task(folder).version == first.version
    assert open_task(folder, seed=1).version != first.version
    digest = first.digest()
    noise(folder / "a.wav", 0.5)
    assert first.digest() == digest
    soundfile.write(folder / "a.wav", np.zeros(8_000), 16_000)
    again = open_task(folder)
    assert again.version == first.version and again.digest() != digest
    write(folder, "tsv", EVENTS | {"a.wav": [(0.1, 0.31, "dog")]})
    assert open_task(folder).version != first.version


def test_any_length_rate_format_and_folder(tmp_path: Path) -> None:
    noise(tmp_path / "a.flac", 0.31, 44_100)
    noise(tmp_path / "sub" / "b.ogg", 2.5, 8_000)
    noise(tmp_path / "sub" / "deep" / "c.wav", 1.0, 48_000)
    rows = ["a.flac\t0\t0.3\tx", "sub/b.ogg\t1\t2\tx", "c.wav\t0\t1\tx"]  # c.wav: by its name alone
    table(tmp_path, *rows)
    task = open_task(tmp_path)
    lengths = {clip.file: clip.duration_s for clip in task.clips(task.splits)}
    assert lengths == {
        "a.flac": pytest.approx(0.31),
        "sub/b.ogg": pytest.approx(2.5),
        "sub/deep/c.wav": 1.0,
    }
    assert all(clip.path.is_file() for clip in task.clips(task.splits))


def test_a_column_of_splits(folder: Path) -> None:
    names = dict(zip(FILES, ("train", "valid", "test", *["train"] * 7), strict=True))
    rows = [
        f"{file}\t0.1\t0.2\tx\t{name}\t{'test' if file < 'c' else 'train'}"
        for file, name in names.items()
    ]
    rows[-1] = rows[-1].replace("\t0.1\t0.2\tx", "\t\t\t")  # nothing sounds in it
    head = f"{HEAD}\tsplit\tother"
    table(folder, *rows, head=head)
    task = open_task(folder)
    assert {c.file: s for s, clips in task.splits.items() for c in clips} == names
    assert events_of(task)["j.wav"] == ()
    with pytest.raises(ValueError, match="the split 'valid' is empty"):
        open_task(folder, split_column="other")
    with pytest.raises(ValueError, match="unknown column 'splt'; did you mean 'split'"):
        open_task(folder, split_column="splt")
    table(folder, *rows, "a.wav\t0.3\t0.4\tx\tvalid\t", head=head)
    with pytest.raises(ValueError, match="a.wav is in more than one split: train, valid"):
        open_task(folder)
    table(folder, *(row.replace("valid", "dev") for row in rows), head=head)
    with pytest.raises(ValueError, match=r"b.wav: unknown split 'dev'.*train, valid, test"):
        open_task(folder)


def test_labels_in_several_forms(folder: Path) -> None:
    write(folder, "tsv")
    write(folder, "json", {file: [(0.0, 0.1, "bird")] for file in FILES})
    with pytest.raises(ValueError, match="more than once: labels.json, labels.tsv; name one"):
        open_task(folder)
    assert open_task(folder, labels="labels.json").labels == ("bird",)
    write(folder, ".txt", {file: [(0.0, 0.1, "cow")] for file in FILES})
    assert open_task(folder, labels="audacity").labels == ("cow",)
    with pytest.raises(ValueError, match="labels.csv: no labels there; allowed: a table NAME.tsv"):
        open_task(folder, labels="labels.csv")
    with pytest.raises(ValueError, match="labels.json has no column 'split'"):
        open_task(folder, labels="labels.json", split_column="split")


def test_recordings_without_labels(folder: Path) -> None:
    with pytest.raises(ValueError, match="mine: recordings without labels; allowed: a table"):
        open_task(folder)
    write(folder, ".txt", {file: EVENTS[file] for file in FILES[1:]})
    with pytest.warns(TaskWarning, match="1 recordings have no labels: a.wav"):
        assert len(events_of(open_task(folder))) == 9
    with pytest.raises(ValueError, match="1 recordings have no labels.*because of strict"):
        open_task(folder, strict=True)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ("z.wav\t0\t1\tx", "1 of 2 files have no audio: z.wav"),
        ("a.wav\t0\tone\tx", "labels.tsv, line 3: '0' to 'one' are no times"),
        ("a.wav\t0.1\t\tx", "line 3: '0.1' to '' are no times"),
        ("a.wav\t0.1\t0.2\t ", "line 3: '0.1' to '0.2' has no label"),
        ("a.wav\t\t\tx", "line 3: '' to '' are no times"),
        ("\t0.1\t0.2\tx", "line 3: no filename"),
        ('a.wav\t0.1\t0.2\t"x', "labels.tsv, line .*: unexpected end"),
        ("b.wav\t0.1\tnan\tx", "times are finite.*b.wav x 0.1 to nan"),
        ("b.wav\t-0.1\t0.2\tx", "not negative"),
        ("b.wav\t0.6\t0.7\tx", "begin after their clip's end"),
    ],
)
def test_wrong_rows(folder: Path, row: str, match: str) -> None:
    rest = [f"{file}\t0.1\t0.2\tx" for file in FILES[2:]] if "z.wav" not in row else []
    table(folder, "a.wav\t0.1\t0.2\tx", row, *rest)
    with pytest.raises(ValueError, match=match):
        open_task(folder)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "labels.json: no JSON"),
        ("[]", r"wanted \{file: \[\{label, onset_s, offset_s\}\]\}"),
        ('{"a.wav": [{"label": "x", "start": 1, "end": 2}]}', "a.wav: an event has label, onset_s"),
        ('{"a.wav": [{"label": "x", "onset_s": null, "offset_s": 2}]}', "None to 2 are no times"),
        ('{"a.wav": [{"label": null, "onset_s": 1, "offset_s": 2}]}', "a label is text in quotes"),
        ('{"a.wav": [{"label": " ", "onset_s": 1, "offset_s": 2}]}', "a.wav: 1 to 2 has no label"),
        ('{"a.wav": []}', "labels.json: no event in it"),
    ],
)
def test_wrong_json(folder: Path, text: str, match: str) -> None:
    (folder / "labels.json").write_text(text)
    with pytest.raises(ValueError, match=match):
        open_task(folder)


@pytest.mark.parametrize(
    ("head", "match"),
    [
        (
            "filename\tstart\toffset\tlabel",
            "labels.tsv: no column 'onset'; needed: filename, onset, offset, event_label, "
            "separated by tabs; found: 'filename', 'start', 'offset' and 1 more$",
        ),
        (HEAD.replace("\t", ","), "no column 'filename'.*tabs; found: 'filename,onset,offset,eve"),
        ("", "no column 'filename'; .*found: an empty file"),
    ],
)
def test_a_table_without_its_columns(folder: Path, head: str, match: str) -> None:
    table(folder, *(["a.wav\t0.1\t0.2\tx"] if head else []), head=head)
    with pytest.raises(ValueError, match=match):
        open_task(folder)


@pytest.mark.parametrize("form", ["tsv", "json", ".txt"])
def test_labels_in_another_encoding(folder: Path, form: str) -> None:
    write(folder, form)
    path = folder / ("a.txt" if form == ".txt" else f"labels.{form}")
    text = path.read_text().replace("dog", "Tür")
    path.write_text(text, encoding="utf-8-sig")
    with warnings.catch_warnings(action="ignore"):
        assert "Tür" in open_task(folder).labels
    path.write_text(text, encoding="latin-1")
    line = text[: text.index("Tür")].count("\n") + 1
    with pytest.raises(ValueError, match=rf"{path.name}: line {line} is in another .*as UTF-8$"):
        open_task(folder)
    for encoding, match in (("utf-16", "it is UTF-16; save"), ("utf-16-le", "bytes of zero")):
        path.write_text(text.replace("ü", "u"), encoding=encoding)
        with pytest.raises(ValueError, match=f"{path.name}: {match}"):
            open_task(folder)


@pytest.mark.parametrize("onset", [100, 0.2])
def test_milliseconds(folder: Path, onset: float) -> None:
    rows = [f"{file}\t{onset}\t300\tx" for file in FILES]
    table(folder, *rows)
    match = r"10 of 10 events end far .* seconds, are these milliseconds\? a.wav 300"
    with pytest.raises(ValueError, match=match):
        open_task(folder)
    table(folder, "a.wav\t9\t501\tx", *rows)  # it would not fit as milliseconds either
    with pytest.raises(ValueError, match="events begin after their clip's end: a.wav x 9 to 501 s"):
        open_task(folder)


def test_classes_that_read_alike(folder: Path) -> None:
    rows = [f"{file}\t0.1\t0.3\tdog " for file in FILES]
    table(folder, *rows, *(f"{file}\t0.1\t0.3\t dog" for file in FILES))
    assert open_task(folder, strict=True).labels == ("dog",)
    table(folder, *rows, *(f"{file}\t0.1\t0.3\tDog" for file in FILES))
    with pytest.warns(TaskWarning, match="classes that read alike: 'Dog' and 'dog'$"):
        assert open_task(folder).labels == ("Dog", "dog")
    with pytest.raises(ValueError, match="'Dog' and 'dog' .refused because of strict"):
        open_task(folder, strict=True)


def test_label_tracks_as_audacity_writes_them(folder: Path) -> None:
    write(folder, ".txt")
    (folder / "a.txt").write_text("0,1\t0,2\tdog barks\n\\\t100,0\t200,0\n\n0.3\t0.3\tclick\n")
    with (
        pytest.warns(TaskWarning, match="without an event"),
        pytest.warns(TaskWarning, match="no event of 'click' has a length"),
    ):
        task = open_task(folder)
    assert events_of(task)["a.wav"] == ((0.1, 0.2, "dog barks"), (0.3, 0.3, "click"))
    (folder / "a.txt").write_text("0.1\t0.2\tdog\n0.3\t0.4\t\n")
    with pytest.raises(ValueError, match="a.txt, line 2: wanted onset, offset, label"):
        open_task(folder)
    (folder / "a.txt").write_text("0.1\t0.2\tdog\n")
    (folder / "a.labels.txt").write_text("0.1\t0.2\tdog\n")
    with pytest.raises(ValueError, match="a.wav: two label files: a.txt, a.labels.txt"):
        open_task(folder)
    (folder / "a.labels.txt").unlink()
    noise(folder / "a.flac", 0.5)
    with pytest.raises(ValueError, match="a.txt is beside two recordings: a.flac, a.wav"):
        open_task(folder)


def test_names_that_fit_two_recordings(folder: Path) -> None:
    noise(folder / "x" / "a2.wav", 0.5)
    noise(folder / "y" / "a2.wav", 0.5)
    rows = [f"{file}\t0.1\t0.2\tx" for file in FILES]
    table(folder, *rows, "a2.wav\t0.1\t0.2\tx")
    with pytest.raises(ValueError, match="a2.wav is in two folders; write its path"):
        open_task(folder)
    (folder / "x" / "a2.wav").unlink()
    table(folder, *rows, "a2.wav\t0.1\t0.2\tx", "y/a2.wav\t0.3\t0.4\tx")
    with pytest.raises(ValueError, match="named in two ways: .*a2.wav"):
        open_task(folder)


# ---- the division


def gaps(labels: dict[str, set[str]], split: dict[str, str]) -> list[tuple[str, str]]:
    """Classes in three files or more, and splits that lack them."""
    files = defaultdict(list)
    for file, found in labels.items():
        for label in found:
            files[label].append(split[file])
    return [(x, s) for x, rows in files.items() if len(rows) > 2 for s in SPLITS if s not in rows]


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8), seed=st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_files_of_one_class_each_fill_every_split(sizes: list[int], seed: int) -> None:
    labels = {f"{i}_{j}": {f"c{i}"} for i, n in enumerate(sizes) for j in range(n)}
    labels |= {f"none{j}": set() for j in range(3)}
    split = stratified(labels, seed)
    assert set(split) == set(labels) and set(split.values()) == set(SPLITS)
    assert gaps(labels, split) == []
    shuffled = list(labels.items())
    random.Random(1).shuffle(shuffled)
    assert stratified(dict(shuffled), seed) == split


@given(
    files=st.lists(st.sets(st.integers(0, 7), max_size=4), min_size=3, max_size=40),
    seed=st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_every_file_has_a_split(files: list[set[int]], seed: int) -> None:
    labels = {f"{i:02d}": {f"c{x}" for x in found} for i, found in enumerate(files)}
    split = stratified(labels, seed)
    assert set(split) == set(labels)
    assert set(split.values()) == set(SPLITS)


def test_classes_that_come_together_fill_every_split() -> None:
    """Where a division without gaps is known to exist, none is left; and sizes are kept."""
    n_left = 0
    for seed in range(60):
        draw = random.Random(seed)
        labels: dict[str, set[str]] = {f"{i:03d}": set() for i in range(50)}
        names = sorted(labels)
        for x in range(12):  # in one file at least of each part of a hidden division
            for part in (names[:30], names[30:40], names[40:]):
                for file in draw.sample(part, draw.randint(1, 3)):
                    labels[file].add(f"c{x}")
        split = stratified(labels, seed)
        n_left += len(gaps(labels, split))
        sizes = [list(split.values()).count(name) for name in SPLITS]
        assert abs(sizes[1] - 10) <= 3 and abs(sizes[2] - 10) <= 3, sizes
    assert n_left == 0


def test_too_few_files() -> None:
    with pytest.raises(ValueError, match="2 files: train, valid and test need at least 3"):
        stratified({"a": {"x"}, "b": {"x"}}, 0)
    assert sorted(stratified({"a": {"x"}, "b": {"x"}, "c": {"x"}}, 0).values()) == sorted(SPLITS)


def test_events_without_length(folder: Path) -> None:
    """Audacity's point labels: they fill no frame, so there is nothing to learn."""
    points = {file: [(0.1, 0.1, "dog"), (0.2, 0.2, "cat")] for file in FILES}
    write(folder, ".txt", points)
    with pytest.raises(
        ValueError, match="no event of the split 'train' has a length, .*wav cat at 0.2 s"
    ):
        open_task(folder)
    write(folder, ".txt", {file: [(0.1, 0.3, "dog"), (0.2, 0.2, "cat")] for file in FILES})
    with pytest.warns(TaskWarning, match="no event of 'cat' has a length, so it cannot be learned"):
        open_task(folder)
    with pytest.raises(ValueError, match="no event of 'cat' .* because of strict"):
        open_task(folder, strict=True)
    write(folder, ".txt", EVENTS | {"a.wav": points["a.wav"]})
    open_task(folder, strict=True)  # some of a class: as they are
