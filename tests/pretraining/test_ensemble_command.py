"""The command ensemble-results: runs with other seeds and settings in one table, and mistakes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hear_pretrainedsed import cli, weight_files
from pretraining.corpus import Corpus
from pretraining.presets import PRESETS
from pretraining.run import run as pretrain
from pretraining.run_folders import names_of_settings, read_runs
from pretraining.validation import clip_table
from pretraining.weak_metrics import weak_metrics
from tests.pretraining.small_corpus import small_corpus
from tests.pretraining.tiny_runs import shrunken, tiny, tiny_run  # noqa: F401

pytestmark = pytest.mark.usefixtures("tiny")

Run = Callable[..., tuple[int, str, str]]
SEEDS = ("seed0", "seed1", "slow")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"), 5)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def runs(kept: Path, corpus: Corpus) -> list[Path]:
    """Two runs that differ in the seed, one that differs in the lr; made once."""
    recipe = shrunken(PRESETS["weak"])
    for number, name in enumerate(SEEDS):
        if (kept / name).exists():
            continue
        own = replace(recipe, lr=1e-2) if name == "slow" else recipe
        job = tiny_run(own, corpus, kept / name, seed=number % 2)
        sources = replace(job.sources, evaluation=corpus.folder)
        pretrain(replace(job, sources=sources))
    return [kept / name for name in SEEDS]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["ensemble-results", *map(str, words)])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_three_ways_of_ensembling_on_two_splits(
    run: Run, runs: list[Path], corpus: Corpus, tmp_path: Path
) -> None:
    words = ("--valid", corpus.folder, "--eval", corpus.folder, "-o", tmp_path / "all.csv")
    code, told, err = run(*runs, *words, "--device", "cpu")
    assert code == 0, err
    rows = rows_of(tmp_path / "all.csv")
    assert len(told.splitlines()) == len(rows) + 1
    systems = [row["system"].split(" (step")[0] for row in rows][::2]
    kinds = ("best single", "ensemble of one run", "averaged weights")
    wanted = [f"{name}: {kind}" for name in SEEDS for kind in kinds]
    wanted += ["ensemble of other seeds (weak)", "ensemble of other settings (all runs)"]
    assert systems == wanted
    assert [row["split"] for row in rows] == ["validation", "evaluation"] * len(wanted)
    for folder in runs:  # what each run said itself
        own = [row["map"] for row in rows if row["system"].startswith(f"{folder.name}:")]
        assert own == [row["map"] for row in rows_of(folder / "results.csv")]


def test_ensembles_of_runs_are_of_their_averaged_weights(
    run: Run, runs: list[Path], corpus: Corpus, tmp_path: Path
) -> None:
    chance = torch.Generator().manual_seed(0)
    apart = []
    for folder in runs:  # so short a run leaves all its weights alike
        apart.append(changed_card(folder, tmp_path / folder.name))
        path = apart[-1] / "averaged.safetensors"
        contents = weight_files.read(path)
        tensors = {k: v + torch.randn(v.shape, generator=chance) for k, v in contents[0].items()}
        weight_files.write(path, tensors, contents.saved)
    words = ("--valid", corpus.folder, "-o", tmp_path / "all.csv", "--device", "cpu")
    assert run(*apart, *words)[0] == 0
    rows, scores, targets = rows_of(tmp_path / "all.csv"), [], np.zeros(0)
    for one in read_runs(apart):
        model = one.network()
        model.load_state_dict(weight_files.read(one.folder / "averaged.safetensors").tensors)
        found, targets = clip_table(model, corpus)
        scores.append(found)
    for row, taken in zip(rows[-2:], (scores[:2], scores), strict=True):
        found = weak_metrics(np.mean(taken, axis=0, dtype=np.float64), targets)
        assert int(row["n_models"]) == len(taken)
        assert row["map"] == f"{found.mean_ap:.6f}" and row["auc"] == f"{found.mean_auc:.6f}"


def test_runs_of_one_recipe_with_other_settings_have_other_names(runs: list[Path]) -> None:
    found = read_runs(runs)
    assert found[0].settings == found[1].settings != found[2].settings
    assert list(names_of_settings(found).values()) == ["weak", "weak #2"]


def test_without_kept_epochs_the_last_weights_stand_for_a_run(
    run: Run, runs: list[Path], corpus: Corpus, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("card.json", "model.safetensors"):
        shutil.copy(runs[0] / name, bare)
    words = ("--valid", corpus.folder, "-o", tmp_path / "one.csv", "--device", "cpu")
    code, _, err = run(bare, *words)
    assert code == 0, err
    (row,) = rows_of(tmp_path / "one.csv")
    assert row["system"] == "bare: last weights" and row["split"] == "validation"


def changed_card(folder: Path, target: Path, **config: object) -> Path:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("run"))
    card = json.loads((target / "card.json").read_text())
    card["config"] |= config
    (target / "card.json").write_text(json.dumps(card))
    return target


def test_mistakes_are_one_line(run: Run, runs: list[Path], corpus: Corpus, tmp_path: Path) -> None:
    first, second, _ = runs
    (tmp_path / "none").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "card.json").write_text("[]")
    strong = changed_card(first, tmp_path / "strong", stage="strong")
    other = changed_card(first, tmp_path / "other", backbone="fmn04")
    cases = [
        ([tmp_path / "none"], "is no run that has ended: there is no card.json"),
        ([tmp_path / "odd"], "is no card of `pretrain`"),
        ([strong], "is a run of the stage strong"),
        ([first, first], "are one run: same settings, seed 0"),
        ([other], "does not hold the network that its card tells"),
    ]
    for folders, message in cases:
        words = ("--valid", corpus.folder, "-o", tmp_path / "t.csv", "--device", "cpu")
        code, out, err = run(*folders, *words)
        assert code == 2 and message in err and err.count("\n") == 1 and out == "", err
    code, _, err = run(first, second, "--valid", tmp_path / "gone", "-o", tmp_path / "t.csv")
    assert code == 2 and "gone" in err
    code, _, err = run(first, "--valid", corpus.folder, "-o", tmp_path / "no" / "t.csv")
    assert code == 2 and "there is no folder" in err
    assert not (tmp_path / "t.csv").exists()


def test_refuses_runs_of_other_classes(runs: list[Path], tmp_path: Path) -> None:
    other = changed_card(runs[1], tmp_path / "other")
    contents = weight_files.read(other / "model.safetensors")
    saved = replace(contents.saved, labels=("a", "b", "c"))
    weight_files.write(other / "model.safetensors", contents.tensors, saved)
    with pytest.raises(ValueError, match=r"has other classes \(3\) than .*seed0 \(3\)"):
        read_runs([runs[0], other])
