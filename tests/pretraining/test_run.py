"""Every recipe, from a corpus to a checkpoint that the rest of the project takes in."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from hear_pretrainedsed.training.curve import read_curve
from pretraining.corpus import Corpus
from pretraining.presets import PRESETS
from pretraining.run import run
from tests.pretraining.small_corpus import small_corpus
from tests.pretraining.tiny_runs import add_teacher, shrunken, state, tiny, tiny_run  # noqa: F401

HEAD = {f"head.{part}.{kind}" for part in ("strong", "weak") for kind in ("weight", "bias")} | {
    "head.head_weight",
    *(f"head.{m}.{i}.{k}" for m in ("att", "cla") for i in range(4) for k in ("weight", "bias")),
}

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"), 5)


def families() -> dict[str, str]:
    """Presets by what is left of them when they are shrunken: one name of each kind."""
    found: dict[str, str] = {}
    for name, recipe in PRESETS.items():
        told = dict.fromkeys(("name", "reproduces", "published"), "")
        kind = replace(shrunken(recipe), **told, lr=1.0, backbone_lr=1.0)
        found.setdefault(repr(kind), name)
    return found


@pytest.mark.parametrize("name", families().values())
def test_every_recipe_makes_a_checkpoint(name, corpus, tmp_path, monkeypatch) -> None:
    recipe = shrunken(PRESETS[name])
    teacher = add_teacher(tmp_path, monkeypatch) if recipe.pseudo == "teacher" else None
    job = tiny_run(recipe, corpus, tmp_path / "out", teacher=teacher)
    before = state(job.start())
    made = run(job)
    assert made is not None and math.isfinite(made.fitted.valid_score)
    after = state(made.model)
    moved = [k for k in before if k in after and not torch.equal(before[k], after[k])]
    assert {k.split(".")[0] for k in moved} >= {"backbone", "head"}
    assert {k for k in load_file(made.path) if k.startswith("head.")} <= HEAD
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["recipe"] == name and card["data"]["corpus"]["sha256"] == corpus.sha256
    steps = [int(row["step"]) for row in read_curve(tmp_path / "out/run/log/metrics.csv")]
    assert sorted(set(steps)) == list(range(1, made.fitted.n_steps + 1))


def test_a_weak_run_s_checkpoints_are_averaged_and_compared(corpus, tmp_path) -> None:
    recipe = shrunken(PRESETS["weak-psla-audioset"])
    job = tiny_run(recipe, corpus, tmp_path / "out")
    job = replace(job, sources=replace(job.sources, evaluation=corpus.folder))
    made = run(job)
    files = sorted((tmp_path / "out" / "epochs").iterdir())
    every = job.plan.valid_every_steps
    assert [path.stem for path in files] == [f"step-{n * every:08d}" for n in (1, 2)]
    first, last = (load_file(path) for path in files)
    assert all(torch.equal(last[k], v) for k, v in state(made.model).items())
    mean = load_file(tmp_path / "out" / "averaged.safetensors")
    for name, value in mean.items():
        assert torch.allclose(value, (2 * first[name] + last[name]) / 3, atol=1e-6), name
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    systems = [row["system"].split(" (")[0] for row in rows]
    assert systems[::2] == ["best single", "ensemble of one run", "averaged weights"]
    assert {row["split"] for row in rows} == {"validation", "evaluation"}
    best = next(row for row in rows if row["split"] == "validation")
    scores = [score for _, score in made.fitted.valid_scores]
    assert float(best["map"]) == pytest.approx(max(scores), abs=1e-5)


@pytest.mark.parametrize("name", ["weak-psla-audioset", "weak", "best-onsets", "fmn_online"])
def test_recipes_in_bf16(name, corpus, tmp_path, monkeypatch) -> None:
    recipe = replace(shrunken(PRESETS[name]), precision="bf16")
    teacher = add_teacher(tmp_path, monkeypatch) if recipe.pseudo == "teacher" else None
    made = run(tiny_run(recipe, corpus, tmp_path / "out", teacher=teacher))
    assert made is not None and math.isfinite(made.fitted.loss)
    assert all(value.dtype != torch.bfloat16 for value in state(made.model).values())


def test_statistics_of_norms_move_as_told(corpus, tmp_path) -> None:
    """From a random start they have to: a network of many norms gives a constant until then."""
    recipe = replace(shrunken(PRESETS["strong_teacher-no_rnn-beats"]), n_epochs=1)
    means = []
    for momentum in (None, 0.5):
        job = tiny_run(replace(recipe, norm_momentum=momentum), corpus, tmp_path / str(momentum))
        job = replace(job, sources=replace(job.sources, backbone="fmn04"), max_steps=1)
        made = run(job)
        norm = next(m for m in made.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
        means.append(norm.running_mean)
    assert torch.allclose(means[1] / means[0], torch.tensor(50.0), rtol=1e-3)
