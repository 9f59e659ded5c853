"""The command finetune: the plan, a model, scores, the same again, mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hear_pretrainedsed as hps
from downstream import finetune_command
from downstream.finetune_recipes import BEST, RECIPES
from downstream.results import read
from hear_pretrainedsed import cli
from hear_pretrainedsed.model import build_model
from hear_pretrainedsed.records import record_sha256
from hear_pretrainedsed.registry import get_checkpoint
from hear_pretrainedsed.training.estimate import activation_bytes, memory
from hear_pretrainedsed.training.plan import Place, Plan
from tests.downstream.tone_task import CHECKPOINT, tone_folder

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tone_folder(tmp_path_factory.mktemp("tones") / "own")


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
    assert "GiB" in facts["memory"] and "0.0001, 0.0005" in facts["trainings"]
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
        (("--data", "none"), "unknown task 'none'"),
        (("--task", "none"), "unknown task 'none'"),
        (("--data", "{data}", "--steps-scale", "0"), "it has to be above 0"),
        (("--data", "{data}", "--max-steps", "0"), "greater than or equal to 1"),
        (("--data", "{data}", "--devices", "0"), "greater than or equal to 1"),
        (("--data", "{data}", "--batch-size", "0"), "--batch-size is 0; it is at least 1"),
        (("--data", "{data}", "-c", "fmn05.strong"), "unknown checkpoint 'fmn05.strong'"),
    ],
)
def test_mistakes_are_one_line(run, data, tmp_path, words, message) -> None:
    filled = [str(word).format(data=data) for word in words]
    code, told, err = run("-o", tmp_path / "out", *filled)
    assert code == 2 and told == "" and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


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
