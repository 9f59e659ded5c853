"""The command enhance-labels: a teacher's scores from a checkpoint or a file, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hear_pretrainedsed import cli
from hear_pretrainedsed.api import load_model
from pretraining import teacher_scores
from pretraining.clips import decode, window
from pretraining.corpus import Corpus
from pretraining.importers import Request, list_clips
from pretraining.teacher_scores import compute_scores, read_scores
from pretraining.vocabulary import open_vocabulary
from tests.pretraining.small_corpus import (
    LABELS,
    MIDS,
    encoded,
    small_corpus,
    sound,
    write_classes,
)
from tests.pretraining.tiny_runs import add_teacher, tiny  # noqa: F401

pytestmark = pytest.mark.usefixtures("tiny")

Run = Callable[..., tuple[int, str, str]]
BARK, BELL, SPEECH = MIDS
NODES = [
    {"id": SPEECH, "name": "Speech", "child_ids": [BARK]},
    {"id": BARK, "name": "Bark", "child_ids": [BELL]},
    {"id": BELL, "name": "Bell", "child_ids": []},
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"), 5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With an ontology, a class list, and the labels of three clips, one of them without audio."""
    (tmp_path / "ontology.json").write_text(json.dumps(NODES))
    write_classes(tmp_path)
    data = [
        {"wav": "a/clip0_0.flac", "labels": BARK},
        {"wav": "a/clip3_0.flac", "labels": f"{BARK},{SPEECH}"},
        {"wav": "a/gone_0.flac", "labels": BARK},
    ]
    (tmp_path / "labels.json").write_text(json.dumps({"data": data}))
    scores = np.array([[0.5, 0.9, 0.1], [0.5, 0.2, 0.8]])
    np.savez(tmp_path / "scores.npz", names=["clip0_0", "clip3_0"], scores=scores)
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command on the folder's labels in this process: (exit code, stdout, stderr)."""

    def call(*words: object, out: str = "out.json") -> tuple[int, str, str]:
        start: list[object] = ["enhance-labels", folder / "labels.json", "-o", folder / out]
        start += ["--ontology", folder / "ontology.json"]
        if "--classes" not in words:
            start += ["--classes", folder / "class_labels_indices.csv"]
        with pytest.raises(SystemExit) as stop:
            cli.main([*map(str, start), *map(str, words)])
        out_text, err = capsys.readouterr()
        return stop.value.code, out_text, err

    return call


def labels_in(path: Path) -> list[str]:
    return [entry["labels"] for entry in json.loads(path.read_text())["data"]]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        # type 1: Bark leads to Bell; type 2: Bark leads to Speech
        (("--threshold", "none"), [f"{BARK},{BELL},{SPEECH}", f"{BARK},{SPEECH},{BELL}"]),
        (("--threshold", "none", "--type", "1"), [f"{BARK},{BELL}", f"{BARK},{SPEECH},{BELL}"]),
        (("--threshold", "none", "--type", "2"), [f"{BARK},{SPEECH}", f"{BARK},{SPEECH}"]),
        # Speech's only clip has 0.8, no clip has Bell: nothing is above that
        (("--threshold", "25"), [BARK, f"{BARK},{SPEECH}"]),
        ((), [BARK, f"{BARK},{SPEECH}"]),
    ],
)
def test_labels_by_scores_of_a_file(
    run: Run, folder: Path, words: tuple[str, ...], wanted: list[str]
) -> None:
    code, out, err = run("--scores", folder / "scores.npz", *words)
    assert (code, err) == (0, "")
    assert labels_in(folder / "out.json") == [*wanted, BARK]
    n_added = sum(row.count("/m/") for row in wanted) - 3
    assert f"3 clips, 1 of them without scores; {n_added} labels added" in out


def test_the_file_takes_the_place_of_the_one_it_is_made_from(run: Run, folder: Path) -> None:
    audio = folder / "audio"
    audio.mkdir()
    for name in ("clip0_0", "clip3_0", "gone_0"):
        (audio / f"{name}.flac").write_bytes(encoded(sound(0.2)))
    run("--scores", folder / "scores.npz", "--threshold", "none")
    classes = str(folder / "class_labels_indices.csv")
    before, after = (
        list_clips("psla", Request(audio=(audio,), weak=(folder / name,), classes=classes))
        for name in ("labels.json", "out.json")
    )
    assert list(before.index.names) == list(after.index.names)
    assert [before.index.row(i).weak for i in range(3)] == [(0,), (0, 2), (0,)]
    assert [after.index.row(i).weak for i in range(3)] == [(0, 1, 2), (0, 1, 2), (0,)]


def test_the_most_added_classes_are_told_first(run: Run, folder: Path) -> None:
    _, out, _ = run("--scores", folder / "scores.npz", "--threshold", "none")
    assert [line.split() for line in out.splitlines()[1:]] == [["2", "Bell"], ["1", "Speech"]]


def test_scores_of_a_checkpoint(
    run: Run, folder: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = add_teacher(folder, monkeypatch)
    teacher = ("--checkpoint", name, "--corpus", corpus.folder, "--device", "cpu")
    kept = folder / "kept.npz"
    words = ("--save-scores", kept, "--threshold", "none")
    code, out, err = run(*teacher, *words)
    assert code == 0 and "1 of them without scores" in out, err
    code, again, _ = run("--scores", kept, "--threshold", "none", out="again.json")
    assert code == 0 and again.splitlines()[1:] == out.splitlines()[1:]
    assert labels_in(folder / "out.json") == labels_in(folder / "again.json")
    found = read_scores(kept, open_vocabulary(folder / "class_labels_indices.csv"))
    assert found.names == ("clip0_0", "clip3_0")
    model = load_model(checkpoint=name)
    audio = np.stack([window(decode(corpus[i].audio), 0) for i in (0, 3)])
    wanted = model.weak_scores(torch.from_numpy(audio)).detach()
    np.testing.assert_allclose(found.scores, wanted.numpy(), atol=1e-6)


def test_a_class_list_in_another_order_takes_its_own_columns(
    folder: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "other.txt").write_text("Speech\nBell\n")
    model = load_model(checkpoint=add_teacher(folder, monkeypatch))
    few = open_vocabulary(folder / "other.txt")
    found = compute_scores(model, corpus, [1, 2], few)
    whole = compute_scores(model, corpus, [1, 2], open_vocabulary(write_classes(folder)))
    np.testing.assert_array_equal(found.scores, whole.scores[:, [2, 1]])
    found.write(folder / "two.npz", few)
    (folder / "turned.txt").write_text("Bell\nSpeech\n")
    turned = read_scores(folder / "two.npz", open_vocabulary(folder / "turned.txt"))
    np.testing.assert_array_equal(turned.scores, found.scores[:, ::-1])


def test_long_clips_are_seen_whole_and_broken_ones_left_out(
    folder: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(checkpoint=add_teacher(folder, monkeypatch))
    long = decode(encoded(sound(15, seed=9)))

    def read(data: bytes) -> np.ndarray:
        number = next(i for i in range(5) if corpus[i].audio == data)
        if number == 2:
            raise teacher_scores.AudioError("damaged")
        return long if number == 1 else decode(data)

    monkeypatch.setattr(teacher_scores, "decode", read)
    done: list[tuple[int, int]] = []
    vocabulary = open_vocabulary(write_classes(folder))
    options = {"batch_size": 2, "progress": lambda a, b: done.append((a, b))}
    found = compute_scores(model, corpus, range(5), vocabulary, **options)
    assert done == [(2, 5), (4, 5), (5, 5)]
    assert sorted(found.names) == ["clip0_0", "clip1_0", "clip3_0", "clip4_0"]
    wanted = model.weak_scores(torch.from_numpy(long)[None]).detach()[0]
    row = found.scores[found.names.index("clip1_0")]
    np.testing.assert_allclose(row, wanted.numpy(), atol=1e-6)


def test_too_many_broken_clips_stop(
    folder: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(data: bytes) -> np.ndarray:
        raise teacher_scores.AudioError("damaged")

    monkeypatch.setattr(teacher_scores, "decode", fail)
    model = load_model(checkpoint=add_teacher(folder, monkeypatch))
    vocabulary = open_vocabulary(write_classes(folder))
    with pytest.raises(ValueError, match="5 clips cannot be decoded"):
        compute_scores(model, corpus, range(5), vocabulary)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give --checkpoint NAME and --corpus DIR, or --scores FILE"),
        (("--checkpoint", "psla.weak-audioset"), "give --checkpoint NAME and --corpus DIR"),
        (("--scores", "s", "--corpus", "c"), "--scores stands alone"),
        (("--scores", "none.npz"), "none.npz: there is no such file of scores"),
        (("--scores", "s", "--threshold", "meen"), "unknown threshold 'meen'; did you mean 'mean'"),
        (("--scores", "s", "--type", "3"), "unknown type '3'"),
        (("--scores", "s", "--classes", "audioset_52"), "did you mean 'audioset_527'"),
        (("--scores", "s", "--ontology", "none"), "none: cannot be read"),
        (("-c", "psla.weak-audiost", "--corpus", "c"), "did you mean 'psla.weak-audioset'"),
        (("-c", "psla.weak-audioset", "--corpus", "c"), "c: no corpus"),
    ],
)
def test_mistakes_are_one_line(
    run: Run, folder: Path, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run(*words)
    assert code == 2 and message in err and err.count("\n") == 1 and out == "", err
    assert not (folder / "out.json").exists()


def test_nothing_is_written_over_what_it_is_made_from(run: Run, folder: Path) -> None:
    before = (folder / "labels.json").read_text()
    code, _, err = run("--scores", folder / "scores.npz", out="labels.json")
    assert code == 2 and "is what labels are added to" in err
    assert (folder / "labels.json").read_text() == before
    code, _, err = run("--scores", folder / "scores.npz", out="no/out.json")
    assert code == 2 and "there is no folder" in err


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"scores": np.zeros((2, 3))}, "it lacks 'names'"),
        ({"names": ["a", "b"], "scores": np.zeros((2, 4))}, r"has the shape \(2, 4\); wanted"),
        ({"names": ["a", "a"], "scores": np.zeros((2, 3))}, r"1 clip \('a'\) is given twice"),
        ({"names": ["a"], "scores": np.full((1, 3), 1.5)}, "numbers from 0 to 1, not logits"),
        ({"names": ["a"], "scores": np.full((1, 3), np.nan)}, "not logits or NaN"),
        (
            {"names": ["a"], "scores": np.zeros((1, 2)), "labels": ["Bark", "Cat"]},
            r"2 labels \('Bell', 'Speech'\) are of .* without a score",
        ),
        ({"names": np.array([None]), "scores": np.zeros((1, 3))}, "no .npz of scores, or damaged"),
    ],
)
def test_refuses_scores(folder: Path, parts: dict[str, object], message: str) -> None:
    np.savez(folder / "s.npz", **parts)
    vocabulary = open_vocabulary(write_classes(folder))
    with pytest.raises(ValueError, match=message) as caught:
        read_scores(folder / "s.npz", vocabulary)
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_npz(folder: Path) -> None:
    vocabulary = open_vocabulary(write_classes(folder))
    for content in (b"", b"text", (folder / "scores.npz").read_bytes()[:300]):
        (folder / "s.npz").write_bytes(content)
        with pytest.raises(ValueError, match="no .npz of scores, or damaged"):
            read_scores(folder / "s.npz", vocabulary)
    np.save(folder / "s.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"no .npz of scores"):
        read_scores(folder / "s.npy", vocabulary)


def test_clips_of_another_corpus_and_classes_without_scores(
    run: Run, folder: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = add_teacher(folder, monkeypatch)
    text = json.dumps({"data": [{"wav": "x.wav", "labels": BARK}]})
    (folder / "labels.json").write_text(text)
    teacher = ("-c", name, "--corpus", corpus.folder)
    code, _, err = run(*teacher)
    assert code == 2 and "1 clip ('x') is not in" in err
    text = json.dumps({"data": [{"wav": "clip0_0.wav", "labels": BARK}]})
    (folder / "labels.json").write_text(text)
    (folder / "more.csv").write_text(
        "index,mid,display_name\n"
        + "".join(f"{i},{m},{n}\n" for i, (m, n) in enumerate(zip(MIDS, LABELS, strict=True)))
        + "3,/m/cat,Cat\n"
    )
    code, _, err = run(*teacher, "--classes", folder / "more.csv")
    assert code == 2 and "the teacher: 1 label ('Cat') is of" in err
