"""The command pretrain: plans without a corpus, checkpoints that the project takes in, mistakes."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import hear_pretrainedsed as hps
from hear_pretrainedsed import cli
from hear_pretrainedsed.model import build_checkpoint
from hear_pretrainedsed.registry import CHECKPOINTS
from hear_pretrainedsed.user_registry import import_checkpoint, remove_checkpoint
from pretraining import command
from pretraining.clip_index import ClipIndex
from pretraining.corpus import Corpus
from pretraining.corpus_writer import write_corpus
from pretraining.presets import PRESETS
from pretraining.pseudo_labels import PseudoLabels, write_pseudo_labels
from tests.pretraining.small_corpus import LABELS, small_corpus, small_listing

Run = Callable[..., tuple[int, str, str]]

SMALL = ("--device", "cpu", "--max-steps", 2, "--logger", "none", "--set", "batch=2")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"), 4)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], few_threads: None) -> Run:
    """Run the command in this process: (exit code, stdout, stderr)."""
    torch.set_num_threads(1)

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["pretrain", *map(str, words)])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def test_a_plan_needs_no_corpus(run: Run) -> None:
    size = ("--dry-run", "--corpus-size", 100_000, "--clips-per-s", 500)
    code, out, err = run("--preset", "fmn_student-fmn04", *size, "--device", "cpu")
    assert (code, err) == (0, "")
    assert "46920 in 120 epochs of 391; 20000 of warm-up, then cosine" in out
    assert "128 clips x 2 a step" in out and "PSDS1 39.52" in out
    assert "6.7 hours for 12000000 clips at 500 clips/s (as given)" in out
    assert "block 16, matrices" in out and "memory:" in out and "447 classes" in out


def test_a_plan_measures_and_opens_the_corpus(run: Run, corpus: Corpus) -> None:
    words = ("--preset", "best", "--backbone", "fmn04", "--corpus", corpus.folder, "--dry-run")
    code, out, _ = run(*words, "--device", "cpu", "--precision", "fp32", "--batch-size", 1)
    assert code == 0 and "corpus:       4 clips" in out and "head linear of 3 classes" in out
    assert "clips/s (measured here" in out and "precision fp32" in out


def test_a_plan_of_two_streams(run: Run) -> None:
    size = ("--dry-run", "--corpus-size", 100_000, "--clips-per-s", 500, "--backbone", "fmn04")
    code, out, _ = run("--preset", "fmn_online", *size, "--device", "cpu")
    assert code == 0 and "93840 in 240 epochs" in out
    assert ", the teacher 0.34 GiB)" in out  # BEATs' 90 M weights
    assert "64 clips x 4 a step, and 64 x 4 of the weak corpus" in out
    assert "for 48000000 clips" in out and "from the teacher beats.strong" in out


def test_a_plan_is_of_the_network_that_is_trained(run: Run) -> None:
    """A start brings its own sequence model, and onsets have a part of the head."""
    size = ("--dry-run", "--corpus-size", 1000, "--clips-per-s", 10, "--device", "cpu")
    code, out, _ = run("--preset", "best", "-c", "fmn10.strong+gru-1024", *size)
    trained = build_checkpoint(CHECKPOINTS["fmn10.strong+gru-1024"]).n_parameters
    trained -= 447 * (2048 + 1)  # the clip's head, which stage strong does not train
    assert code == 0 and f"BiGru of the start, head linear of 447 classes; {trained:,} para" in out
    assert "start:        fmn10.strong+gru-1024" in out
    code, plain, _ = run("--preset", "best", "--backbone", "fmn04", *size)
    code, onsets, _ = run("--preset", "best-onsets", "--backbone", "fmn04", *size)
    counts = [
        int(re.search(r"([\d,]+) parameters$", text, re.M)[1].replace(",", ""))
        for text in (plain, onsets)
    ]
    assert counts[1] - counts[0] == 2 * 447 * (384 + 1)
    code, _, err = run("--preset", "best", "--backbone", "fmn04", "-c", "fmn04.weak", *size)
    assert code == 2 and "--checkpoint and --backbone exclude each other" in err


def test_a_plan_counts_the_clips_that_are_drawn(run: Run, tmp_path: Path) -> None:
    """As the run does: those without events never are, where rare classes come more often."""
    listing = small_listing(tmp_path, 5)
    rows = [listing.index.row(i) for i in range(5)]
    rows = [row._replace(events=()) if i < 3 else row for i, row in enumerate(rows)]
    listing = replace(listing, index=ClipIndex.of(rows))
    folder = write_corpus(listing, tmp_path / "corpus")
    words = ("--preset", "strong_teacher-no_rnn-beats", "--corpus", folder, "--backbone", "fmn04")
    words = (*words, "--device", "cpu", "--set", "batch=1", "--set", "n_epochs=2")
    code, out, _ = run(*words, "--dry-run", "--clips-per-s", 1)
    assert code == 0 and "corpus:       2 clips to draw from; an epoch has 2" in out
    assert "steps:        4 in 2 epochs of 2" in out
    code, out, err = run(*words, "--logger", "none", "-o", tmp_path / "out")
    assert code == 0 and out.startswith("4 steps"), err


def test_the_list_names_every_preset(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    code, out, _ = run("--list")
    assert code == 0
    first = {line.split()[0] for line in out.splitlines() if line.split()}
    assert set(PRESETS) <= first and "PSDS1 46.5" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --preset NAME"),
        (["--preset", "strong_techer"], "did you mean 'strong_teacher'"),
        (["--preset", "best", "--set", "lrr=1"], "unknown field 'lrr'; did you mean 'lr'"),
        (["--preset", "best", "--precision", "fp16"], "unknown precision 'fp16'"),
        (["--preset", "best", "--logger", "tensorbord"], "did you mean 'tensorboard'"),
        (["--preset", "best"], "give --corpus DIR"),
        (["--preset", "best", "--corpus", "."], "give --out DIR"),
        (["--preset", "best", "--corpus", ".", "-o", "o"], "needs --pseudo-labels"),
        (
            ["--preset", "weak", "--corpus", ".", "-o", "o", "--teacher", "x"],
            "does not use --teach",
        ),
        (["--preset", "best", "--dry-run"], "--dry-run needs --corpus DIR or --corpus-size"),
        (["--preset", "best", "--dry-run", "--corpus-size", "9"], "has no start of its own"),
        (
            ["--preset", "best", "--dry-run", "--corpus-size", "9", "--backbone", "fmn4"],
            "unknown backbone 'fmn4'; did you mean 'fmn04'",
        ),
    ],
)
def test_mistakes_are_one_line(run: Run, words: list[str], message: str) -> None:
    code, out, err = run(*words, "--device", "cpu")
    assert code == 2 and message in err and err.count("\n") == 1 and out == ""


def test_no_folder_is_made_by_a_mistake(run: Run, corpus: Corpus, tmp_path: Path) -> None:
    words = ("--preset", "fmn_online", "--corpus", corpus.folder, "-o", tmp_path / "out")
    code, _, err = run(*words, "--device", "cpu")
    assert code == 2 and "the recipe fmn_online needs --weak-corpus" in err
    assert not (tmp_path / "out").exists()


def test_the_bar_has_clips_a_second_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=200)
    monkeypatch.setattr(command, "Console", lambda stderr: console)
    monkeypatch.setattr(command.sys.stderr, "isatty", lambda: True, raising=False)
    now = iter(float(i) for i in range(100))
    monkeypatch.setattr(command.time, "monotonic", lambda: next(now))
    with command.progress_bar(PRESETS["fmn_online"], 9) as tell:
        for step in range(5, 10):  # as after a kill
            tell(f"step {step} of 9, loss 0.5")
    assert "512.0 clips/s" in shown.getvalue() and "step 9 of 9, loss 0.5" in shown.getvalue()
    assert "0:00:0" in shown.getvalue()


def imported(path: Path, name: str) -> str:
    with warnings.catch_warnings(action="ignore"):
        import_checkpoint(path, name)
    return name


@pytest.mark.slow
def test_each_stage_takes_in_the_last(run: Run, corpus: Corpus, tmp_path: Path) -> None:
    """weak, teacher, pseudo labels, student: each file imported, the last one used."""

    def make(preset: str, *more: object) -> Path:
        out = tmp_path / preset
        sources = ("--corpus", corpus.folder, "--valid", corpus.folder, "-o", out)
        code, printed, err = run("--preset", preset, *sources, *SMALL, *more)
        assert code == 0, err
        assert printed.splitlines()[-1] == str(out / "model.safetensors")
        return out / "model.safetensors"

    names = []
    try:
        names.append(imported(make("weak", "--backbone", "fmn04"), "fmn04.weak-mine"))
        narrow = ("-c", names[-1], "--set", "sequence_model=gru-16")
        teacher = make("strong_teacher", *narrow)
        names.append(imported(teacher, "fmn04.strong-teacher+gru-16"))
        labels = tmp_path / "ensemble.h5"
        write_pseudo_labels([hps.load_model(checkpoint=names[-1])], corpus, labels)
        assert PseudoLabels(labels).shape == (4, 3, 250)
        student = make("strong_student", "-c", names[0], "--pseudo-labels", labels)
        names.append(imported(student, "fmn04.strong-mine"))
        check_student(names[-1], corpus, teacher=names[1])
    finally:
        for name in names:
            remove_checkpoint(name)


def check_student(name: str, corpus: Corpus, teacher: str) -> None:
    """It is a checkpoint like any other (`test_after_pretraining`), with a card of its origin."""
    model = hps.load_model(checkpoint=name)
    assert model.labels == LABELS and model.scores(torch.randn(1, 32_000)).shape == (1, 50, 3)
    assert isinstance(hps.detect(torch.randn(32_000), model), list)
    card = model.provenance["origin"]
    assert card["mode"] == "pretrain" and card["data"]["corpus"]["sha256"] == corpus.sha256
    assert "made by the recipe strong_student" in CHECKPOINTS[name].note
    roles = {parent["role"]: parent for parent in card["parents"]}
    start, ensemble = roles["start"], roles["pseudo labels"]
    assert start["checkpoint"] == "fmn04.weak-mine" and len(start["sha256"]) == 64
    (made_of,) = ensemble["origin"]["models"]
    assert made_of["checkpoint"] == teacher and len(made_of["sha256"]) == 64
    assert 0 <= card["metrics"]["psds1_macro"] <= 1 and card["licence"]
    assert json.dumps(card)
