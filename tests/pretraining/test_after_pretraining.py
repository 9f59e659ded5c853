"""What is done with a pre-trained file: its HEAR module, a probe on it, detection, ONNX."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import hear_pretrainedsed as hps
from hear_pretrainedsed import cli
from hear_pretrainedsed.onnx_files import read_onnx
from hear_pretrainedsed.registry import Checkpoint
from hear_pretrainedsed.user_registry import import_checkpoint, remove_checkpoint
from tests.downstream.tone_task import tone_folder
from tests.export_models import needs_onnx
from tests.pretraining.small_corpus import LABELS, small_corpus
from tests.pretraining.tiny_runs import write_pseudo
from tests.reference import signal

pytestmark = pytest.mark.slow

NAME = "fmn04.strong-mine"
ROOT = Path(__file__).resolve().parents[2]
PRESET = ("--preset", "strong_student", "--backbone", "fmn04", "--set", "norm_momentum=0.1")
SMALL = ("--device", "cpu", "--max-steps", 2, "--logger", "none", "--set", "batch=2")


def command(*words: object) -> None:
    """Run a command in this process; it has to end well."""
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, words)])
    assert stop.value.code in (0, None)


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student after two steps."""
    torch.set_num_threads(1)  # `one_thread` comes later
    folder = tmp_path_factory.mktemp("student")
    corpus = small_corpus(folder, 4)
    sources = ("--corpus", corpus.folder, "--valid", corpus.folder, "-o", folder / "out")
    pseudo = ("--pseudo-labels", write_pseudo(folder / "pseudo.h5", corpus))
    command("pretrain", *PRESET, *sources, *pseudo, *SMALL)
    return folder / "out" / "model.safetensors"


@pytest.fixture
def checkpoint(student: Path, own_cache: Path) -> Checkpoint:
    """The student as a checkpoint, while a test lasts."""
    with warnings.catch_warnings(action="ignore"):
        yield import_checkpoint(student, NAME)
    remove_checkpoint(NAME)


HEAR = """
import json, sys, torch
from importlib import import_module
module = import_module("hear_pretrainedsed." + sys.argv[1])
model = module.load_model()
audio = torch.load(sys.argv[2])
frames, ms = module.get_timestamp_embeddings(audio, model)
clips = module.get_scene_embeddings(audio, model)
torch.save([frames, ms, clips], sys.argv[2])
"""


def test_its_hear_module(student: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """In another process, as HEAR's tools are: they are told a module's name."""
    audio = signal(seed=1)[None, :40_000]
    torch.save(audio, tmp_path / "audio.pt")
    words = [sys.executable, "-W", "ignore", "-c", HEAR, checkpoint.module, tmp_path / "audio.pt"]
    subprocess.run(words, check=True, cwd=ROOT)
    frames, ms, clips = torch.load(tmp_path / "audio.pt")
    model = hps.load_model(student, checkpoint=NAME)
    wanted, wanted_ms = hps.get_timestamp_embeddings(audio, model)
    assert frames.shape == (1, 62, model.timestamp_embedding_size) and frames.std() > 0
    torch.testing.assert_close(frames, wanted)
    torch.testing.assert_close(ms, wanted_ms)
    torch.testing.assert_close(clips, hps.get_scene_embeddings(audio, model))


def test_a_probe_on_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    task = f"own={tone_folder(tmp_path / 'tones')}"
    words = ("--checkpoints", NAME, "--tasks", task, "--protocols", "hear", "--modes", "probe")
    short = ("--grid", "faster", "--grid-points", 1, "--device", "cpu")
    command("evaluate", *words, *short, "--results", tmp_path / "results")
    (line,) = (tmp_path / "results" / "results.jsonl").read_text().splitlines()
    cell = json.loads(line)
    assert (cell["checkpoint"], cell["mode"]) == (NAME, "probe")
    assert cell["weights_sha256"] == checkpoint.sha256
    assert cell["metrics"][cell["main_metric"]]["micro"] >= 0


def test_what_it_detects(checkpoint: Checkpoint) -> None:
    model = hps.load_model(checkpoint=NAME)
    audio = signal(seed=2)[:80_000]
    scores = model.scores(audio[None])[0]
    assert scores.shape == (125, 3)
    number = int(scores.amax(dim=0).argmax())
    threshold = 0.999 * float(scores.max())  # whatever little it learned in two steps
    found = hps.detect(audio, model, threshold=threshold)
    assert {event.label for event in found} <= set(LABELS)
    assert any(event.label == LABELS[number] for event in found)


@needs_onnx
def test_its_onnx_file(student: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    from onnxruntime import InferenceSession

    command("export", NAME, "-o", tmp_path / "student.onnx")
    facts = read_onnx(tmp_path / "student.onnx")
    assert (facts.checkpoint, facts.classes) == (NAME, LABELS)
    assert facts.weights_sha256 == checkpoint.sha256
    model = hps.load_model(student, checkpoint=NAME)
    audio = signal(seed=3)[None]
    with torch.no_grad():
        spec, wanted = model.frontend(audio), model.logits(audio)
    session = InferenceSession(tmp_path / "student.onnx")
    (found,) = session.run(["logits"], {"spec": spec.numpy()})
    assert wanted.std() > 0
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-3, atol=1e-3)
