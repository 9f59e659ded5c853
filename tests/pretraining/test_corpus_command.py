"""The command `corpus`: build, check, describe."""

from __future__ import annotations

from pathlib import Path

import pytest

from hear_pretrainedsed.cli import main
from pretraining.corpus import open_corpus
from tests.pretraining.small_corpus import (
    MIDS,
    encoded,
    small_listing,
    sound,
    write_classes,
    write_strong,
)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["corpus", *map(str, arguments)])
    text = capsys.readouterr()
    return int(ended.value.code or 0), text.out, text.err


def build_options(folder: Path) -> list[object]:
    small_listing(folder)
    names = {"--audio": "audio", "--strong": "strong.tsv", "--classes": "class_labels_indices.csv"}
    return [word for option, name in names.items() for word in (option, folder / name)]


def test_a_corpus_is_made_checked_and_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "corpus"
    options = [*build_options(tmp_path), "--licence", "CC0"]
    code, out, err = run(capsys, "build", folder, *options)
    assert (code, err) == (0, "")
    assert f"{folder}: 5 clips, 0.00 hours" in out and "events: 5 in 5 clips" in out
    assert "missing: 0\nbroken: 0\nfrom: strong.tsv (folder)\nlicence: CC0\n" in out
    assert run(capsys, "check", folder)[:2] == (0, out)
    assert run(capsys, "describe", folder)[:2] == (0, out)
    shard = next(folder.glob("*array_record*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    code, _, err = run(capsys, "check", folder)
    assert code == 1 and err.count("\n") == 1 and "its sha256 is another" in err


def test_a_split_is_a_corpus_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dev_audio").mkdir()
    for number in (1, 2, 3):
        (tmp_path / "dev_audio" / f"{number}.wav").write_bytes(encoded(sound(0.2, number), "WAV"))
    (tmp_path / "dev.csv").write_text(
        "fname,labels,mids,split\n1,Bark,x,train\n2,Bark,x,val\n3,Bark,x,train\n"
    )
    names = {"--audio": "dev_audio", "--weak": "dev.csv"}
    options = [word for option, name in names.items() for word in (option, tmp_path / name)]
    options += ["--importer", "fsd50k", "--classes", write_classes(tmp_path)]
    for split, clips in (("train", ("1", "3")), ("val", ("2",))):
        code, out, err = run(capsys, "build", tmp_path / split, *options, "--split", split)
        assert (code, err) == (0, "") and f"{len(clips)} clips" in out
        assert tuple(open_corpus(tmp_path / split).names) == clips


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = build_options(tmp_path)
    write_strong(tmp_path / "strong.tsv", [("clip0_0", 0, 1, MIDS[0]), ("clip1_0", 0, 1, "Cat")])
    folder = tmp_path / "corpus"
    for arguments, message in (
        (("build", folder, *options), "1 label ('Cat') is not among the 3 classes"),
        (("make", folder), "unknown action 'make'"),
        (("check", folder, "--classes", "x"), "the other options are of `build`"),
        (("check", folder, "--split", "val"), "the other options are of `build`"),
        (("build", folder, *options, "--split", "val"), "folder has no use for --split"),
        (("describe", folder), "no corpus, it has no manifest.json"),
        (("build", folder, "--importer", "fsd5k"), "did you mean 'fsd50k'?"),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "") and err.count("\n") == 1 and message in err
    assert not folder.exists()
