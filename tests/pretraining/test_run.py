"""Every recipe, from a corpus to a checkpoint that the rest of the project takes in."""

from __future__ import annotations

import csv
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hear_pretrainedsed.audio import AudioError
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.registry import CHECKPOINTS
from hear_pretrainedsed.training.curve import read_curve
from hear_pretrainedsed.training.fit import Fitted, fit
from pretraining.average_command import checkpoints_of
from pretraining.clip_index import ClipIndex, Labelled
from pretraining.clips import decode
from pretraining.corpus import Corpus
from pretraining.corpus_writer import write_corpus
from pretraining.presets import PRESETS
from pretraining.run import run
from tests.pretraining.small_corpus import small_corpus, small_listing
from tests.pretraining.tiny_runs import (
    add_teacher,
    shrunken,
    state,
    tiny,  # noqa: F401
    tiny_run,
    write_pseudo,
)

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
    earlier = tmp_path / "out" / "epochs" / "step-00000099.safetensors"
    earlier.parent.mkdir(parents=True)
    earlier.touch()
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
    data = json.loads((tmp_path / "out" / "card.json").read_text())["data"]
    assert data["evaluation"] == data["valid"] and data["valid"]["sha256"] == corpus.sha256


def test_the_average_begins_later_than_the_ensemble(corpus, tmp_path) -> None:
    """As PSLA reports one run: all of its epochs together, the last ones averaged."""
    recipe = replace(shrunken(PRESETS["weak-psla-audioset"]), n_epochs=3, average_from_epoch=2)
    job = tiny_run(recipe, corpus, tmp_path / "out")
    run(job)
    files = sorted((job.out / "epochs").iterdir())
    _, second, third = (load_file(path) for path in files)
    for name, value in load_file(job.out / "averaged.safetensors").items():
        assert torch.allclose(value, (2 * second[name] + third[name]) / 3, atol=1e-6), name
    with (job.out / "results.csv").open() as file:
        n_models = {row["system"].split(" (")[0]: row["n_models"] for row in csv.DictReader(file)}
    assert n_models["ensemble of one run"] == "3"
    for given in (job.out, job.out / "epochs"):  # as the command does it again
        assert checkpoints_of(given) == files[1:]


def test_without_validation_epochs_are_kept_and_nothing_is_compared(corpus, tmp_path) -> None:
    job = tiny_run(shrunken(PRESETS["weak"]), corpus, tmp_path / "out")
    job = replace(job, sources=replace(job.sources, valid=None))
    for name in ("averaged.safetensors", "results.csv", "epochs.csv"):  # of an earlier run
        job.out.mkdir(exist_ok=True)
        (job.out / name).touch()
    made = run(job)
    every = job.plan.valid_every_steps
    steps = [path.stem for path in sorted((job.out / "epochs").iterdir())]
    assert steps == [f"step-{n * every:08d}" for n in (1, 2)]
    names = {path.name for path in job.out.iterdir()}
    assert names == {"card.json", "epochs", "model.safetensors", "run"}
    assert made.model.provenance["origin"]["metrics"]["mAP"] is None


def test_checkpoints_are_compared_on_the_device(corpus, tmp_path, monkeypatch) -> None:
    seen = []

    def table(model: SEDModel, corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
        seen.append(model.device.type)
        return np.zeros((len(corpus), 3)), np.eye(len(corpus), 3)

    def trained(*inputs: object, **more: object) -> Fitted:  # on what there is here
        *others, place = inputs
        return fit(*others, replace(place, device="cpu"), **more)

    monkeypatch.setattr("pretraining.weak_run.clip_table", table)
    monkeypatch.setattr("pretraining.run.fit", trained)
    job = tiny_run(shrunken(PRESETS["weak"]), corpus, tmp_path / "out")
    with warnings.catch_warnings(action="ignore"):  # weights are not copied there
        made = run(replace(job, place=replace(job.place, device="meta")))
    assert seen == ["meta"] * 3 and made.model.device.type == "cpu"


def test_broken_clips_are_told_after_a_kill_too(tmp_path, monkeypatch) -> None:
    corpus = small_corpus(tmp_path, 101, seconds=0.1)
    bad = corpus[7].audio

    def decoded(data: bytes) -> np.ndarray:
        if data == bad:
            raise AudioError("damaged")
        return decode(data)

    monkeypatch.setattr("pretraining.clips.decode", decoded)
    recipe = replace(shrunken(PRESETS["strong_teacher-no_rnn-beats"]), batch=30, n_epochs=1)
    job = tiny_run(replace(recipe, sampling="uniform"), corpus, tmp_path / "out")
    job = replace(job, sources=replace(job.sources, valid=None))

    def killed(line: str) -> None:
        if line.startswith("step 4 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(replace(job, tell=killed))
    assert list(job.order.epoch(0)).index(7) < 90  # what is left is another step
    with pytest.warns(UserWarning, match="^1 clip cannot be decoded: clip7_0 .* took their places"):
        run(job)
    card = json.loads((job.out / "card.json").read_text())
    assert card["broken_clips"] == {"count": 1, "names": ["clip7_0"]}
    assert (job.out / "run/broken.txt").read_text() == "clip7_0\tdamaged\n"


def test_broken_clips_of_a_run_that_left_nothing_are_not_told(corpus, tmp_path) -> None:
    (tmp_path / "out" / "run").mkdir(parents=True)
    (tmp_path / "out" / "run" / "broken.txt").write_text("another_0\tdamaged\n")
    recipe = replace(shrunken(PRESETS["strong_teacher-no_rnn-beats"]), n_epochs=1)
    run(tiny_run(recipe, corpus, tmp_path / "out"))
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["broken_clips"]["count"] == 0


def test_the_licences_of_pseudo_labels_models_are_told(corpus, tmp_path) -> None:
    job = tiny_run(shrunken(PRESETS["strong_student"]), corpus, tmp_path / "out")
    none_known = run(job).model.provenance["origin"]["licence"]
    assert none_known["pseudo labels"].startswith("not known")
    models = [{"checkpoint": name, "sha256": "0"} for name in ("beats.strong", "fmn04.strong-gone")]
    labels = write_pseudo(tmp_path / "made_here.h5", corpus)
    with h5py.File(labels, "a") as file:
        file.attrs["origin"] = json.dumps({"models": models})
    job = replace(job, sources=replace(job.sources, pseudo_labels=labels), out=tmp_path / "again")
    known = run(job).model.provenance["origin"]["licence"]
    assert known["beats.strong"] == CHECKPOINTS["beats.strong"].licence
    assert known["fmn04.strong-gone"].startswith("not known") and "pseudo labels" not in known


@pytest.mark.parametrize("name", ["weak-psla-audioset", "weak", "best-onsets", "fmn_online"])
def test_recipes_in_bf16(name, corpus, tmp_path, monkeypatch) -> None:
    recipe = replace(shrunken(PRESETS[name]), precision="bf16")
    teacher = add_teacher(tmp_path, monkeypatch) if recipe.pseudo == "teacher" else None
    made = run(tiny_run(recipe, corpus, tmp_path / "out", teacher=teacher))
    assert made is not None and math.isfinite(made.fitted.loss)
    assert all(value.dtype != torch.bfloat16 for value in state(made.model).values())


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Corpora on which nothing can be scored, by what they are."""
    folder = tmp_path_factory.mktemp("others")
    foreign = small_listing(folder / "foreign", 2)
    foreign = replace(foreign, labels=("Rain", "Wind", "Sea"))
    found = {"foreign": write_corpus(foreign, folder / "foreign" / "corpus"), "none": folder / "no"}
    silent = small_listing(folder / "silent", 2)
    empty = [Labelled(name, (), ()) for name in silent.index.names]
    silent = replace(silent, index=ClipIndex.of(empty))
    found["silent"] = write_corpus(silent, folder / "silent" / "corpus")
    weak = replace(silent, index=ClipIndex.of(Labelled(row.name, None, (0,)) for row in empty))
    found["weak"] = write_corpus(weak, folder / "weak")
    return found


@pytest.mark.parametrize(
    ("preset", "sources", "message"),
    [
        ("strong", {"valid": "weak"}, "weak has clips without events: PSDS1 needs a strong"),
        ("strong", {"valid": "foreign"}, "has none of the 3 classes that are learned"),
        ("strong", {"valid": "silent"}, "no clip has an event of the shared classes"),
        ("strong", {"valid": "none"}, "no corpus, it has no manifest.json"),
        ("strong", {"evaluation": "weak"}, "it is for weak runs, and strong_teacher-no_rnn-beats"),
        ("weak", {"valid": "foreign"}, "has none of the 3 classes that are learned"),
        ("weak", {"valid": "silent"}, "no clip has a label of the shared classes"),
        ("weak", {"evaluation": "none"}, "no corpus, it has no manifest.json"),
        ("weak", {"evaluation": "foreign"}, "has none of the 3 classes that are learned"),
        ("weak", {"valid": None, "evaluation": "weak"}, "is chosen on --valid, which is missing"),
        ("weak-none", {"evaluation": "weak"}, "with keep_from_epoch None none are"),
        ("online", {"weak_corpus": "weak"}, "weak_objective strong needs them"),
        ("online", {"weak_corpus": "foreign"}, "its 3 classes are not the 3 wanted"),
    ],
)
def test_corpora_are_seen_before_a_folder_is_made(
    preset, sources, message, corpus, others, tmp_path
) -> None:
    recipe = {
        "strong": shrunken(PRESETS["strong_teacher-no_rnn-beats"]),
        "weak": shrunken(PRESETS["weak"]),
        "weak-none": replace(shrunken(PRESETS["weak"]), keep_from_epoch=None),
        "online": replace(
            shrunken(PRESETS["strong_teacher-no_rnn-beats"]), weak_batch=2, weak_objective="strong"
        ),
    }[preset]
    given = {name: which and others[which] for name, which in sources.items()}
    with pytest.raises(ValueError, match=message) as error:
        job = tiny_run(recipe, corpus, tmp_path / "out")
        run(replace(job, sources=replace(job.sources, **given)))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["corpus", "weak_corpus", "valid"])
@pytest.mark.parametrize("inside", [".", "out/deeper"])
def test_no_run_is_written_into_a_corpus(source, inside, corpus, tmp_path, monkeypatch) -> None:
    """However its folder is told."""
    monkeypatch.chdir(corpus.folder.parent)
    before = sorted(corpus.folder.rglob("*"))
    recipe = shrunken(PRESETS["strong_teacher-no_rnn-beats"])
    recipe = replace(recipe, weak_batch=2, weak_objective="strong")
    job = tiny_run(recipe, corpus, tmp_path / "out")
    folders = {name: tmp_path for name in ("corpus", "weak_corpus", "valid")}
    sources = replace(job.sources, **folders | {source: Path(corpus.folder.name)})
    message = "^-o .* lies in the corpus corpus: give a folder outside of it"
    with pytest.raises(ValueError, match=message):
        replace(job, sources=sources, out=corpus.folder / inside)
    assert sorted(corpus.folder.rglob("*")) == before
    out = tmp_path / "model.h5"
    out.write_text("mine")
    for path in (out, out / "deeper"):
        with pytest.raises(ValueError, match="^-o takes a folder, and .*model.h5 is a file"):
            replace(job, out=path)


def test_a_corpus_that_cannot_be_decoded_is_seen_before_a_folder_is_made(
    corpus, tmp_path, monkeypatch
) -> None:
    def broken(data: bytes) -> np.ndarray:
        raise AudioError("damaged")

    monkeypatch.setattr("pretraining.validation.decode", broken)
    job = tiny_run(shrunken(PRESETS["weak"]), corpus, tmp_path / "out")
    with pytest.raises(ValueError, match="5 clips cannot be decoded: clip0_0, .*damaged"):
        run(job)
    assert not (tmp_path / "out").exists()


def test_damaged_weights_of_an_epoch_are_named(corpus, tmp_path) -> None:
    job = tiny_run(shrunken(PRESETS["weak"]), corpus, tmp_path / "out")
    run(job)
    kept = sorted((job.out / "run" / "kept").iterdir())[0]
    kept.write_bytes(kept.read_bytes()[:1000])
    told = f"^{kept} is damaged .*no weights of that step$"
    with pytest.raises(ValueError, match=told):
        run(job)


def test_the_card_has_the_licence_of_each_corpus(corpus, tmp_path, monkeypatch) -> None:
    teacher = add_teacher(tmp_path, monkeypatch)
    job = tiny_run(shrunken(PRESETS["fmn_online"]), corpus, tmp_path / "out", teacher=teacher)
    listing = small_listing(tmp_path / "weak", 2)
    weak = write_corpus(listing, tmp_path / "weak" / "corpus", licence="CC BY 4.0")
    job = replace(job, sources=replace(job.sources, weak_corpus=weak))
    licence = run(job).model.provenance["origin"]["licence"]
    assert licence["weak corpus"] == "CC BY 4.0" and licence["corpus"].startswith("not stated")


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
