"""A corpus on disk: what is written is read back; what is damaged is one line."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretraining.clip_index import ClipIndex, Labelled
from pretraining.corpus import Corpus, CorpusError, check_corpus, open_corpus
from pretraining.corpus_writer import write_corpus
from pretraining.importers import Request, list_clips
from pretraining.vocabulary import open_vocabulary
from tests.pretraining.small_corpus import LABELS, small_corpus

_events = st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9), st.integers(0, 5)), max_size=4)
_rows = st.builds(
    Labelled,
    st.text(max_size=8),
    st.none() | _events.map(tuple),
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"), n_clips=5, shard_clips=2)


def test_clips_are_read_as_they_were_written(corpus: Corpus) -> None:
    assert len(corpus) == 5 and corpus.labels == LABELS and corpus.has_events
    for i in (3, 0, 4, 1, 2):
        record = corpus[i]
        assert record.name == f"clip{i}_0" == corpus.names[i]
        assert record.audio == (corpus.folder.parent / "audio" / f"clip{i}_0.flac").read_bytes()
        assert record.events == ((0.1, 0.2 + 0.01 * i, i % 3),)
        assert record.weak == (i % 3,)
    with pytest.raises(IndexError):
        corpus[5]


def test_a_plain_reader_of_tensorflow_datasets_reads_it(corpus: Corpus) -> None:
    import tensorflow_datasets as tfds

    found = tfds.builder_from_directory(corpus.folder).as_data_source(split="train")
    assert len(found) == 5
    assert found[4]["name"] == b"clip4_0" and found[4]["has_events"]
    np.testing.assert_allclose(found[4]["onset_s"], [0.1], rtol=1e-7)
    np.testing.assert_allclose(found[4]["offset_s"], [0.24], rtol=1e-7)
    assert found[4]["event_class"].tolist() == [1] == found[4]["weak_class"].tolist()


def test_the_manifest_counts(corpus: Corpus) -> None:
    manifest = corpus.manifest
    assert manifest["n_clips"] == manifest["n_clips_with_events"] == manifest["n_events"] == 5
    assert manifest["hours"] == pytest.approx(2.5 / 3600, abs=1e-4)
    assert [shard["n_clips"] for shard in manifest["shards"]] == [2, 2, 1]
    seconds = {label: found["seconds"] for label, found in manifest["classes"].items()}
    assert seconds == pytest.approx({"Bark": 0.23, "Bell": 0.25, "Speech": 0.12})
    assert manifest["classes"]["Bell"]["n_clips"] == 2
    assert [source["file"] for source in manifest["sources"]] == ["strong.tsv"]
    np.testing.assert_allclose(corpus.index.duration_s, 0.5)


def test_the_digest_is_of_the_content(tmp_path: Path, corpus: Corpus) -> None:
    same = small_corpus(tmp_path / "same", shard_clips=5)
    other = small_corpus(tmp_path / "other", seconds=0.51)
    assert same.sha256 == corpus.sha256 != other.sha256


def test_reading_needs_no_tensorflow(corpus: Corpus) -> None:
    code = (
        "import sys; from pretraining.corpus import open_corpus\n"
        f"c = open_corpus({str(corpus.folder)!r}); c[2].audio\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'tensorflow']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_pickled_corpus_reads_on(corpus: Corpus) -> None:
    assert corpus[1].name == "clip1_0"
    again = pickle.loads(pickle.dumps(corpus))
    assert again[1] == corpus[1] and again.sha256 == corpus.sha256


def damaged(corpus: Corpus, folder: Path) -> Path:
    """A copy with a flipped bit in the second shard."""
    import shutil

    copy = Path(shutil.copytree(corpus.folder, folder / "copy"))
    shard = copy / corpus.manifest["shards"][1]["file"]
    data = bytearray(shard.read_bytes())
    place = data.index(corpus[2].audio) + 1000
    data[place] ^= 1
    shard.write_bytes(data)
    return copy


def test_a_damaged_shard_is_one_line(tmp_path: Path, corpus: Corpus) -> None:
    copy = damaged(corpus, tmp_path)
    opened = open_corpus(copy)
    assert opened[0].audio == corpus[0].audio
    with pytest.raises(CorpusError, match=r"clip 2 \('clip2_0'\) .*00001-of-00003: ") as caught:
        opened[2]
    assert "\n" not in str(caught.value)
    (problem,) = check_corpus(copy)
    assert problem.endswith("array_record-00001-of-00003: damaged: its sha256 is another")
    assert check_corpus(corpus.folder) == []


def test_a_shard_of_another_size_is_seen_when_opened(tmp_path: Path, corpus: Corpus) -> None:
    copy = damaged(corpus, tmp_path)
    shard = copy / corpus.manifest["shards"][0]["file"]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CorpusError, match="00000-of-00003: damaged: it has 131071 bytes"):
        open_corpus(copy)
    assert len(check_corpus(copy)) == 2
    shard.unlink()
    with pytest.raises(CorpusError, match="missing from the corpus"):
        open_corpus(copy)


def test_a_damaged_index_or_manifest_is_one_line(tmp_path: Path, corpus: Corpus) -> None:
    copy = damaged(corpus, tmp_path)
    index = copy / "index.npz"
    size = index.stat().st_size
    index.write_bytes(bytes(size))
    with pytest.raises(CorpusError, match=r"index\.npz: damaged"):
        open_corpus(copy)
    manifest = copy / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "format": 7}))
    with pytest.raises(CorpusError, match="unknown format of a corpus 7"):
        open_corpus(copy)
    manifest.write_text("{")
    with pytest.raises(CorpusError, match=r"manifest\.json: damaged"):
        open_corpus(copy)
    with pytest.raises(CorpusError, match=r"no corpus, it has no manifest\.json$"):
        open_corpus(tmp_path)
    (tmp_path / "new.part").mkdir()
    with pytest.raises(CorpusError, match="its import was interrupted"):
        open_corpus(tmp_path / "new")


def test_other_classes_are_refused(corpus: Corpus) -> None:
    corpus.require_labels(LABELS)
    with pytest.raises(CorpusError, match="class 1 is 'Speech', in the corpus 'Bell'"):
        corpus.require_labels(("Bark", "Speech", "Bell"))
    with pytest.raises(CorpusError, match="its 3 classes are not the 2 wanted$"):
        corpus.require_labels(LABELS[:2])


@given(st.lists(_rows, max_size=6), st.lists(st.integers(0, 5), max_size=6))
def test_columns_are_rows(rows: list[Labelled], numbers: list[int]) -> None:
    index = ClipIndex.of(rows)
    assert [index.row(i) for i in range(len(index))] == rows
    assert list(index.names) == [row.name for row in rows]
    chosen = [i for i in numbers if i < len(rows)]
    part = index.rows(chosen)
    assert [part.row(i) for i in range(len(part))] == [rows[i] for i in chosen]
    assert index.event_clip.tolist() == [i for i, r in enumerate(rows) for _ in r.events or ()]
    assert index.weak_clip.tolist() == [i for i, r in enumerate(rows) for _ in r.weak]


def test_shipped_class_lists_are_audiosets(shared: Path) -> None:
    wanted = json.loads((shared / "parity" / "audioset_strong_classes.json").read_text())
    train, evaluation = (open_vocabulary(f"audioset_strong_{split}") for split in ("train", "eval"))
    assert list(train.labels) == wanted["as_strong_train_classes"]
    assert list(evaluation.labels) == wanted["as_strong_eval_classes"]
    assert (len(train.labels), len(evaluation.labels)) == (447, 416)
    assert len(set(train.labels) & set(evaluation.labels)) == 407
    assert all(label in train.places for label in train.labels)
    mids = [key for key in train.places if key.startswith(("/m/", "/t/", "/g/"))]
    assert len(mids) == 447
    weak = open_vocabulary("audioset_527")
    table = open_vocabulary(shared / "data" / "meta" / "audioset_class_labels_indices.csv")
    assert weak.labels == table.labels and weak.places == table.places


def test_strong_mini_is_built_and_read_back(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "strong_mini-v1"
    audio = tmp_path / "audio"
    audio.mkdir()
    for i in range(6):
        (audio / f"smt{i:05d}_0.ogg").symlink_to(data / f"audio/train/smt{i:05d}_0.ogg")
    request = Request(
        audio=(audio,),
        strong=(data / "strong_mini_train_strong.tsv",),
        weak=(data / "strong_mini_train_weak.csv",),
        classes=str(data / "class_labels_indices.csv"),
    )
    corpus = open_corpus(write_corpus(list_clips("folder", request), tmp_path / "mini"))
    assert list(corpus.names) == [f"smt{i:05d}_0" for i in range(6)]
    assert len(corpus.manifest["missing"]) == 394 and len(corpus.labels) == 70
    assert corpus[0].audio == (audio / "smt00000_0.ogg").read_bytes()
    assert corpus[0].events == ((4.57, 10.0, corpus.labels.index("Aircraft")),)
    assert corpus.manifest["hours"] == pytest.approx(60 / 3600, abs=1e-4)
    assert all({c for *_, c in corpus[i].events} == set(corpus[i].weak) for i in range(6))
