"""The command `corpus`: build, check, describe."""

from __future__ import annotations

from pathlib import Path

import pytest

from hear_pretrainedsed.cli import main
from tests.pretraining.small_corpus import MIDS, small_listing, write_strong


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


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = build_options(tmp_path)
    write_strong(tmp_path / "strong.tsv", [("clip0_0", 0, 1, MIDS[0]), ("clip1_0", 0, 1, "Cat")])
    folder = tmp_path / "corpus"
    for arguments, message in (
        (("build", folder, *options), "1 label ('Cat') is not among the 3 classes"),
        (("make", folder), "unknown action 'make'"),
        (("check", folder, "--classes", "x"), "the other options are of `build`"),
        (("describe", folder), "no corpus, it has no manifest.json"),
        (("build", folder, "--importer", "fsd5k"), "did you mean 'fsd50k'?"),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "") and err.count("\n") == 1 and message in err
    assert not folder.exists()
