"""Importers on small invented label files, as docs/corpora.md has them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from pretraining.corpus import CorpusError, open_corpus
from pretraining.corpus_writer import write_corpus
from pretraining.importers import IMPORTERS, Request, list_clips
from pretraining.importers.listing import stems_of
from pretraining.importers.tables import read_strong, read_weak
from pretraining.vocabulary import open_vocabulary
from tests.pretraining.small_corpus import (
    LABELS,
    MIDS,
    encoded,
    rows_of,
    sound,
    write_classes,
    write_strong,
    write_weak,
)


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """Four clips, named in the ways that downloads are."""
    folder = tmp_path / "audio" / "part1"
    folder.mkdir(parents=True)
    for name in ("abc-_def123_30000.flac", "Yxyz.wav", "uvw.ogg", "other.mp3"):
        kind = name.rpartition(".")[2].upper()
        (folder / name).write_bytes(encoded(sound(0.2), kind))
    (folder / "notes.txt").write_text("no audio")
    return folder.parent


def test_a_folder_with_events_and_clip_labels(tmp_path: Path, audio: Path) -> None:
    strong = write_strong(
        tmp_path / "s.tsv",
        [
            ("abc-_def123_30000", 0.5, 1.5, MIDS[0]),
            ("xyz_30000", 0.0, 10.0, MIDS[2]),
            ("abc-_def123_30000", 0.1, 0.2, "Speech"),
            ("gone_0", 0, 1, MIDS[1]),
        ],
    )
    weak = write_weak(
        tmp_path / "w.csv", {"xyz": f"{MIDS[2]},{MIDS[1]}", "uvw": MIDS[0], "lost": MIDS[0]}
    )
    classes = str(write_classes(tmp_path))
    request = Request((audio,), (strong,), (weak,), classes)
    found = list_clips("folder", request)
    assert found.labels == LABELS
    assert rows_of(found) == {
        "abc-_def123_30000": (((0.5, 1.5, 0), (0.1, 0.2, 2)), (0, 2)),
        "Yxyz": (((0.0, 10.0, 2),), (1, 2)),
        "uvw": (None, (0,)),
    }
    assert found.missing == ("gone_0", "lost_30000")
    corpus = open_corpus(write_corpus(found, tmp_path / "corpus"))
    assert not corpus.has_events and corpus[2].events is None
    assert corpus[1].audio == (audio / "part1/Yxyz.wav").read_bytes()
    assert corpus.manifest["missing"] == ["gone_0", "lost_30000"]


def test_names_that_a_segment_may_have() -> None:
    assert stems_of("a_b_30000") == ("a_b_30000", "a_b", "Ya_b", "Ya_b_30000")
    assert stems_of("plain") == ("plain", "Yplain")


def test_a_segment_without_events_has_none(tmp_path: Path, audio: Path) -> None:
    strong = write_strong(tmp_path / "s.tsv", [("uvw_0", 0, 1, MIDS[0])])
    strong.write_text(strong.read_text() + "xyz_0\t\t\t\n")
    found = list_clips("folder", Request((audio,), (strong,), (), str(write_classes(tmp_path))))
    assert rows_of(found)["Yxyz"] == ((), ())


def test_the_shipped_class_list_is_the_default(tmp_path: Path, audio: Path) -> None:
    strong = write_strong(tmp_path / "s.tsv", [("uvw_0", 0, 1, "/m/05tny_")])
    found = list_clips("folder", Request((audio,), (strong,)))
    assert len(found.labels) == 447
    assert rows_of(found)["uvw"] == (((0.0, 1.0, found.labels.index("Bark")),),) + (
        (found.labels.index("Bark"),),
    )
    weak = write_weak(tmp_path / "w.csv", {"uvw": "/m/05tny_"})
    assert len(list_clips("folder", Request((audio,), (), (weak,))).labels) == 527


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("uvw_0", 0, 1, "/m/nope"), ("uvw_0", 1, 2, "Barks")],
            r"2 labels \('/m/nope', 'Barks'\) are not among the 3 classes",
        ),
        ([("uvw_0", 2, 1, MIDS[0])], r"line 2: times are finite with 0 <= start <= end"),
        ([("uvw_0", "nan", 1, MIDS[0])], r"line 2: times are finite"),
        ([("uvw_0", -1, 1, MIDS[0])], r"line 2: times are finite"),
        ([("nobody_0", 0, 1, MIDS[0])], r"no clip has audio; 1 clip \('nobody_0'\) is missing"),
        ([], "no events in it"),
        (
            [("uvw_0", 0, 1, MIDS[0]), ("uvw_30000", 0, 1, MIDS[0])],
            r"1 clip \('uvw'\) is given twice",
        ),
    ],
)
def test_events_that_are_refused(tmp_path: Path, audio: Path, rows: list, message: str) -> None:
    strong = write_strong(tmp_path / "s.tsv", rows)
    request = Request((audio,), (strong,), (), str(write_classes(tmp_path)))
    with pytest.raises(ValueError, match=message) as caught:
        list_clips("folder", request)
    assert "\n" not in str(caught.value) and "s.tsv" in str(caught.value)


def test_tables_that_are_refused(tmp_path: Path, audio: Path) -> None:
    classes = str(write_classes(tmp_path))
    strong = write_strong(tmp_path / "s.tsv", [("uvw_0", 0, 1, MIDS[0])])
    again = write_strong(tmp_path / "t.tsv", [("uvw_0", 2, 3, MIDS[0])])
    with pytest.raises(CorpusError, match=r"t\.tsv: 1 segment \('uvw_0'\) is in another table"):
        list_clips("folder", Request((audio,), (strong, again), (), classes))
    strong.write_text("segment_id\tstart\tend\tlabel\n")
    with pytest.raises(CorpusError, match="no column 'start_time_seconds'"):
        list_clips("folder", Request((audio,), (strong,), (), classes))
    weak = tmp_path / "w.csv"
    for line, message in (
        ("uvw, 0, 10, Bark\nuvw, 0, 10, Bell\n", r"1 clip \('uvw_0'\) is given twice"),
        ('uvw, 0, 10, "/m/nope"\n', r"1 label \('/m/nope'\) is not among the 3 classes"),
        ("uvw, x, 10, y\n", "line 1: a line is id, start, end"),
        ("uvw\n", "line 1: a line is id, start, end"),
    ):
        weak.write_text(line)
        with pytest.raises(ValueError, match=message):
            list_clips("folder", Request((audio,), (), (weak,), classes))
    with pytest.raises(CorpusError, match="cannot be read: No such file"):
        list_clips("folder", Request((audio,), (tmp_path / "no.tsv",), (), classes))
    with pytest.raises(CorpusError, match="no such folder of audio"):
        list_clips("folder", Request((tmp_path / "no",), (again,), (), classes))
    (audio / "uvw.wav").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"1 name \('uvw'\) is shared by several files"):
        list_clips("folder", Request((audio,), (again,), (), classes))


def test_requests_that_are_refused(tmp_path: Path, audio: Path) -> None:
    with pytest.raises(CorpusError, match="unknown importer 'hdf'; did you mean 'hdf5'"):
        list_clips("hdf", Request())
    with pytest.raises(CorpusError, match="folder needs --strong or --weak"):
        list_clips("folder", Request((audio,)))
    for name in IMPORTERS:
        with pytest.raises(CorpusError, match=f"the importer {name} needs --"):
            list_clips(name, Request())
    with pytest.raises(CorpusError, match="hdf5 has no use for --weak"):
        list_clips("hdf5", Request((audio,), (), (audio,)))
    with pytest.raises(CorpusError, match="folder has no use for --split"):
        list_clips("folder", Request((audio,), (), (audio,), split="val"))


def write_hdf5(path: Path, names: list[str], targets: np.ndarray | None) -> list[bytes]:
    """A file of the PaSST recipe, and its clips."""
    clips = [encoded(sound(0.3, i), "MP3") for i in range(len(names))]
    with h5py.File(path, "w") as file:
        file.create_dataset("audio_name", data=np.array(names, dtype="S20"))
        mp3 = file.create_dataset("mp3", (len(names),), h5py.vlen_dtype(np.uint8))
        for i, clip in enumerate(clips):
            mp3[i] = np.frombuffer(clip, np.uint8)
        if targets is not None:
            file["target"] = np.packbits(targets, axis=1)
    return clips


def test_hdf5_with_clip_labels(tmp_path: Path) -> None:
    targets = np.zeros((3, 527), np.uint8)
    targets[0, [0, 526]] = targets[2, 74] = 1
    one, two = tmp_path / "one.hdf", tmp_path / "two.hdf"
    clips = write_hdf5(one, ["Yaa.mp3", "Y-b.c.mp3", "Yc.mp3"], targets)
    clips += write_hdf5(two, ["Yd.mp3"], targets[:1])
    found = list_clips("hdf5", Request((one, two)))
    assert found.labels == open_vocabulary("audioset_527").labels
    wanted = {"Yaa": (0, 526), "Y-b.c": (), "Yc": (74,), "Yd": (0, 526)}
    assert rows_of(found) == {name: (None, weak) for name, weak in wanted.items()}
    corpus = open_corpus(write_corpus(found, tmp_path / "corpus"))
    assert [corpus[i].audio for i in range(4)] == clips
    assert corpus.index.duration_s == pytest.approx(0.3, abs=0.1)


def test_hdf5_with_events(tmp_path: Path) -> None:
    path = tmp_path / "one.hdf"
    clips = write_hdf5(path, ["Yaa.mp3", "Ybb.mp3", "Ycc.mp3"], None)
    strong = write_strong(
        tmp_path / "s.tsv",
        [("cc_30000", 0, 1, "/m/05tny_"), ("zz_0", 0, 1, "/m/05tny_"), ("aa_0", 1, 2, "/m/05tny_")],
    )
    found = list_clips("hdf5", Request((path,), (strong,)))
    bark = found.labels.index("Bark")
    assert rows_of(found) == {
        "Ycc": (((0.0, 1.0, bark),), (bark,)),
        "Yaa": (((1.0, 2.0, bark),), (bark,)),
    }
    assert found.missing == ("zz_0",)
    assert found.places == [(str(path), 2), (str(path), 0)]
    assert [found.read(place) for place in found.places] == [clips[2], clips[0]]


def test_hdf5_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.hdf"
    write_hdf5(path, ["Yaa.mp3", "Yaa.mp3"], np.zeros((2, 527), np.uint8))
    with pytest.raises(CorpusError, match=r"1 clip \('Yaa'\) is given twice"):
        list_clips("hdf5", Request((path,)))
    other = tmp_path / "other.hdf"
    write_hdf5(other, ["Yaa.mp3"], np.zeros((1, 200), np.uint8))
    with pytest.raises(CorpusError, match=r"shape \(1, 25\); 527 classes of .* are \(1, 66\)"):
        list_clips("hdf5", Request((other,)))
    full = tmp_path / "full.hdf"
    write_hdf5(full, ["Yaa.mp3"], np.ones((1, 528), np.uint8))
    with pytest.raises(CorpusError, match="classes beyond the 527"):
        list_clips("hdf5", Request((full,)))
    (tmp_path / "no.hdf").write_text("no HDF5")
    with pytest.raises(CorpusError, match=r"no\.hdf: cannot be read"):
        list_clips("hdf5", Request((tmp_path / "no.hdf",)))
    with h5py.File(tmp_path / "empty.hdf", "w"):
        pass
    with pytest.raises(CorpusError, match="no data set 'audio_name'"):
        list_clips("hdf5", Request((tmp_path / "empty.hdf",)))


def test_pslas_data_files_and_enhanced_ones(tmp_path: Path, audio: Path) -> None:
    classes = str(write_classes(tmp_path))
    path = tmp_path / "train.json"
    entries = [
        {"wav": str(audio / "part1/Yxyz.wav"), "labels": MIDS[1]},
        {"wav": "audio/part1/uvw.ogg", "labels": f"{MIDS[2]},{MIDS[0]}"},
        {"wav": "/somewhere/gone.wav", "labels": MIDS[0]},
    ]
    path.write_text(json.dumps({"data": entries}))
    found = list_clips("psla", Request((), (), (path,), classes))
    assert rows_of(found) == {"Yxyz": (None, (1,)), "uvw": (None, (0, 2))}
    assert found.missing == ("gone",)
    entries[0]["labels"] += f",{MIDS[2]}"
    entries[2]["wav"] = "/somewhere/other.wav"
    path.write_text(json.dumps({"data": entries}))
    moved = list_clips("psla", Request((audio,), (), (path,), classes))
    assert rows_of(moved) == {"Yxyz": (None, (1, 2)), "uvw": (None, (0, 2)), "other": (None, (0,))}
    assert moved.missing == ()


def test_pslas_files_that_are_refused(tmp_path: Path, audio: Path) -> None:
    path = tmp_path / "train.json"
    request = Request((), (), (path,), str(write_classes(tmp_path)))
    wav = str(audio / "part1/Yxyz.wav")
    for content, message in (
        ("{", 'not of the form {"data"'),
        ('{"data": [{"wav": "x"}]}', "entry 0 has no wav and labels"),
        (json.dumps({"data": [{"wav": wav, "labels": "/m/no"}]}), "1 label .'/m/no'. is not among"),
        (json.dumps({"data": [{"wav": wav, "labels": MIDS[0]}] * 2}), "1 clip .'Yxyz'. is given"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            list_clips("psla", request)


def test_class_lists_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    with pytest.raises(ValueError, match="unknown class list .*audioset_strong_train"):
        open_vocabulary(path)
    path.write_text("a\nb\na\n")
    with pytest.raises(ValueError, match=r"1 class \('a'\) is given twice"):
        open_vocabulary(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="without names"):
        open_vocabulary(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot be read"):
        open_vocabulary(path)
    path.write_text("a\nb c\n")
    assert open_vocabulary(path).labels == ("a", "b c")


def documented(first: str) -> str:
    """The example of docs/corpora.md that begins with `first`."""
    page = Path(__file__).parents[2] / "docs" / "corpora.md"
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    (found,) = (block for block in blocks if block.startswith(first))
    return found


def test_the_examples_of_the_page_are_read(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_text(documented("segment_id"))
    strong = read_strong([path], open_vocabulary("audioset_strong_train"))
    assert {name: len(rows) for name, rows in strong.items()} == {
        "inventedAAA1_30000": 2,
        "inventedBBB2_0": 1,
    }
    path.write_text(documented("# YTID"))
    weak = read_weak([path], open_vocabulary("audioset_527"))
    assert weak == {"inventedAAA1_30000": (75, 0), "inventedCCC3_0": (0,)}
    audio = tmp_path / "audio"
    audio.mkdir()
    (audio / "inventedAAA1.flac").write_bytes(encoded(sound(0.1)))
    path.write_text(documented('{"data"'))
    assert rows_of(list_clips("psla", Request((), (), (path,)))) == {
        "inventedAAA1": (None, (0, 75))
    }
    path.write_text(documented("fname"))
    classes = tmp_path / "vocabulary.csv"
    names = ("Bark", "Dog", "Domestic_animals_and_pets", "Animal")
    classes.write_text("".join(f"{i},{name},/m/{i}\n" for i, name in enumerate(names)))
    (audio / "99000001.wav").write_bytes(encoded(sound(0.1), "WAV"))
    request = Request((audio,), (), (path,), str(classes))
    assert rows_of(list_clips("fsd50k", request)) == {"99000001": (None, (0, 1, 2, 3))}
