"""The command average-weights: files or a run's folder, imported afterwards, and mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hear_pretrainedsed import cli
from hear_pretrainedsed.api import load_model
from hear_pretrainedsed.checkpoints import save_weights
from hear_pretrainedsed.training.new_head import with_head
from hear_pretrainedsed.user_registry import import_checkpoint, remove_checkpoint
from hear_pretrainedsed.weight_files import read
from pretraining.build import random_model
from tests.pretraining.small_corpus import LABELS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with three epochs."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "epochs").mkdir()
    for number in range(3):
        model = with_head(random_model("fmn04", number), LABELS, number, weak=True)
        model.provenance["origin"] = {"mode": "pretrain", "recipe": "weak", "step": number}
        save_weights(model, folder / "epochs" / f"step-{number:08d}.safetensors")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["average-weights", *map(str, words)])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def epochs(folder: Path) -> list[Path]:
    return sorted((folder / "epochs").iterdir())


def test_the_mean_of_a_run_is_a_checkpoint_like_any_other(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mean.safetensors"
    code, told, err = run(folder, "-o", out)
    assert (code, err) == (0, "")
    assert "the mean of 3 files, step-00000000.safetensors to step-00000002" in told
    name = import_checkpoint(out, "fmn04.weak-averaged").name
    try:
        model = load_model(checkpoint=name)
    finally:
        remove_checkpoint(name)
    assert model.labels == LABELS and model.weak_scores(torch.zeros(1, 16_000)).shape == (1, 3)
    state, parts = model.state_dict(), [read(path).tensors for path in epochs(folder)]
    for key in ("head.weak.weight", "head.strong.bias"):
        torch.testing.assert_close(state[key], sum(part[key] for part in parts) / 3)
    assert model.provenance["origin"]["averaged"] == [path.name for path in epochs(folder)]


def test_the_first_counts_twice(run: Run, folder: Path, tmp_path: Path) -> None:
    first, last = epochs(folder)[0], epochs(folder)[2]
    code, told, _ = run(first, last, "-o", tmp_path / "m.pt", "--first-twice")
    assert code == 0 and "2 files" in told and "the first counted twice" in told
    paths = (first, last, tmp_path / "m.pt")
    a, b, mean = (read(path).tensors["head.weak.weight"] for path in paths)
    torch.testing.assert_close(mean, (2 * a + b) / 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("EPOCHS", "-o", "TMP/mean.onnx"), "has to end in .safetensors or .pt"),
        (("EPOCHS", "-o", "TMP/no/mean.pt"), "there is no folder"),
        (("FIRST", "-o", "TMP/mean.pt"), "an average is of two files at least"),
        (("TMP", "-o", "TMP/mean.pt"), "has no checkpoints epochs/step-*.safetensors"),
        (("FIRST", "none.pt", "-o", "TMP/mean.pt"), "none.pt: there is no such file"),
        (("FIRST", "OTHER", "-o", "TMP/mean.pt"), "has another labels than"),
        (("FIRST", "OTHER", "-o", "OTHER"), "which is one of those that are averaged"),
    ],
)
def test_mistakes_are_one_line(
    run: Run, folder: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    other = tmp_path / "other.pt"
    save_weights(with_head(random_model("fmn04", 5), ("a", "b"), 5, weak=True), other)
    before = other.read_bytes()
    places = {"EPOCHS": folder / "epochs", "FIRST": epochs(folder)[0], "OTHER": other}
    given = [places.get(word, word.replace("TMP", str(tmp_path))) for word in words]
    code, out, err = run(*given)
    assert code == 2 and message in err and err.count("\n") == 1 and out == "", err
    assert [p.name for p in tmp_path.iterdir()] == ["other.pt"] and other.read_bytes() == before
