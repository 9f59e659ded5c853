"""Pseudo labels: written, gone on with, read, refused."""

from __future__ import annotations

import errno
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hear_pretrainedsed import cli
from hear_pretrainedsed.heads import AttentionHead
from hear_pretrainedsed.model import SEDModel, build_model
from hear_pretrainedsed.training.new_head import with_head
from pretraining import pseudo_labels
from pretraining.clip_index import ClipIndex, Labelled
from pretraining.clips import Clips, Draw, decode, window
from pretraining.corpus import Corpus
from pretraining.pseudo_labels import (
    PseudoLabelError,
    PseudoLabels,
    ensemble_logits,
    stem,
    write_pseudo_labels,
)
from tests.pretraining.small_corpus import LABELS, small_corpus


def model_of(seed: int, labels: tuple[str, ...] = LABELS) -> SEDModel:
    torch.manual_seed(seed)
    return with_head(build_model("fmn04"), labels, seed).eval()


@pytest.fixture(scope="module")
def models() -> list[SEDModel]:
    torch.set_num_threads(1)
    return [model_of(0), model_of(1)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"), n_clips=5)


def audio_of(corpus: Corpus, number: int) -> torch.Tensor:
    return torch.from_numpy(window(decode(corpus[number].audio), 0))[None]


def test_a_row_is_the_mean_of_the_models_logits(
    corpus: Corpus, models: list[SEDModel], tmp_path: Path
) -> None:
    path = tmp_path / "pseudo.h5"
    done: list[tuple[int, int]] = []
    labels = write_pseudo_labels(
        models, corpus, path, batch_size=2, progress=lambda a, b: done.append((a, b))
    )
    assert done == [(2, 5), (4, 5), (5, 5)]
    assert [p.name for p in tmp_path.iterdir()] == ["pseudo.h5"]
    for number, name in enumerate(corpus.names):
        with torch.no_grad():
            wanted = torch.stack([model.logits(audio_of(corpus, number))[0] for model in models])
        row = labels.row(name)
        assert row.shape == (3, 250) and row.dtype == np.float16
        np.testing.assert_allclose(row, wanted.mean(dim=0).T.numpy(), atol=2e-2)
    with h5py.File(path) as file:  # the published form
        assert list(file["filenames"][:]) == [name.encode() for name in corpus.names]
        assert file["strong_logits"].dtype == np.float16
    labels.check(corpus)
    assert [m["checkpoint"] for m in labels.origin["models"]] == [None, None]
    row = Clips(corpus, labels)[Draw(1, 0)]
    np.testing.assert_allclose(
        row.pseudo, torch.from_numpy(labels.row(corpus.names[1])).float().sigmoid().T
    )


def test_heads_that_emit_scores_take_part(models: list[SEDModel]) -> None:
    scores = model_of(2)
    scores.head = AttentionHead(scores.frame_dim, 3).eval()
    audio = torch.randn(1, 160_000) * 0.1
    both = ensemble_logits([models[0], scores], audio)
    with torch.no_grad():
        wanted = (models[0].logits(audio) + scores.scores(audio).logit(eps=1e-6)) / 2
    torch.testing.assert_close(both, wanted)


def test_a_published_file_is_read(tmp_path: Path, corpus: Corpus) -> None:
    path = tmp_path / "published.h5"
    with h5py.File(path, "w") as file:
        file["filenames"] = [f"audio/{name}.wav".encode() for name in corpus.names]
        rows = np.arange(len(corpus), dtype=np.float16)[:, None, None]
        file["strong_logits"] = np.broadcast_to(rows, (len(corpus), 3, 250))
    labels = PseudoLabels(path)
    labels.check(corpus)
    again = pickle.loads(pickle.dumps(labels))
    assert [again.row(name)[0, 0] for name in corpus.names] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Yabc.wav", "Yabc"),
        ("Yabc_30000.MP3", "Yabc_30000"),
        ("a/b/clip_30.5.mp3", "clip_30.5"),
        ("x_30.000", "x_30.000"),
        ("take.1", "take.1"),
        (".wav", ".wav"),
        ("q", "q"),
    ],
)
def test_names_without_folder_and_audio_ending(name: str, wanted: str) -> None:
    assert stem(name) == wanted


def test_clips_whose_names_end_in_a_number_keep_their_rows(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "takes.h5", "w") as file:
        file["filenames"] = ["take.1", "take.2.MP3"]
        file["strong_logits"] = np.stack([np.full((3, 250), i, np.float16) for i in (-5, 5)])
    labels = PseudoLabels(tmp_path / "takes.h5")
    assert [labels.row(name)[0, 0] for name in ("take.1", "take.2")] == [-5, 5]


def published(path: Path, names: list[str]) -> PseudoLabels:
    """Row i holds i."""
    with h5py.File(path, "w") as file:
        file["filenames"] = names
        file["strong_logits"] = np.stack([np.full((3, 250), i, np.float16) for i in range(5)])
    return PseudoLabels(path)


@pytest.mark.parametrize("form", ["Yclip{}_0.mp3", "clip{}.wav", "Yclip{}", "clip{}_0"])
def test_audioset_s_names_are_one_in_any_form(tmp_path: Path, corpus: Corpus, form: str) -> None:
    """The corpus has `clip0_0`: a recording's id and where the segment begins in ms."""
    labels = published(tmp_path / "a.h5", [form.format(i) for i in (4, 3, 2, 1, 0)])
    labels.check(corpus)
    assert [labels.row(name)[0, 0] for name in corpus.names] == [4, 3, 2, 1, 0]


def test_other_forms_are_found_the_other_way_round(tmp_path: Path) -> None:
    names = ["aa_30000", "Ybb_0.mp3", "Ycc", "dd_0", "dd_10000"]
    labels = published(tmp_path / "a.h5", names)
    wanted = {"Yaa": 0, "aa": 0, "Yaa_30000": 0, "bb": 1, "Ybb": 1, "bb_0": 1, "cc": 2, "Ydd_0": 3}
    assert {name: labels.row(name)[0, 0] for name in wanted} == wanted
    for name in ("dd", "Ydd", "a", "b", "aa_0x"):  # two rows fit, or none
        with pytest.raises(ValueError, match="no pseudo labels of"):
            labels.row(name)


def test_clips_that_would_share_a_row_are_refused(tmp_path: Path, corpus: Corpus) -> None:
    labels = published(tmp_path / "a.h5", ["clip_0", "clip", "b", "c", "d"])
    index = ClipIndex.of(Labelled(name, (), ()) for name in ("clip_0", "clip_1", "b", "clip_2"))
    takes = Corpus(corpus.folder, corpus.manifest, index)
    with pytest.raises(ValueError, match=r"1 clip \('clip_2'\) is without a row of its own"):
        labels.check(takes)


def test_a_clip_given_twice_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    path = tmp_path / "twice.h5"
    with h5py.File(path, "w") as file:
        file["filenames"] = [f"{name}.mp3" for name in corpus.names] + ["other/clip3_0.WAV"]
        file["strong_logits"] = np.zeros((len(corpus) + 1, 3, 250), np.float16)
    with pytest.raises(ValueError, match=r"twice.h5: 1 clip \('clip3_0'\) is given twice"):
        PseudoLabels(path).check(corpus)


KILLED = """
import sys, time, torch
from pathlib import Path
from pretraining.corpus import open_corpus
from pretraining.pseudo_labels import write_pseudo_labels
sys.path.insert(0, {root!r})
from tests.pretraining.test_pseudo_labels import model_of
def slow(done, total):
    print(done, flush=True)
    time.sleep(30 if done == 3 else 0)
torch.set_num_threads(1)
corpus, path = open_corpus({corpus!r}), Path({path!r})
write_pseudo_labels([model_of(0)], corpus, path, batch_size=1, progress=slow)
"""


def test_after_a_kill_it_goes_on_to_the_same(corpus: Corpus, tmp_path: Path) -> None:
    path, whole = tmp_path / "killed.h5", tmp_path / "whole.h5"
    root = str(Path(__file__).resolve().parents[2])
    script = KILLED.format(root=root, corpus=str(corpus.folder), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root)
    assert process.stdout is not None
    while (line := process.stdout.readline()) and line.strip() != b"3":
        pass
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not path.exists() and path.with_name("killed.h5.part").exists()
    done: list[int] = []
    one = [model_of(0)]
    resumed = write_pseudo_labels(
        one, corpus, path, batch_size=1, progress=lambda d, _: done.append(d)
    )
    assert done == [4, 5]
    straight = write_pseudo_labels(one, corpus, whole, batch_size=1)
    for name in corpus.names:
        np.testing.assert_array_equal(resumed.row(name), straight.row(name))


def test_a_part_of_other_models_is_refused(
    corpus: Corpus, models: list[SEDModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "x.h5"
    with pytest.raises(KeyboardInterrupt):
        write_pseudo_labels(models, corpus, path, progress=stop)
    with pytest.raises(ValueError, match="begun with another models; remove it"):
        write_pseudo_labels(models[:1], corpus, path)


def test_a_part_is_no_file_to_learn_from(
    corpus: Corpus, models: list[SEDModel], tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pseudo_labels(models[:1], corpus, tmp_path / "x.h5", batch_size=2, progress=stop)
    with pytest.raises(ValueError, match=r"x\.h5\.part: is not finished: 2 of 5 rows"):
        PseudoLabels(tmp_path / "x.h5.part").check(corpus)


def test_a_full_disk_leaves_what_can_be_gone_on_with(
    corpus: Corpus, models: list[SEDModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.h5"
    write = h5py.Dataset.__setitem__

    def full(self: h5py.Dataset, key: object, value: object) -> None:
        if self.name == "/strong_logits" and key == slice(2, 4):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(h5py.Dataset, "__setitem__", full)
        with pytest.raises(OSError, match=r"x\.h5\.part.*No space left"):
            write_pseudo_labels(models[:1], corpus, path, batch_size=2)
    assert not path.exists()
    write_pseudo_labels(models[:1], corpus, path, batch_size=2).check(corpus)


def test_broken_clips_are_listed_and_too_many_stop(
    corpus: Corpus, models: list[SEDModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {corpus.names[1]}

    def fails(data: bytes) -> np.ndarray:
        numbers = {corpus[i].audio: i for i in range(len(corpus))}
        if corpus.names[numbers[data]] in bad:
            raise pseudo_labels.AudioError("damaged")
        return decode(data)

    monkeypatch.setattr(pseudo_labels, "decode", fails)
    labels = write_pseudo_labels(models[:1], corpus, tmp_path / "one.h5")
    assert labels.broken == (corpus.names[1],)
    with pytest.raises(ValueError, match="was broken when these were made"):
        labels.row(corpus.names[1])
    bad.add(corpus.names[3])
    with pytest.raises(ValueError, match="2 clips cannot be decoded"):
        write_pseudo_labels(models[:1], corpus, tmp_path / "two.h5")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_name_that_is_taken_is_refused_first(
    corpus: Corpus, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "taken.h5"
    path.mkdir() if kind == "folder" else path.write_text("mine")
    message = f"{path}: is there already; remove it, or give another name"
    with pytest.raises(PseudoLabelError, match=re.escape(message)):
        write_pseudo_labels([], corpus, path)
    words = ["pseudo-labels", "--checkpoints", "fmn04.strong", "--corpus", str(corpus.folder)]
    with pytest.raises(SystemExit) as stop:  # before a checkpoint is fetched
        cli.main([*words, "-o", str(path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"hear-pretrainedsed: {message}\n"
    assert [p.name for p in tmp_path.iterdir()] == ["taken.h5"]
    assert kind == "folder" or path.read_text() == "mine"


def test_what_does_not_fit_is_refused(
    corpus: Corpus, models: list[SEDModel], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"has other classes \(2\) than .* \(3\)"):
        write_pseudo_labels([model_of(0, ("a", "b"))], corpus, tmp_path / "x.h5")
    with pytest.raises(ValueError, match="no model"):
        write_pseudo_labels([], corpus, tmp_path / "x.h5")
    with pytest.raises(ValueError, match="there is no such file"):
        PseudoLabels(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no table")
    with pytest.raises(ValueError, match="no HDF5 file, or damaged"):
        PseudoLabels(tmp_path / "text.h5")
    with h5py.File(tmp_path / "shape.h5", "w") as file:
        file["filenames"] = [name.encode() for name in corpus.names]
        file["strong_logits"] = np.zeros((5, 2, 250), np.float16)
    with pytest.raises(ValueError, match=r"have the shape \(2, 250\)"):
        PseudoLabels(tmp_path / "shape.h5").check(corpus)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["filenames"] = [b"else"]
        file["strong_logits"] = np.zeros((1, 3, 250), np.float16)
    other = PseudoLabels(tmp_path / "other.h5")
    with pytest.raises(ValueError, match="of other clips: 5 of 5"):
        other.check(corpus)
    with pytest.raises(ValueError, match="no pseudo labels of 'clip0_0'; it has 1 clips"):
        other.row("clip0_0")
    with h5py.File(tmp_path / "lacks.h5", "w") as file:
        file["filenames"] = [b"else"]
    with pytest.raises(ValueError, match="it lacks 'strong_logits'"):
        PseudoLabels(tmp_path / "lacks.h5")


def test_a_truncated_file_is_told(corpus: Corpus, models: list[SEDModel], tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    write_pseudo_labels(models[:1], corpus, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="damaged"):
        PseudoLabels(path)
