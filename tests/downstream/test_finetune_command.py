"""The command finetune: the plan, a model, scores, the same again, mistakes."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

import hear_pretrainedsed as hps
from downstream import finetune_command
from downstream.embeddings import FrameSource, Weights
from downstream.finetune_recipes import BEST, RECIPES
from downstream.protocols import Settings
from downstream.results import read
from downstream.tasks import open_task
from hear_pretrainedsed import cli
from hear_pretrainedsed.model import build_model
from hear_pretrainedsed.records import record_sha256
from hear_pretrainedsed.registry import get_checkpoint
from hear_pretrainedsed.training.estimate import activation_bytes, memory
from hear_pretrainedsed.training.plan import Place, Plan
from tests.downstream.task_folders import hear_task, three_splits
from tests.downstream.tone_task import CHECKPOINT, tone_folder

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tone_folder(tmp_path_factory.mktemp("tones") / "own")
    (folder.parent / "empty").mkdir()
    return folder


@pytest.fixture
def weights(release_file: Callable[[str], Path], own_cache: Path) -> Path:
    """Stand-in weights under their published name in the cache folder."""
    path = own_cache / get_checkpoint(CHECKPOINT).file
    path.symlink_to(release_file(CHECKPOINT))
    with warnings.catch_warnings(action="ignore"):  # of the first load
        record_sha256(path)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], weights: Path) -> Run:
    """Run the command in this process: (exit code, stdout, stderr)."""
    torch.set_num_threads(1)

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["finetune", "-c", CHECKPOINT, *map(str, words)])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def test_dry_run_prints_the_plan_and_does_nothing(run, data, tmp_path) -> None:
    out = tmp_path / "out"
    code, told, err = run("--data", data, "-o", out, "--dry-run", "--max-steps", 60)
    assert (code, err) == (0, "")
    lines = told.splitlines()
    rows = [line.split() for line in lines if line.startswith(" block")]
    assert len(rows) == 17 + 17 and rows[0][:3] == ["block", "16,", "matrices"]
    groups = [line.split()[-3] for line in lines if line.startswith((" block", " above"))]
    model = build_model("fmn04", head="linear", labels=("a", "b"))
    n_strong = sum(p.numel() for n, p in model.named_parameters() if ".weak." not in n)
    assert sum(int(n.replace(",", "")) for n in groups) == n_strong
    facts = dict(line.split(":", 1) for line in lines if ": " in line)
    assert facts["classes"].strip() == "2"
    assert "3 of 10 s an epoch, from 3 recordings" in facts["pieces"]
    assert facts["steps"].split() == ["60,", "1", "an", "epoch;", "6", "of", "warm-up"]
    assert "GiB of tensors" in facts["memory"] and "up to" in facts["memory"]
    assert "0.0001, 0.0005" in facts["trainings"]
    assert not out.exists()


def test_the_estimate_counts_what_is_kept() -> None:
    model = build_model("fmn04", head="linear", labels=("a", "b"))
    plan = Plan(1, 0, 32, 1e-3, 0.0)
    need = memory(model, plan, Place(Path(".")))
    assert need.weights == 4 * 4 * model.n_parameters
    assert memory(model, replace(plan, ema_decay=0.9), Place(Path("."))).weights == 5 * 4 * (
        model.n_parameters
    )
    assert need.batch == 32 * 4 * (160_000 + 128 * 1000 + 250 * 2)
    one = memory(model, plan, Place(Path("."), micro_pieces=1)).activations
    assert need.activations == 8 * one
    spec = model.frontend(torch.zeros(1, 160_000))
    assert activation_bytes(model, spec.repeat(2, 1, 1, 1)) == pytest.approx(2 * one, rel=0.02)
    half = activation_bytes(model, spec, "bf16")
    assert 0.3 * one < half < 0.9 * one


@pytest.mark.slow
def test_a_model_and_its_scores_and_the_same_again(run, data, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(RECIPES, "best", replace(BEST, lrs=(5e-4,)))
    out = tmp_path / "out"
    words = ("--data", data, "-o", out, "--max-steps", 3)
    code, told, err = run(*words)
    assert (code, err) == (0, "")
    assert "protocol best-scaled, finetune" in told
    assert told.splitlines()[-1] == str(out / "model.safetensors")
    (cell,) = read(out)
    assert (cell.mode, cell.protocol, cell.checkpoint) == ("finetune", "best-scaled", CHECKPOINT)
    assert cell.config == {"precision": "fp32", "steps_scale": None, "max_steps": 3}
    assert cell.recipe["layer_decay"] == 0.75 and cell.metrics["frame_map"].value > 0
    assert not list(out.rglob("*.pt")) and not list(out.rglob("*.ckpt"))
    assert any((out / "runs").glob("*/log/*"))
    assert hps.load_model(out / "model.safetensors").decoding is not None

    monkeypatch.setattr(finetune_command.tuning, "tune", lambda job: 1 / 0)
    assert run(*words)[0] == 0  # it is known
    code, _, err = run("--data", data, "-o", out, "--max-steps", 4)
    assert code == 2 and "begun with other settings: max_steps was 3, is 4" in err
    code, _, err = run(*words, "--seed", 1, "--protocol", "paper")
    assert code == 2 and "seed was 0, is 1" in err and "protocol was 'best', is 'paper'" in err
    replaced = tmp_path / "own"
    shutil.copytree(data, replaced)
    assert run("--data", replaced, *words[2:])[0] == 0  # the same recordings elsewhere
    soundfile.write(replaced / "0.wav", soundfile.read(replaced / "1.wav")[0][::-1], 16_000)
    code, _, err = run("--data", replaced, *words[2:])
    assert code == 2 and "begun with other settings: task_digest was" in err


@pytest.mark.slow
def test_a_recipe_that_is_changed_has_another_name(run, data, tmp_path) -> None:
    out, words = tmp_path / "out", ("--data", data, "-o", tmp_path / "out", "--max-steps", 1)
    settings = ("--set", "lrs=1e-3", "--set", "ema_decay=None", "--set", "patience=None")
    code, told, err = run(*words, *settings, "--dry-run")
    assert (code, err) == (0, "") and "0.001 on the first" in told
    named = "lrs=(0.001,) ema_decay=None patience=None"
    assert f"set:       {named}, so protocol best-changed" in told.splitlines()
    code, told, err = run(*words, *settings)
    assert (code, err) == (0, "") and "protocol best-changed-scaled, finetune" in told
    (cell,) = read(out)
    assert (cell.protocol, cell.recipe["protocol"]) == ("best-changed-scaled",) * 2
    assert cell.config["set"] == named
    assert cell.recipe["lrs"] == [1e-3] and cell.recipe["ema_decay"] is None
    origin = hps.load_model(out / "model.safetensors").provenance["origin"]
    assert origin["protocol"] == "best-changed" and origin["recipe"]["ema_decay"] is None
    code, _, err = run(*words, *settings[:-2])
    assert code == 2 and "begun with other settings: patience was None, is 6" in err


@pytest.mark.slow
def test_two_processes_from_the_command_line(weights, data, tmp_path) -> None:
    words = ["-c", CHECKPOINT, "--data", data, "--max-steps", 2, "--device", "cpu"]
    keys = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    ways = (("one", [], []), ("two", [], ["--devices", 2]), ("torchrun", torchrun, []))
    for folder, launcher, more in ways:
        command = ["finetune", *words, "-o", tmp_path / folder, *more]
        code = [*launcher, "-m", "hear_pretrainedsed", *command]
        code = [sys.executable, *map(str, code)]
        done = subprocess.run(code, env=keys, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("model.safetensors") == 1
    files = [tmp_path / folder / "model.safetensors" for folder, _, _ in ways]
    assert files[1].read_bytes() == files[2].read_bytes()
    one, two = map(hps.load_model, files[:2])
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert (a - b).abs().max() <= 1e-3 * (a.abs().max() + 1e-3)
    assert one.decoding == two.decoding


def test_an_own_file_to_start_from_and_a_task_by_name(run, data, tmp_path, weights) -> None:
    copy = tmp_path / "start.pt"
    copy.write_bytes(weights.read_bytes())
    words = ("--weights", copy, "-o", tmp_path / "out", "--dry-run")
    with warnings.catch_warnings(action="ignore"):  # equal bytes
        assert run("--data", data, *words)[0] == 0
    code, _, err = run("--task", "dcase2016_task2", "--data", data, "-o", tmp_path / "o")
    assert code == 2 and "no data of dcase2016_task2" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give --data DIR or --task NAME"),
        (("--data", "{data}", "--protocol", "hear"), "unknown protocol 'hear'"),
        (("--data", "{data}", "--precision", "fp16"), "unknown precision 'fp16'"),
        (("--data", "{data}", "--logger", "cvs"), "unknown logger 'cvs'"),
        (("--data", "{data}", "--logger", "wandb"), "needs the package wandb"),
        (("--data", "{data}", "--device", "tpu"), "unknown device 'tpu'"),
        (("--data", "{data}", "--weights", "none.pt"), "there is no file none.pt"),
        (("--data", "none"), "--data: there is no folder none"),
        (("--data", "own"), "--data: there is no folder own"),
        (("--data", "{data}/0.wav"), "--data takes a folder, and "),
        (("--data", "{data}/../empty"), "no audio in"),
        (("--data", "{data}", "--labels", "other.json"), "other.json: no labels there; allowed"),
        (("--data", "{data}", "--split-column", "fold"), "unknown column 'fold'"),
        (("--data", "{data}", "--split-seed", "1"), "has a column of splits: a seed would draw"),
        (("--task", "none"), "unknown task 'none'"),
        (("--data", "{data}", "--steps-scale", "0"), "--steps-scale is 0.0; it is finite and ab"),
        (("--data", "{data}", "--steps-scale", "nan"), "--steps-scale is nan; it is finite and ab"),
        (("--data", "{data}", "--max-steps", "0"), "greater than or equal to 1"),
        (("--data", "{data}", "--devices", "0"), "greater than or equal to 1"),
        (("--data", "{data}", "--set", "ema=0.9"), "unknown field 'ema'; did you mean 'ema_decay'"),
        (("--data", "{data}", "--batch-size", "0"), "--batch-size is 0; it is at least 1"),
        (("--data", "{data}", "-c", "fmn05.strong"), "unknown checkpoint 'fmn05.strong'"),
    ],
)
def test_mistakes_are_one_line(run, data, tmp_path, words, message) -> None:
    filled = [str(word).format(data=data) for word in words]
    code, told, err = run("-o", tmp_path / "out", *filled)
    assert code == 2 and told == "" and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (math.nan, "1 of 5 clips cannot be used: {clip}: NaN at sample 9"),
        (None, "1 of 5 clips cannot be used: {clip}: truncated: its header states"),
    ],
)
def test_a_bad_clip_is_named_before_any_training(
    run, tmp_path, monkeypatch, sample, message
) -> None:
    folder = tone_folder(tmp_path / "own")
    clip = folder / "4.wav"  # of the test split
    if sample is None:
        clip.write_bytes(clip.read_bytes()[:-4000])
    else:
        audio, rate = soundfile.read(clip)
        audio[9] = sample
        soundfile.write(clip, audio, rate, subtype="FLOAT")
    monkeypatch.setattr(finetune_command.tuning, "tune", lambda job: 1 / 0)
    for more in ([], ["--dry-run"]):
        code, told, err = run("--data", folder, "-o", tmp_path / "out", *more)
        assert (code, told, len(err.splitlines())) == (2, "", 1)
        assert message.format(clip=clip) in err
        assert not (tmp_path / "out").exists()
    source = FrameSource(Weights(CHECKPOINT, clip, ""), (), tmp_path / "cache")
    with pytest.raises(ValueError, match="1 of 5 clips cannot be used"):  # as `evaluate` runs it
        finetune_command.tuning.mode("best", open_task(folder), source, Settings(), 0)


def ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that fails in its first step."""

    def tune(job: object) -> None:
        raise ValueError("the loss is nan")

    monkeypatch.setattr(finetune_command.tuning, "tune", tune)


def test_a_mistake_leaves_out_as_it_was(run, data, tmp_path, monkeypatch) -> None:
    ends_at_once(monkeypatch)
    out = tmp_path / "out"
    words = ("--data", data, "-o", out, "--max-steps", 3)
    with warnings.catch_warnings(action="ignore"):  # a file that was never loaded
        code, _, err = run(*words, "--weights", data / "0.wav")
    assert code == 2 and "0.wav" in err and not out.exists()
    out.mkdir()
    (out / "results.jsonl").write_text('{"schema": 0}\n')
    code, _, err = run(*words)
    assert code == 2 and "results.jsonl, line 1" in err and not (out / "config.json").exists()


def test_what_left_nothing_may_begin_anew_with_other_settings(
    run, data, tmp_path, monkeypatch
) -> None:
    ends_at_once(monkeypatch)
    out = tmp_path / "out"
    for n_steps in (3, 4):
        code, _, err = run("--data", data, "-o", out, "--max-steps", n_steps)
        assert code == 2 and "the loss is nan" in err
        assert json.loads((out / "config.json").read_text())["max_steps"] == n_steps
    for left in ("runs/rotation-0-lr-0.1/last.ckpt", "runs/rotation-0-lr-0.1/fitted.json"):
        path = out / left
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        code, _, err = run("--data", data, "-o", out, "--max-steps", 5)
        assert code == 2 and "begun with other settings: max_steps was 4, is 5" in err
        path.unlink()


def test_norms_of_other_batches_are_another_result(run, data, tmp_path, monkeypatch) -> None:
    """Those of `best` are frozen."""
    keys = []
    finished = finetune_command.results.Store.finished
    monkeypatch.setattr(
        finetune_command.results.Store,
        "finished",
        lambda s, key: keys.append(key) or finished(s, key),
    )
    ends_at_once(monkeypatch)
    for protocol in RECIPES:
        out = tmp_path / protocol
        words = ("--data", data, "-o", out, "--protocol", protocol, "--device", "cpu")
        assert "the loss is nan" in run(*words)[2]
        (out / "runs" / "rotation-0-lr-0.1").mkdir(parents=True)
        (out / "runs" / "rotation-0-lr-0.1" / "last.ckpt").touch()
        assert "the loss is nan" in run(*words, "--batch-size", 8)[2]  # what a CPU takes anyway
        code, _, err = run(*words, "--batch-size", 1)
        assert code == 2 and ("norm_pieces was 8, is 1" in err) == (protocol == "paper")
    assert [key.config.get("norm_pieces") for key in keys] == [8, 8, None, None, None]
    assert "the loss is nan" in run(*words, "--set", "freeze_norms=False", "-o", tmp_path / "x")[2]
    assert keys[-1].config["norm_pieces"] == 8


def test_a_model_that_cannot_be_scored_is_not_written(run, data, tmp_path, monkeypatch) -> None:
    def score(*_: object) -> None:
        raise ValueError("no reference events")

    made = finetune_command.tuning.Tuned(None, (build_model("fmn04", head="linear", labels="ab"),))
    monkeypatch.setattr(finetune_command.tuning, "tune", lambda job: made)
    monkeypatch.setattr(finetune_command, "score_task", score)
    code, told, err = run("--data", data, "-o", tmp_path / "out")
    assert (code, told) == (2, "") and "no reference events" in err
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_another_s_files_are_left_alone(run, data, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, text in (("model.safetensors", "mine"), ("config.json", '{"hidden_size": 1}')):
        (out / name).write_text(text)
        code, told, err = run("--data", data, "-o", out, "--max-steps", 1)
        assert (code, told) == (2, "") and len(err.splitlines()) == 1
        assert f"{out / name} is there already, and not known to be of finetune" in err
        assert [(one.name, one.read_text()) for one in out.iterdir()] == [(name, text)]
        (out / name).unlink()


def test_out_that_is_a_file(run, data, tmp_path) -> None:
    (tmp_path / "out").write_text("x")
    code, _, err = run("--data", data, "-o", tmp_path / "out", "--max-steps", 1)
    assert code == 2 and f"-o takes a folder, and {tmp_path / 'out'} is a file" in err


def test_silent_data_is_told(run, tmp_path) -> None:
    folder = tone_folder(tmp_path / "own")
    (folder / "labels.tsv").unlink()
    code, _, err = run("--data", folder, "-o", tmp_path / "out")
    assert code == 2 and "recordings without labels" in err
    (folder / "labels.json").write_text(json.dumps({f"{i}.wav": [] for i in range(5)}))
    code, _, err = run("--data", folder, "-o", tmp_path / "out")
    assert code == 2 and "no event in it" in err


def test_labels_and_splits_that_are_chosen(run, data, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "own"
    shutil.copytree(data, folder)
    head, *rows = (folder / "labels.tsv").read_text().splitlines()
    (folder / "other.tsv").write_text("\n".join([head.replace("split", "fold"), *rows]) + "\n")
    opened = []
    monkeypatch.setattr(finetune_command, "print_plan", lambda job: opened.append(job.task))
    words = ("--data", folder, "-o", tmp_path / "out", "--dry-run")
    code, _, err = run(*words)
    assert code == 2 and "labels.tsv, other.tsv; name one of them: --labels labels.tsv" in err
    assert run(*words, "--labels", "labels.tsv")[0] == 0
    assert run(*words, "--labels", "other.tsv", "--split-column", "fold")[0] == 0
    (folder / "other.tsv").rename(tmp_path / "elsewhere.tsv")
    for seed in (0, 1):
        assert run(*words, "--labels", tmp_path / "elsewhere.tsv", "--split-seed", seed)[0] == 0
    splits = [{s: [c.file for c in clips] for s, clips in task.splits.items()} for task in opened]
    assert splits[0] == splits[1] != splits[2] != splits[3]


def test_labels_are_chosen_for_own_recordings_alone(run, tmp_path) -> None:
    folder = hear_task(tmp_path / "small", three_splits())
    code, _, err = run("--data", folder, "-o", tmp_path / "o", "--labels", "x.tsv", "--dry-run")
    assert code == 2 and "--labels, --split-column and --split-seed are for" in err
    assert "small has its labels" in err and not (tmp_path / "o").exists()
