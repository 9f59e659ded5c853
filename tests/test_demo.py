"""The demo: its scores against sed_eval, its task, its probe, and a scaled-down run."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))  # they are scripts, not a package

import demo  # noqa: E402
import hear_task  # noqa: E402
import scoring  # noqa: E402
import synthesis  # noqa: E402
from probe import frame_targets, train_probe  # noqa: E402

LABELS = ["a", "b", "c"]
FEW = {"train": 6, "valid": 2, "test": 2}


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    """Thousands of small products: a second thread costs more than it brings."""
    torch.set_num_threads(1)


def random_events(rng: np.random.Generator, n: int) -> list[tuple[float, float, str]]:
    """Events on a grid of 50 ms, so that some differ by exactly the collar."""
    onsets = rng.integers(0, 190, n) / 20
    return [(a, a + rng.integers(1, 60) / 20, str(rng.choice(LABELS))) for a in onsets.tolist()]


def as_dicts(events: list[tuple[float, float, str]]) -> list[dict[str, object]]:
    names = ("event_onset", "event_offset", "event_label")
    return [dict(zip(names, event, strict=True), file="f") for event in events]


def test_scores_equal_those_of_sed_eval() -> None:
    sound_event = pytest.importorskip("sed_eval").sound_event
    rng = np.random.default_rng(0)
    reference = [random_events(rng, n) for n in (5, 8, 1, 12, 3)]
    estimated = [random_events(rng, n) for n in (7, 6, 0, 20, 3)]
    jitter = [(a + rng.uniform(-0.3, 0.3), b, c) for a, b, c in reference[1] if b > a + 0.3]
    estimated[1] = [(max(a, 0.0), b, c) for a, b, c in jitter] + estimated[1][:2]
    onset = sound_event.EventBasedMetrics(
        LABELS, evaluate_onset=True, evaluate_offset=False, t_collar=0.2
    )
    segment = sound_event.SegmentBasedMetrics(LABELS, time_resolution=1.0)
    for ours, theirs in zip(reference, estimated, strict=True):
        onset.evaluate(as_dicts(ours), as_dicts(theirs))
        segment.evaluate(as_dicts(ours), as_dicts(theirs))
    f = onset.results_overall_metrics()["f_measure"]["f_measure"]
    error_rate = segment.results_overall_metrics()["error_rate"]["error_rate"]
    assert 0.1 < f < 0.9
    assert scoring.onset_f(reference, estimated) == pytest.approx(f, abs=1e-12)
    assert scoring.segment_error_rate(reference, estimated) == pytest.approx(error_rate, abs=1e-12)


def test_scores_of_plain_cases() -> None:
    reference = [[(1.0, 2.0, "a"), (4.0, 4.5, "b")]]
    assert scoring.onset_f(reference, reference) == 1
    assert scoring.segment_error_rate(reference, reference) == 0
    assert scoring.onset_f(reference, [[]]) == 0
    assert scoring.segment_error_rate(reference, [[]]) == 1
    assert scoring.onset_f(reference, [[(1.19, 2.0, "a"), (4.21, 5.0, "b")]]) == 0.5
    assert scoring.onset_f(reference, [[(1.0, 2.0, "b")]]) == 0
    twice = [[(0.95, 2.0, "a"), (1.05, 2.0, "a")]]  # only one of them is right
    assert scoring.onset_f(reference, twice) == 0.5
    substituted = [[(1.0, 2.0, "c"), (4.0, 4.5, "b")]]
    assert scoring.segment_error_rate(reference, substituted) == 0.5


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
    metadata = json.loads((first / "task_metadata.json").read_text())
    assert metadata["splits"] == list(FEW)
    assert metadata["embedding_type"] == "event"
    for split, n in FEW.items():
        read = hear_task.read_split(first, split)
        assert read.audio.shape == (n, 160_000)
        assert {label for rows in read.events for *_, label in rows} <= set(synthesis.SOUNDS)
        names = json.loads((first / f"{split}.json").read_text())
        info = soundfile.info(first / "16000" / split / next(iter(names)))
        assert (info.samplerate, info.channels) == (16_000, 1)
    assert hear_task.read_labels(first) == list(synthesis.SOUNDS)
    other = hear_task.write_task(tmp_path / "c", FEW, seed=1)
    assert (other / "train.json").read_bytes() != (first / "train.json").read_bytes()


def test_probe_learns_what_is_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2000, 10, generator=generator) * torch.arange(1, 11) + 5
    targets = (features[:, :2] > torch.tensor([5.5, 6.0])).float()
    probe = train_probe(features[:1500], targets[:1500])
    right = (probe(features[1500:]) > 0).float() == targets[1500:]
    assert right.float().mean() > 0.9
    again = train_probe(features[:1500], targets[:1500])
    assert torch.equal(again.weight, probe.weight)
    assert not probe.weight.requires_grad


def test_frame_targets_hold_where_a_class_sounds() -> None:
    timestamps = torch.arange(10) * 40.0 + 20
    targets = frame_targets([(0.05, 0.15, "b"), (0.14, 0.22, "b")], LABELS, timestamps)
    assert targets.shape == (10, 3)
    assert targets[:, 1].tolist() == [0, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert targets[:, [0, 2]].sum() == 0


def test_source_is_the_best_published_file_at_hand(own_cache: Path) -> None:
    assert demo.find_source() is demo.STAND_IN
    (own_cache / "frame_mn06_strong_1.pt").touch()
    (own_cache / "BEATs_strong_1.pt").touch()
    (own_cache / "ASIT_ssl.pt").touch()
    found = demo.find_source()
    assert (found.checkpoint, found.file) == ("beats.strong", own_cache / "BEATs_strong_1.pt")
    assert "RANDOM" not in found.description and "RANDOM" in demo.STAND_IN.description


@pytest.mark.slow
def test_scaled_down_run(tmp_path: Path) -> None:
    text = io.StringIO()
    source = demo.Source("frame_mn06.strong", {"layer": [2, 5, 8]})
    rows = demo.run(tmp_path, source, Console(file=text, width=100), FEW)
    by_name = {row.name: row for row in rows}
    assert list(by_name)[:3] == ["frames", "frames + log-mel", "log-mel alone"]
    for row in rows:
        assert 0 <= row.test_f <= 1 and 0 <= row.valid_f <= 1
        assert row.test_error_rate >= 0 and math.isfinite(row.test_error_rate)
    nothing = by_name["no event at all"]
    assert (nothing.valid_f, nothing.test_f, nothing.test_error_rate) == (0, 0, 1)
    chance = by_name["chance: events at random"]
    assert 0 < chance.test_f < 0.2
    assert by_name["log-mel alone"].valid_f > 2 * chance.valid_f
    dims = [row.probe.in_features for row in rows[:3]]
    assert dims[0] + dims[2] == dims[1] and dims[2] == 128
    printed = text.getvalue()
    assert "RANDOM features" in printed
    for row in rows:  # every printed number is one that was computed
        assert f"{row.test_f:.3f}" in printed and f"{row.test_error_rate:.3f}" in printed
    assert (tmp_path / "recording.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "recording.tsv").read_text().startswith("filename\tonset")
    assert soundfile.info(tmp_path / "recording.wav").duration == demo.RECORDING_S
