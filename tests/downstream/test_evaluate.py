"""`hear-pretrainedsed evaluate`, from the command line to its lines and its table."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from downstream import embeddings, finetune, sweep
from downstream import evaluate as evaluation
from downstream.embeddings import FrameSource, Weights
from downstream.finetune_recipes import RECIPES
from downstream.protocols import PROTOCOLS, Settings
from downstream.tasks import LabelChoice, open_task
from hear_pretrainedsed import cli, plugins
from hear_pretrainedsed.model import SEDModel
from tests.downstream import task_folders
from tests.downstream.probe_task import MadeUpSource, made_up_task
from tests.downstream.tone_task import tone_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import hear_task  # noqa: E402

NAME = "fmn04.strong"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = {"train": 6, "valid": 3, "test": 12}
    return hear_task.write_task(tmp_path_factory.mktemp("tasks"), clips)


@pytest.fixture
def home(own_cache: Path, release_file: Callable[[str], Path]) -> Path:
    shutil.copy(release_file(NAME), own_cache)
    torch.set_num_threads(1)
    return own_cache


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in arguments])
    return stop.value.code


def common(task: Path, results: Path) -> list[object]:
    words = ["evaluate", "--checkpoints", NAME, "--tasks", task, "--results", results]
    return [*words, "--grid", "faster", "--grid-points", 1, "--steps-scale", 0.02]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:first load")
def test_a_cell_a_line_and_the_same_command_goes_on(
    home: Path,
    task: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = common(task, tmp_path / "r")
    words += ["--protocols", "hear,paper", "--modes", "probe", "knn", "--seeds", 2]
    assert run(*words) == 0
    shown = capsys.readouterr().out
    cells = [json.loads(line) for line in (tmp_path / "r" / "results.jsonl").open()]
    kinds = [(c["protocol"], c["mode"], c["seed"]) for c in cells]
    assert kinds == [
        ("hear", "probe", 0),
        ("hear", "probe", 1),
        ("hear", "knn", 0),
        ("paper-scaled", "probe", 0),
        ("paper-scaled", "probe", 1),
        ("paper", "knn", 0),
    ]
    for cell in cells:
        assert cell["checkpoint"] == NAME
        assert len(cell["weights_sha256"]) == 64
        assert list(cell["metrics"]) == ["event_onset_200ms_fms", "segment_1s_er"]
        assert cell["main_metric"] == "event_onset_200ms_fms"
        assert cell["unit"] == "clip"
    assert cells[0]["config"] == {"precision": "fp32", "grid": "faster", "grid_points": 1}
    assert cells[3]["config"] == {"precision": "fp32", "steps_scale": 0.02}
    assert cells[5]["config"] == {"precision": "fp32"}
    for part in ("protocol hear, probe", "protocol paper-scaled, probe", "protocol paper, knn"):
        assert part in shown
    monkeypatch.setattr(sweep, "score_task", lambda *_: pytest.fail("run again"))
    assert run(*words) == 0
    assert capsys.readouterr().out == shown
    assert len((tmp_path / "r" / "results.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--checkpoints", "fmn04.strnog"], "'fmn04.strnog'.*fmn04.strong"),
        (["--protocols", "papre"], "'papre'.*paper"),
        (["--modes", "prob"], "'prob'.*probe"),
        (["--precision", "fp16"], "'fp16'.*bf16"),
        (["--grid", "fastest"], "'fastest'.*fast"),
        (["--tasks", "dcase2016_task"], "'dcase2016_task'.*dcase2016_task2.*folder"),
        (["--tasks", "dcase2016_task2"], "no data of dcase2016_task2"),
        (["--tasks", "none/here"], "there is no folder none/here"),
        (["--labels", "x.tsv"], "for recordings of your own, and synthetic_events has"),
        (["--steps-scale", "-1", "--protocols", "paper"], "-1"),
        (["--seeds", "0"], "seeds"),
        (["--batch-size", "0"], "--batch-size is 0; it is at least 1"),
        (["--checkpoints", ""], "--checkpoints is ''; it takes one name or more"),
        (["--tasks", ","], "--tasks is ','; it takes one name or more"),
        (["--protocols", ""], "--protocols is ''; it takes one name or more"),
        (["--modes", ""], "--modes is ''; it takes one name or more"),
    ],
)
@pytest.mark.filterwarnings("ignore:first load")
def test_a_mistake_is_one_line(
    home: Path,
    task: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: list[str],
    message: str,
) -> None:
    words = common(task, tmp_path / "r")
    for option in change[::2]:
        if option in words:
            place = words.index(option)
            del words[place : place + 2]
    assert run(*words, *change) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error), error
    assert not (tmp_path / "r" / "results.jsonl").exists()


BY_LOSS = {"use_scoring_for_early_stopping": False}


def small_task(folder: Path, min_duration: list[int], metadata: dict) -> Path:
    """A HEAR folder with a median and these minimum durations to choose from."""
    grid = {"event_postprocessing_grid": dict(median_filter_ms=[120], min_duration=min_duration)}
    given = {"evaluation_params": grid} | metadata
    return task_folders.hear_task(folder, task_folders.three_splits(), **given)


@pytest.mark.parametrize(
    ("metadata", "modes", "message"),
    [
        (
            {"evaluation": ["psds1", "event_onset_200ms_fms"]},
            ["probe", "knn"],
            "small: protocol hear selects by the first metric of .evaluation.*'psds1' and of scores"
            ".*event_onset_50ms_fms.*protocol paper or best",
        ),
        (
            BY_LOSS,
            ["probe"],
            "small: selects by loss, which cannot choose among 2 post-processings",
        ),
    ],
)
def test_hear_refuses_what_it_cannot_select_by_before_anything_is_computed(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    metadata: dict,
    modes: list[str],
    message: str,
) -> None:
    folder = small_task(tmp_path / "t", [50, 90], metadata)
    monkeypatch.setattr(sweep, "weights_of", lambda name: pytest.fail("a job was begun"))
    words = ["evaluate", "--checkpoints", NAME, "--tasks", folder, "--results", tmp_path / "r"]
    assert run(*words, "--modes", *modes) == 2
    assert re.search(message, capfd.readouterr().err.strip().splitlines()[-1])
    assert not (tmp_path / "r").exists()
    task = open_task(folder)
    for mode in modes:
        with pytest.raises(ValueError, match=message):  # without frames too
            PROTOCOLS["hear"].modes[mode](task, None, Settings(), 0)


def test_hear_by_loss_needs_no_metric_of_events(tmp_path: Path) -> None:
    task = open_task(small_task(tmp_path, [50], {"evaluation": ["psds1"]} | BY_LOSS))
    with pytest.raises(ValueError, match="'psds1' and of scores"):
        evaluation.check_protocols([task], [("hear", "knn")])
    evaluation.check_protocols([task], [("hear", "probe"), ("paper", "knn"), ("best", "probe")])
    made_up = replace(made_up_task(), hear=task.hear | {"splits": ["train", "valid", "test"]})
    settings = Settings(grid="faster", grid_points=1)
    found = PROTOCOLS["hear"].modes["probe"](made_up, MadeUpSource(made_up, tmp_path), settings, 0)
    assert 0 < found.chosen[0]["valid_score"] < 1  # the loss
    assert found.chosen[0]["postprocessing"] == {"median_filter_ms": 120, "min_duration": 50}


def test_weights_that_are_not_there(
    own_cache: Path, task: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--checkpoints", "psla.weak-audioset", "--tasks", task]
    assert run(*words, "--results", tmp_path / "r") == 1
    assert "psla" in capfd.readouterr().err


def test_all_tasks_that_have_data(
    task: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(task)
    for name in ("empty", ".hidden", "c.part"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").write_text("no folder")
    a, b = f"{tmp_path / 'a'}", f"{tmp_path / 'b'}"
    assert evaluation.task_words(["all", b], tmp_path, None, False) == [a, b]
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(": ")[2] for line in lines] == [
        "empty",
        "dcase2016_task2",
        "maestro_5hr",
        "desed_public",
        "desed",
        "audioset_strong",
    ]
    assert "needs --corpus" in lines[-1] and f"no data of it in {tmp_path}" in lines[1]
    corpus = [f"audioset_strong={task}"]
    assert evaluation.task_words(["all"], tmp_path, task, False) == [a, b, *corpus]
    with pytest.raises(ValueError, match="empty"):
        evaluation.task_words(["all"], tmp_path, None, True)


def test_all_tasks_where_there_are_none(own_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"--tasks all: there is no folder {own_cache}/tasks"):
        evaluation.task_words(["all"], None, None, False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"no task in {tmp_path}: empty: .*; maestro_5hr: no data"):
        evaluation.task_words(["all"], tmp_path, None, False)


@pytest.mark.filterwarnings("ignore:first load")
def test_the_batch_size_reaches_the_frames(
    home: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    frames_of = embeddings._frames_of

    def seen(model: SEDModel, clips: object) -> object:
        sizes.append(model.options.batch_size)
        return frames_of(model, clips)

    monkeypatch.setattr(embeddings, "_frames_of", seen)
    words = ["evaluate", "--checkpoints", NAME, "--tasks", task, "--modes", "knn"]
    words += ["--embeddings", tmp_path / "e", "--results", tmp_path / "r", "--batch-size", 3]
    assert run(*words) == 0
    assert sizes == [3]
    (line,) = (tmp_path / "r" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["config"] == {"precision": "fp32"}  # it makes no other result


def test_a_batch_size_makes_another_result_only_where_norms_depend_on_it() -> None:
    asked, auto = Settings(batch_size=2), Settings()
    for protocol in PROTOCOLS.values():
        for mode in protocol.modes:
            apart = protocol.config(mode, asked) != protocol.config(mode, auto)
            is_tuned = mode == "finetune"
            assert apart == (is_tuned and not RECIPES[protocol.name].freeze_norms)
    paper = PROTOCOLS["paper"]
    sizes = [paper.config("finetune", Settings(device=x))["norm_pieces"] for x in ("cpu", "cuda:1")]
    assert sizes == [8, 64]  # a result of the one is none of the other


def test_the_batch_size_reaches_fine_tuning(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = []

    def tune(job: finetune.Job) -> None:
        jobs.append(job)
        raise InterruptedError

    monkeypatch.setattr(finetune, "tune", tune)
    opened = open_task(task)
    source = FrameSource(Weights(NAME, tmp_path / "x.pt", "0" * 64), (), tmp_path)
    for protocol in ("paper", "best"):
        for size in (None, 2):
            with pytest.raises(InterruptedError):
                finetune.mode(protocol, opened, source, Settings(batch_size=size), 0)
    assert [job.place.micro_pieces for job in jobs] == [None, 2, None, 2]
    folders = [job.place.folder for job in jobs]
    assert folders[0] != folders[1]  # what is gone on from has norms of another batch size
    assert folders[2] == folders[3]


@pytest.mark.filterwarnings("ignore:first load")
def test_all_tasks_from_the_command_line(
    home: Path, task: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").symlink_to(task)
    words = ["evaluate", "--checkpoints", NAME, "--tasks", "all", "--data", tmp_path / "data"]
    assert run(*words, "--modes", "knn", "--results", tmp_path / "r") == 0
    assert "left out: maestro_5hr: no data of it in" in capfd.readouterr().err
    (line,) = (tmp_path / "r" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["task"] == "synthetic_events"


def test_lists_after_one_option() -> None:
    words = "evaluate --tasks a b --checkpoints x,y z --seeds 3 --modes probe".split()
    assert (
        plugins.spread(words)
        == (
            "evaluate --tasks a --tasks b --checkpoints x,y --checkpoints z --seeds 3 --modes probe"
        ).split()
    )
    assert evaluation.split_list("--tasks", ["x,y", "z"]) == ["x", "y", "z"]
    short = "evaluate --tasks a b -o results --modes probe".split()
    assert plugins.spread(short) == "evaluate --tasks a --tasks b -o results --modes probe".split()


def test_patterns() -> None:
    names = ["a.ssl", "a.strong", "b.strong"]
    assert evaluation.select("checkpoint", ["*.strong", "a.*"], names) == [
        "a.strong",
        "b.strong",
        "a.ssl",
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_head_of_its_own_on_audioset_strong(
    home: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = shared / "data" / "strong_mini-v1"
    words = ["evaluate", "--checkpoints", NAME, "--tasks", "audioset_strong"]
    assert run(*words, "--results", tmp_path / "r") == 2
    assert "--corpus" in capsys.readouterr().err
    assert run(*words, "--corpus", corpus, "--results", tmp_path / "r") == 0
    (line,) = (tmp_path / "r" / "results.jsonl").read_text().splitlines()
    cell = json.loads(line)
    assert (cell["protocol"], cell["mode"], cell["main_metric"]) == (
        "paper",
        "own_head",
        "psds1_macro",
    )
    assert set(cell["metrics"]) == {"psds1_macro", "psds1", "segment_auroc"}
    assert "70 of 16 996 clips" in capsys.readouterr().out
    assert run(*words, "--corpus", corpus, "--results", tmp_path / "r") == 0
    assert len((tmp_path / "r" / "results.jsonl").read_text().splitlines()) == 1


def test_a_folder_with_the_name_of_a_task(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").symlink_to(task)
    monkeypatch.chdir(tmp_path)
    assert sweep.open_named("own", None, False).name == "synthetic_events"


def test_a_task_in_a_folder_of_another_name(task: Path) -> None:
    text = f"hear_folder={task}"
    assert sweep.open_named(text, None, False).name == "synthetic_events"
    with pytest.raises(ValueError, match="'hear_foldr'.*hear_folder"):
        sweep.open_named(f"hear_foldr={task}", None, False)


def test_labels_of_own_recordings_are_chosen(tmp_path: Path) -> None:
    folder = tone_folder(tmp_path / "own")
    shutil.copy(folder / "labels.tsv", folder / "other.tsv")
    choice = LabelChoice("other.tsv")
    (job,) = sweep.jobs([NAME], [str(folder)], [("hear", "knn")], 1, None, False, choice)
    for text in (str(folder), f"own={folder}"):
        assert sweep.open_named(text, None, False, job.choice).name == "own"
        with pytest.raises(ValueError, match="name one of them: --labels labels.tsv"):
            sweep.open_named(text, None, False)


@pytest.mark.filterwarnings("ignore:first load")
def test_evaluate_passes_the_choice_of_labels_on(
    home: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tone_folder(tmp_path / "own")
    (folder / "labels.tsv").rename(tmp_path / "mine.tsv")
    asked = []
    monkeypatch.setattr(sweep, "work", lambda todo, *_: asked.extend(todo))
    words = common(task, tmp_path / "r") + ["--tasks", folder, "--labels", tmp_path / "mine.tsv"]
    assert run(*words, "--split-column", "split") == 0
    wanted = LabelChoice(str(tmp_path / "mine.tsv"), "split")
    assert [(Path(job.task).name, job.choice) for job in asked] == [
        (task.name, wanted),
        ("own", wanted),
    ]
