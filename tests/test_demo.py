"""The demo: its task, what stands beside its numbers, and a scaled-down run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from downstream import results
from downstream.tables import order_of
from downstream.tasks import Task, open_task
from hear_pretrainedsed import load_model
from hear_pretrainedsed.audio import read_audio
from hear_pretrainedsed.events import Event
from hear_pretrainedsed.registry import CHECKPOINTS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))  # they are scripts, not a package

import demo  # noqa: E402
import hear_task  # noqa: E402
import references  # noqa: E402
import synthesis  # noqa: E402

FEW = {"train": 4, "valid": 2, "test": 10}
NOT_IN_CORE = """
dcase_util einops h5py hear21passt heareval hearvalidator lazy_dataset lightning more_itertools
numba pandas psds_eval pytorch_lightning ray sed_eval sed_scores_eval sklearn tensorboardX
tensorflow tensorflow_datasets torchaudio torchinfo torchmetrics tqdm xares
""".split()
SCALED_DOWN = """
import sys
from dataclasses import replace
from pathlib import Path

sys.modules.update(dict.fromkeys(sys.argv[2].split()))  # None: importing it fails
import demo
from downstream.protocols import best
from rich.console import Console

demo.torch.set_num_threads(1)
best.RECIPE = replace(best.RECIPE, steps_from_to=(10, 10), n_checks=2)
for _ in range(2):
    demo.Demo(Path(sys.argv[1]), Console(width=100)).run({"train": 4, "valid": 2, "test": 10})
"""


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return open_task(hear_task.write_task(tmp_path, FEW))


@pytest.fixture
def small_task(tmp_path: Path) -> Task:
    return open_task(hear_task.write_task(tmp_path, dict.fromkeys(FEW, 2)))


@pytest.fixture
def registry() -> Iterator[dict[str, object]]:
    """The registry, as it was before when the test is over."""
    before = dict(CHECKPOINTS)
    yield CHECKPOINTS
    CHECKPOINTS.clear()
    CHECKPOINTS.update(before)


@pytest.mark.parametrize("label", synthesis.SOUNDS)
def test_sounds_are_sounds(label: str) -> None:
    for seed in range(20):
        sound = synthesis.SOUNDS[label](np.random.default_rng(seed))
        assert np.isfinite(sound).all()
        assert 0.1 < len(sound) / synthesis.SAMPLE_RATE < 4
        assert np.abs(sound).max() > 0.1


def test_recording_has_its_events() -> None:
    audio, events = synthesis.recording(np.random.default_rng(3), 10.0, 5, (10.0, 15.0))
    assert audio.shape == (160_000,) and audio.dtype == np.float32
    assert np.abs(audio).max() <= 0.9 + 1e-6
    assert len(events) == 5 and events == sorted(events)
    assert all(0 <= a < b <= 10 for a, b, _ in events)
    sounding = np.zeros(len(audio), bool)
    for a, b, _ in events:
        sounding[int(a * 16000) : int(b * 16000)] = True
    power = audio.astype(np.float64) ** 2
    assert power[sounding].mean() > 3 * power[~sounding].mean()


def test_task_is_the_same_each_time_and_in_hear_format(tmp_path: Path) -> None:
    first = hear_task.write_task(tmp_path / "a", FEW)
    second = hear_task.write_task(tmp_path / "b", FEW)
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == sum(FEW.values()) + len(FEW) + 2
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)
    task = open_task(first, strict=False)
    assert (task.name, task.version) == (hear_task.NAME, hear_task.VERSION)
    assert task.labels == tuple(synthesis.SOUNDS)
    assert {split: len(clips) for split, clips in task.splits.items()} == FEW
    assert {clip.duration_s for clip in task.clips(FEW)} == {10.0}
    info = soundfile.info(task.clips("test")[0].path)
    assert (info.samplerate, info.channels) == (16_000, 1)
    other = hear_task.write_task(tmp_path / "c", FEW, seed=1)
    assert (other / "train.json").read_bytes() != (first / "train.json").read_bytes()


def test_the_whole_task_has_every_class_in_each_split_and_units_for_intervals(
    tmp_path: Path,
) -> None:
    task = open_task(hear_task.write_task(tmp_path), strict=True)  # no warning of empty classes
    assert len({clip.unit for clip in task.clips("test")}) >= 10


@pytest.mark.filterwarnings("ignore:.*classes without", "ignore:first load")
def test_log_mel_is_what_the_network_sees(
    small_task: Task, release_file: Callable[[str], Path]
) -> None:
    file, few = release_file("fmn04.strong"), small_task.clips("valid")
    model = load_model(file, checkpoint="fmn04.strong", concat_mel=True)
    mel = references.log_mel(small_task, model)
    audio = torch.stack([read_audio(clip.path) for clip in few])
    embeddings = model.embeddings(audio)[..., -model.frontend.n_mels :]
    assert mel.dim == 128 and mel.n_frames(few[0].file) == 250
    torch.testing.assert_close(mel.join([clip.file for clip in few]), embeddings.flatten(0, 1))
    assert np.array_equal(mel.clip(few[1].file), embeddings[1].numpy())


def test_chance_knows_what_is_common_and_not_where(task: Task) -> None:
    drawn = [references._at_random(task, np.random.default_rng(i)) for i in range(40)]
    train, test = task.clips("train"), task.clips("test")
    events = [event for found in drawn for file in found.events for event in found.events[file]]
    per_clip = sum(len(clip.events) for clip in train) / len(train)
    assert len(events) / (40 * len(test)) == pytest.approx(per_clip, rel=0.1)
    known = np.array([b - a for clip in train for a, b, _ in clip.events])
    assert all(np.abs(known - (b - a)).min() < 1e-9 for a, b, _ in events)
    assert all(0 <= a < b <= 10 for a, b, _ in events)
    scores = [references._scored(task, found)["event_onset_200ms_fms"].value for found in drawn]
    assert 0 < np.mean(scores) < 0.15


def test_checkpoint_is_the_smallest_published_one_at_hand(
    own_cache: Path, registry: dict[str, object]
) -> None:
    assert demo.published() is None
    for name, size in (("BEATs_strong_1.pt", 9), ("frame_mn06_strong_1.pt", 5), ("ASIT_ssl.pt", 1)):
        (own_cache / name).write_bytes(bytes(size))
    assert demo.published() == "frame_mn06.strong"
    assert "RANDOM" not in demo.described("frame_mn06.strong")


def test_stand_in_is_a_checkpoint_that_says_what_it_is(
    tmp_path: Path, registry: dict[str, object]
) -> None:
    assert demo.stand_in(tmp_path / "cache") == demo.STAND_IN
    assert "RANDOM" in demo.described(demo.STAND_IN)
    assert load_model(checkpoint=demo.STAND_IN).timestamp_embedding_size == 384
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert f"{demo.STAND_IN}.safetensors" in kept and "rule_made.pt" not in kept
    del registry[demo.STAND_IN]  # as in another process
    demo.stand_in(tmp_path / "cache")
    assert demo.STAND_IN in registry
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert again == kept


def test_events_stand_beside_what_is_in_the_recording() -> None:
    made = [(1.0, 2.0, "bell"), (1.1, 2.0, "knock"), (5.0, 6.0, "bell")]
    found = [Event(1.15, 2.0, "bell", 0.9), Event(1.2, 1.5, "bell", 0.8), Event(4.7, 6, "bell")]
    console = Console(width=100, record=True, quiet=True)
    table = demo.events_table(found, made, "title")
    truths = list(table.columns[4].cells)
    assert truths == ["at 1.10 s: missed", "at 1.00 s", "no", "no", "at 5.00 s: missed"]
    console.print(table)


def test_an_events_score_is_the_mean_of_its_frames(task: Task) -> None:
    scores = np.zeros((250, 6), np.float32)
    scores[25:50, 1] = 0.5
    event = demo._with_score((1.0, 3.0, task.labels[1]), scores, task)
    assert event == Event(1.0, 3.0, task.labels[1], 0.25)


@pytest.mark.slow
def test_scaled_down_run_with_the_core_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCALED_DOWN, str(out), " ".join(NOT_IN_CORE)],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cells = results.read(out / "results")
    assert [(cell.protocol, cell.mode) for cell in cells] == list(demo.RUNS)
    assert {cell.checkpoint for cell in cells} == {demo.STAND_IN}
    first, second = done.stdout.split("made a task")[1:]
    assert "RANDOM" in first and references.CHANCE in first and "earlier run" not in first
    assert f"{len(cells)} of {len(cells)} results are of an earlier run" in second
    row = rf"  {demo.STAND_IN} +│ (\d\.\d{{3}}) │ \d\.\d{{3}} to \d\.\d{{3}} │"
    shown = sorted(cells, key=order_of)
    values = [metric.value for cell in shown for metric in cell.metrics.values()]
    for printed in (first, second):  # each number is one that was computed
        assert [float(x) for x in re.findall(row, printed)] == pytest.approx(values, abs=6e-4)
    assert first.count(references.LOG_MEL) == 2 * 3 and first.count(references.CHANCE) == 2 * 4
    assert (out / "recording.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "recording.tsv").read_text().startswith("filename\tonset")
    command = first[first.index("hear-pretrainedsed evaluate") :].splitlines()[0]
    assert str(out / "tasks") in command
    assert json.loads((out / "cache" / "imported.json").read_text()).keys() == {demo.STAND_IN}
