"""The plan before a run: clips, memory and speed are the run's, and so are the mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hear_pretrainedsed.training.new_head import with_head
from hear_pretrainedsed.training.plan import Place
from pretraining.build import random_model
from pretraining.clip_index import ClipIndex, Labelled
from pretraining.clips import Clips
from pretraining.corpus import Corpus
from pretraining.corpus_writer import write_corpus
from pretraining.plan_text import Outlook, measured_clips_per_s
from pretraining.presets import PRESETS
from pretraining.sampling import ClipOrder
from tests.pretraining.small_corpus import LABELS, small_corpus, small_listing
from tests.pretraining.tiny_runs import add_teacher, tiny, write_pseudo  # noqa: F401

Call = Callable[..., tuple[int, str, str]]

PLAN = ("--dry-run", "--clips-per-s", 5)
SIZE = (*PLAN, "--corpus-size", 100)
TINY = ("--backbone", "tiny")
STUDENT = ("--preset", "fmn_student-fmn04", *TINY)
TEACHER = ("--preset", "strong_teacher-no_rnn-beats", *TINY)
ONLINE = ("--preset", "fmn_online", "--set", "sequence_model=None", *TINY)
WEAK = ("--preset", "weak", *TINY)

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"), 5)


@pytest.fixture(scope="module")
def weak_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus without events."""
    folder = tmp_path_factory.mktemp("weak")
    listing = small_listing(folder, 3)
    rows = (Labelled(listing.index.row(i).name, None, (0,)) for i in range(3))
    return write_corpus(replace(listing, index=ClipIndex.of(rows)), folder / "corpus")


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint with the small corpus' classes."""
    return add_teacher(tmp_path, monkeypatch)


# ---- clips ----


@pytest.mark.parametrize("n_steps", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("batch", [2, 5, 99])
def test_steps_see_as_many_clips_as_their_order_has(
    corpus: Corpus, n_steps: int, batch: int
) -> None:
    recipe = replace(PRESETS["strong_teacher"], batch=batch, epoch_clips=None)
    order = ClipOrder(Clips(corpus), batch, 0)
    assert recipe.clips_in(n_steps, 5) == sum(len(order.step(i)) for i in range(n_steps))


def test_a_plan_counts_epochs_not_whole_batches(call: Call) -> None:
    code, out, _ = call(*STUDENT, *SIZE, "--set", "n_epochs=120")
    assert code == 0 and "0.7 hours for 12000 clips at 5" in out
    code, huge, _ = call(*STUDENT, *SIZE, "--set", "batch=99999999")
    assert code == 0 and "0.7 hours for 12000 clips at 5" in huge
    assert "99999999 clips x 2 a step (100 at most: so many are an epoch)" in huge
    line = re.compile(r"^memory: .*", re.M)
    assert line.search(huge)[0] == line.search(out)[0]  # both see all 100 at once


def test_a_plan_counts_the_second_corpus_as_it_is(
    call: Call, weak_folder: Path, teacher: str
) -> None:
    words = ("--set", "n_epochs=2", "--set", "batch=2", "--set", "accumulation=1")
    words = (*ONLINE, *PLAN, *words, "--set", "weak_batch=2", "--corpus-size", 5)
    words = (*words, "--set", "n_classes=3", "--teacher", teacher)
    code, out, err = call(*words, "--weak-corpus", weak_folder)
    assert code == 0, err  # 2 x 5, and in 6 steps of 2, 1, 2, 1, 2, 1 of three clips
    assert "for 19 clips" in out


# ---- memory and speed ----


def outlook(teacher: torch.nn.Module | None) -> Outlook:
    recipe = replace(PRESETS["fmn_online"], batch=2, weak_batch=2, accumulation=1)
    model = with_head(random_model("tiny", 0), LABELS, 0)
    place = Place(Path("."), micro_pieces=2)
    return Outlook(recipe, recipe.plan(100), 100, model, place, 1.0, teacher)


def test_a_teacher_needs_memory() -> None:
    teacher = with_head(random_model("tiny", 1), LABELS, 1)
    alone, both = outlook(None).memory(), outlook(teacher).memory()
    held = sum(t.numel() for t in (*teacher.parameters(), *teacher.buffers()))
    assert both.teacher == 4 * held and alone.teacher == 0
    spec = teacher.frontend(torch.zeros(1, 160_000)).numel()
    assert both.batch - alone.batch == 4 * 4 * spec  # of both streams' clips
    assert both.total == alone.total + both.teacher + 4 * 4 * spec


def test_a_teacher_takes_time() -> None:
    """It hears the clips of every step that is measured, without gradients."""
    teacher = with_head(random_model("tiny", 1), LABELS, 1)
    heard: list[tuple[int, bool]] = []
    teacher.backbone.register_forward_hook(
        lambda module, inputs, tokens: heard.append((len(inputs[0]), tokens.requires_grad))
    )
    plan = outlook(None)
    assert measured_clips_per_s(plan.model, plan.plan, 160_000, teacher) > 0
    assert heard == [(4, False)] * 2
    lines = replace(plan, teacher=teacher, clips_per_s=None).lines()
    (time,) = (line for line in lines if line.startswith("time:"))
    assert "and the teacher's forward" in time and len(heard) == 4


def test_a_plan_builds_the_teacher_of_the_recipe(
    call: Call, monkeypatch: pytest.MonkeyPatch, teacher: str
) -> None:
    seen = []

    def measured(model: object, plan: object, size: int, teacher: object = None) -> float:
        seen.append(teacher)
        return 1.0

    monkeypatch.setattr("pretraining.plan_text.measured_clips_per_s", measured)
    words = ("--set", f"teacher={teacher}", "--set", "n_classes=3", "--dry-run")
    assert call(*ONLINE, *words, "--corpus-size", 100)[0] == 0
    assert call(*TEACHER, "--dry-run", "--corpus-size", 100)[0] == 0
    assert (seen[0].labels, seen[1]) == (LABELS, None)


def test_memory_is_told_with_a_margin(call: Call) -> None:
    """Processes were measured at up to 1.35 times what their tensors hold."""
    need = outlook(None).memory()
    assert need.at_most >= 1.35 * need.total
    code, out, _ = call(*STUDENT, *SIZE)
    found = re.search(r"about ([\d.]+) GiB of tensors .* up to ([\d.]+) GiB$", out, re.M)
    assert code == 0 and float(found[2]) == pytest.approx(1.4 * float(found[1]), abs=0.02)


# ---- mistakes ----


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*STUDENT, "--teacher", "nosuch"), "does not use --teacher (got nosuch)"),
        ((*STUDENT, "--weak-corpus", "/nope"), "does not use --weak-corpus (got /nope)"),
        ((*TEACHER, "--pseudo-labels", "/nope.h5"), "does not use --pseudo-labels (got /nope.h5)"),
        ((*STUDENT, "--pseudo-labels", "/nope.h5"), "/nope.h5"),
        ((*STUDENT, "--valid", "/nope"), "/nope: no corpus, it has no manifest.json"),
        ((*STUDENT, "--corpus", "/nope"), "/nope: no corpus, it has no manifest.json"),
        ((*STUDENT, "--eval", "/nope"), "it is for weak runs, and fmn_student-fmn04 is a strong"),
        ((*WEAK, "--eval", "/nope"), "is chosen on --valid, which is missing"),
        ((*WEAK, "--valid", "CORPUS", "--eval", "/nope"), "/nope: no corpus"),
        ((*ONLINE, "--weak-corpus", "/nope"), "/nope: no corpus, it has no manifest.json"),
        ((*ONLINE, "--set", "teacher=beats.strng"), "'beats.strng'; did you mean 'beats.strong'"),
        ((*ONLINE, "--teacher", "beats.strng"), "'beats.strng'; did you mean 'beats.strong'"),
        ((*ONLINE, "--teacher", "beats.ssl"), "beats.ssl has other classes (0) than n_classes"),
        ((*ONLINE, "--corpus", "CORPUS"), "beats.strong has other classes (447) than CORPUS (3)"),
        ((*TEACHER, "--corpus", "WEAK"), "WEAK has clips without events: stage strong needs them"),
        ((*TEACHER, "--corpus", "CORPUS", "--valid", "WEAK"), "PSDS1 needs a strong corpus"),
    ],
)
def test_a_plan_refuses_what_a_run_refuses(
    call: Call, corpus: Corpus, weak_folder: Path, words: tuple, message: str
) -> None:
    places = {"CORPUS": str(corpus.folder), "WEAK": str(weak_folder)}
    for name, folder in places.items():
        message = message.replace(name, folder)
    given = [places.get(word, word) for word in words]
    code, out, err = call(*given, *SIZE)
    assert code == 2 and message in err and err.count("\n") == 1 and out == "", err


def test_a_plan_looks_into_pseudo_labels(call: Call, corpus: Corpus, tmp_path: Path) -> None:
    given = ("--preset", "best", *TINY, *PLAN, "--corpus", corpus.folder)
    file = write_pseudo(tmp_path / "pseudo.h5", corpus)
    assert call(*given, "--pseudo-labels", file, "--valid", corpus.folder)[0] == 0
    other = small_corpus(tmp_path / "other", 6)
    given = (*given[:-1], other.folder)
    code, out, err = call(*given, "--pseudo-labels", file)
    assert code == 2 and out == "" and "of other clips: 1 of 6" in err


def test_a_plan_asks_for_no_more_than_it_is_given(call: Call, teacher: str) -> None:
    """What a recipe learns from need not be there yet."""
    for words in (STUDENT, (*ONLINE, "--teacher", teacher, "--set", "n_classes=3"), WEAK):
        code, _, err = call(*words, *SIZE)
        assert code == 0, err
