"""Stock HEAR tools, unmodified: hear-validator on every architecture, heareval to test scores.

heareval runs through tools/hear.py, as `make hear` does, with rule-made weights. What it is given:

- the MobileNet: office_like and domestic_like of the reference data whole, and piano_like with its
  clips cut to their first 20 s (five folds of 50 epochs each take minutes on whole ones);
- the transformer: all three with fewer clips, cut to 10 s.

The MobileNet gets the demo's synthetic task as well; without the reference data so does the
transformer. Scores of random features say nothing about a checkpoint; that there are some, with
what was predicted and by which settings, is the test.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

from hear_pretrainedsed.registry import get_checkpoint
from tests.conftest import SHARED
from tests.test_hear import ARCHITECTURES, LARGE, macs

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import hear_task  # noqa: E402

pytestmark = [pytest.mark.hear, pytest.mark.slow]

MN, TRANSFORMER = "frame_mn06.strong", "atst_f.strong"
FEW = {"train": 8, "valid": 3, "test": 3}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("checkpoint", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_validator_passes(
    checkpoint: str,
    release_file: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    validate = pytest.importorskip("hearvalidator.validate")
    torch.set_num_threads(2 if macs(checkpoint) > LARGE else 1)
    module = f"hear_pretrainedsed.{get_checkpoint(checkpoint).module}"
    arguments = [module, "--model", str(release_file(checkpoint)), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["hear-validator", *arguments])
    validate.main()
    printed = capsys.readouterr().out
    assert printed.endswith("Looks good!\n")
    assert "Interval between timestamps is 40.0ms" in printed


# ---- heareval


def cut_task(source: Path, target: Path, seconds: float, n_clips: int | None = None) -> None:
    """Copy a task with its clips' first seconds, and of each split its first clips only."""
    metadata = json.loads((source / "task_metadata.json").read_text())
    target.mkdir(parents=True)
    shutil.copy(source / "labelvocabulary.csv", target)
    for split in metadata["splits"]:
        audio_folder = target / "16000" / split
        audio_folder.mkdir(parents=True)
        events = json.loads((source / f"{split}.json").read_text())
        kept = dict(list(events.items())[:n_clips])
        for name in kept:
            kept[name] = [
                {**event, "end": min(event["end"], 1000 * seconds)}
                for event in kept[name]
                if event["start"] < 1000 * seconds
            ]
            path = source / "16000" / split / name
            audio, rate = soundfile.read(path, frames=int(seconds * 16_000), dtype="float32")
            assert len(audio) == seconds * rate == seconds * 16_000
            soundfile.write(audio_folder / name, audio, rate, format="OGG", subtype="VORBIS")
        assert any(kept.values())
        (target / f"{split}.json").write_text(json.dumps(kept))
    metadata["sample_duration"] = seconds
    (target / "task_metadata.json").write_text(json.dumps(metadata))


def make_hear(*arguments: object) -> subprocess.CompletedProcess[str]:
    """tools/hear.py in a process of its own."""
    pytest.importorskip("heareval")
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "hear.py"), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def score(checkpoint: str, tasks_dir: Path, output: Path, *more: object) -> str:
    """Run a checkpoint on all tasks of a folder with a small grid; returns what was printed."""
    arguments = ["--checkpoints", checkpoint, "--tasks-dir", tasks_dir, "--output", output]
    arguments += ["--weights", "rule", "--grid", "faster", "--grid-points", 1]
    done = make_hear(*arguments, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_results(checkpoint: str, tasks_dir: Path, output: Path, printed: str) -> None:
    """Every task has a result file, whose scores are in the printed table."""
    assert "RULE-MADE WEIGHTS" in printed
    tasks = sorted(path.name for path in tasks_dir.iterdir())
    module = f"hear_pretrainedsed.{get_checkpoint(checkpoint).module}"
    for task in tasks:
        folder = output / "rule" / checkpoint / "default" / module / task
        results = json.loads((folder / "test.predicted-scores.json").read_text())
        metadata = json.loads((folder / "task_metadata.json").read_text())
        (line,) = re.findall(rf"^{re.escape(checkpoint)} +{task} +(.*)$", printed, re.MULTILINE)
        for name in metadata["evaluation"]:
            if "aggregated_scores" in results:
                value = results["aggregated_scores"][f"test_{name}_mean"]
                assert len(metadata["splits"]) == 5
            else:
                value = results["test"][f"test_{name}"]
            assert f"{value:.3f}" in line
            assert math.isnan(value) or value >= 0
        assert (folder / ".done.embeddings").is_file()
        assert (folder / "prediction-done.json").is_file()
    assert not list((output / "rule" / "weights").glob("*.pt"))


def test_mobilenet_to_scores_on_the_reference_tasks(shared: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name in ("office_like-v1-small", "domestic_like-v1-small"):
        (tasks / name).symlink_to(shared / "data" / "tasks" / name)
    piano = "piano_like-v1-small"
    cut_task(shared / "data" / "tasks" / piano, tasks / piano, 20.0)
    printed = score(MN, tasks, tmp_path / "out")
    check_results(MN, tasks, tmp_path / "out", printed)


def test_transformer_to_scores_on_cut_reference_tasks(shared: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    n_clips = {"office_like-v1-small": 4, "domestic_like-v1-small": 6, "piano_like-v1-small": 2}
    for name, n in n_clips.items():
        cut_task(shared / "data" / "tasks" / name, tasks / name, 10.0, n)
    printed = score(TRANSFORMER, tasks, tmp_path / "out")
    check_results(TRANSFORMER, tasks, tmp_path / "out", printed)


@pytest.mark.parametrize("checkpoint", [MN] if SHARED.is_dir() else [MN, TRANSFORMER])
def test_to_scores_on_a_synthetic_task(checkpoint: str, tmp_path: Path) -> None:
    """The same way in a plain clone; and what is done is not done again."""
    hear_task.write_task(tmp_path / "tasks", FEW)
    printed = score(checkpoint, tmp_path / "tasks", tmp_path / "out")
    check_results(checkpoint, tmp_path / "tasks", tmp_path / "out", printed)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    assert score(checkpoint, tmp_path / "tasks", tmp_path / "out") == printed
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")} == made


def test_hear_tells_mistakes_in_a_line(tmp_path: Path, own_cache: Path) -> None:
    hear_task.write_task(tmp_path / "tasks", {"train": 1, "valid": 1, "test": 1})
    tasks = ["--tasks-dir", tmp_path / "tasks", "--output", tmp_path / "out"]
    for arguments, message in (
        (["--checkpoints", "frame_mn6.strong"], "did you mean 'frame_mn06.strong'"),
        (["--tasks", "synthetic_event-v2-small"], "did you mean 'synthetic_events-v2-small'"),
        (["--model-options", '{"laier": 1}'], "did you mean 'layer'"),
        (["--model-options", "[1]"], "it has to be a JSON object"),
        (["--tasks-dir", tmp_path / "none"], "holds no HEAR task"),
    ):
        done = make_hear(*tasks, *arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert message in done.stderr


def test_hear_without_a_file_names_stand_ins(tmp_path: Path, own_cache: Path) -> None:
    hear_task.write_task(tmp_path / "tasks", {"train": 1, "valid": 1, "test": 1})
    tasks = ["--tasks-dir", tmp_path / "tasks", "--output", tmp_path / "out"]
    done = make_hear(*tasks, "--checkpoints", "psla.weak-audioset")  # has no public address
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "--weights rule" in done.stderr and str(own_cache) in done.stderr


def test_hear_shows_how_a_stock_tool_failed(tmp_path: Path) -> None:
    folder = hear_task.write_task(tmp_path / "tasks", {"train": 1, "valid": 1, "test": 1})
    (folder / "16000" / "train" / "train_00.wav").write_bytes(b"no audio")
    tasks = ["--tasks-dir", tmp_path / "tasks", "--output", tmp_path / "out"]
    done = make_hear(*tasks, "--checkpoints", MN, "--weights", "rule")
    assert done.returncode == 1
    assert "heareval.embeddings.runner failed (exit 1)" in done.stderr
    assert "LibsndfileError" in done.stderr
