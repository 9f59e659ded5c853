"""Thresholds and medians per class: in decoding, live, in files of weights, in `detect`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hear_pretrainedsed as hps
from hear_pretrainedsed import cli
from hear_pretrainedsed.checkpoints import save_weights
from hear_pretrainedsed.decoding import Decoding, decoding_for
from hear_pretrainedsed.event_tracker import EventTracker
from hear_pretrainedsed.events import scores_to_events
from hear_pretrainedsed.heads import LinearHead
from hear_pretrainedsed.model import SEDModel, build_model
from hear_pretrainedsed.streaming import StreamingDetector
from hear_pretrainedsed.user_registry import import_checkpoint, remove_checkpoint
from hear_pretrainedsed.weight_files import FACTS_KEY, CheckpointError, read_saved

LABELS = ("a", "b", "c")
OWN = Decoding((0.3, 0.5, 0.7), (1, 5, 9))


def some_scores(seed: int, n_frames: int = 120) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((n_frames, 3)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    n_frames=st.integers(0, 60),
    sizes=st.tuples(*[st.sampled_from([1, 2, 3, 6, 15])] * 3),
    thresholds=st.tuples(*[st.sampled_from([0.2, 0.5, 0.8])] * 3),
)
def test_classes_are_decoded_each_by_its_own(seed, n_frames, sizes, thresholds) -> None:
    scores = some_scores(seed, n_frames)
    found = scores_to_events(scores, LABELS, threshold=thresholds, median_frames=sizes)
    alone = [
        event
        for i, label in enumerate(LABELS)
        for event in scores_to_events(
            scores[:, i : i + 1], [label], threshold=thresholds[i], median_frames=sizes[i]
        )
    ]
    assert found == sorted(alone, key=lambda event: (event.onset_s, event.label))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    sizes=st.tuples(*[st.sampled_from([1, 2, 3, 6, 15, 41])] * 3),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_live_is_offline(seed, sizes, cuts) -> None:
    scores = some_scores(seed, 60)
    tracker = EventTracker(LABELS, (0.4, 0.5, 0.6), sizes)
    assert tracker.ahead_frames == max(size - 1 - size // 2 for size in sizes)
    found = [e for part in np.split(scores, sorted(cuts)) for e in tracker.feed(part)]
    found += tracker.close()
    wanted = scores_to_events(scores, LABELS, threshold=(0.4, 0.5, 0.6), median_frames=sizes)
    assert [e[:3] for e in sorted(found)] == [e[:3] for e in sorted(wanted)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 2), r"one number or 3 \(one a class\), got \(2,\)"),
        ((1, 0, 1), "a whole number from 1"),
        ((1, 1.5, 1), "a whole number from 1"),
    ],
)
def test_wrong_sizes(sizes, message) -> None:
    with pytest.raises(ValueError, match=message):
        scores_to_events(some_scores(0), LABELS, median_frames=sizes)


@pytest.mark.parametrize(
    ("thresholds", "medians", "message"),
    [
        ((0.5,), (1, 1), "1 thresholds and 2 median lengths"),
        ((0.5, 1.5), (1, 1), "a score from 0 to 1, got 1.5"),
        ((float("nan"),), (1,), "a score from 0 to 1, got nan"),
        ((0.5,), (4,), "an odd number of frames from 1 on, got 4"),
        ((0.5,), (-1,), "an odd number of frames from 1 on, got -1"),
    ],
)
def test_wrong_decodings(thresholds, medians, message) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(thresholds, medians)


def own_model() -> SEDModel:
    torch.manual_seed(0)
    model = build_model("fmn04", head="linear", labels=LABELS)
    model.head = LinearHead(model.frame_dim, 3, weak=False)
    with torch.no_grad():
        model.head.strong.weight.mul_(3)
    model.provenance = {"checkpoint": "fmn04.strong", "origin": {"task": "mine", "lr": 0.1}}
    model.decoding = OWN
    return model.eval()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> SEDModel:
    return own_model()


def test_what_is_given_comes_first(own: SEDModel) -> None:
    calibrated = {"threshold": [0.3, 0.5, 0.7], "median_frames": [1, 5, 9]}
    assert decoding_for(own, LABELS) == calibrated
    assert decoding_for(own, ["c", "a"]) == {"threshold": [0.7, 0.3], "median_frames": [9, 1]}
    assert decoding_for(own, LABELS, 0.1) == {"threshold": 0.1, "median_frames": [1, 5, 9]}
    assert decoding_for(own, LABELS, None, 3) == {"threshold": [0.3, 0.5, 0.7], "median_frames": 3}
    plain = build_model("fmn04", head="linear", labels=LABELS)
    assert decoding_for(plain, LABELS) == {"threshold": 0.5, "median_frames": None}


def test_detect_uses_what_was_calibrated(own: SEDModel) -> None:
    audio = 0.1 * torch.randn(1, 80_000, generator=torch.Generator().manual_seed(0))
    scores = own.scores(audio)[0]
    kwargs = {"duration_s": 5.0}
    wanted = scores_to_events(
        scores, LABELS, threshold=OWN.thresholds, median_frames=OWN.median_frames, **kwargs
    )
    assert hps.detect(audio[0], own) == wanted
    given = scores_to_events(
        scores, LABELS, threshold=0.45, median_frames=OWN.median_frames, **kwargs
    )
    assert hps.detect(audio[0], own, 0.45) == given != wanted
    live = StreamingDetector(own)
    found = [*live.feed(audio[0]).events, *live.close().events]
    offline = hps.detect(audio[0], own)
    assert sorted(e[:3] for e in found) == sorted(e[:3] for e in offline)


def test_detect_keeps_nothing_for_gradients(own: SEDModel, monkeypatch) -> None:
    given = []
    scores = own.scores
    monkeypatch.setattr(own, "scores", lambda audio: given.append(scores(audio)) or given[-1])
    hps.detect(torch.zeros(16_000), own)
    assert [x.requires_grad for x in given] == [False]


def test_detect_takes_no_array(own: SEDModel) -> None:
    with pytest.raises(ValueError, match="got ndarray; torch.from_numpy makes one"):
        hps.detect(np.zeros(16_000, np.float32), own)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_files_keep_it(own: SEDModel, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"mine.{ending}"
    save_weights(own, path)
    model = hps.load_model(path)
    assert model.decoding == OWN and model.labels == LABELS
    assert model.provenance["origin"] == {"task": "mine", "lr": 0.1}
    assert model.provenance["checkpoint"] == "fmn04.strong" and model.head.weak is None
    audio = 0.1 * torch.randn(1, 32_000)
    torch.testing.assert_close(model.scores(audio), own.scores(audio))
    save_weights(model, tmp_path / f"again.{ending}")
    assert read_saved(tmp_path / f"again.{ending}") == read_saved(path)


def test_scores_are_computed_as_when_thresholds_were_found(tmp_path: Path) -> None:
    """In overlapping windows, say; what is given comes first, and other files change nothing."""
    model = own_model()
    model.provenance["origin"]["recipe"] = {"windowing": "overlap", "lrs": [0.1]}
    path = tmp_path / "model.safetensors"
    save_weights(model, path)
    assert hps.load_model(path).options.windowing == "overlap"
    assert hps.load_model(path, windowing="reference").options.windowing == "reference"
    name = import_checkpoint(path, "fmn04.strong-windows").name
    try:
        assert hps.load_model(checkpoint=name).options.windowing == "overlap"
    finally:
        remove_checkpoint(name)
    model.provenance["origin"]["recipe"] = "strong_student"  # as `pretrain` tells it
    save_weights(model, tmp_path / "other.safetensors")
    assert hps.load_model(tmp_path / "other.safetensors").options.windowing == "reference"


def test_commands_take_a_file_s_windowing(tmp_path: Path) -> None:
    model = own_model()
    model.provenance["origin"]["recipe"] = {"windowing": "overlap"}
    path = tmp_path / "model.safetensors"
    save_weights(model, path)
    audio = 0.1 * np.random.default_rng(0).standard_normal(16_000 * 12)
    soundfile.write(tmp_path / "a.wav", audio, 16_000)
    said = {}
    for command, ending in (("detect", "events"), ("embed", "embeddings")):
        for more in ([], ["--windowing", "reference"]):
            words = [command, tmp_path / "a.wav", "-c", "fmn04.strong", "--weights", path]
            words += ["-o", tmp_path, *more, *(["--format", "json"] * (command == "detect"))]
            with pytest.raises(SystemExit) as stop:
                cli.main(list(map(str, words)))
            assert stop.value.code == 0
            facts = json.loads((tmp_path / f"a.{ending}.json").read_text())
            said[command, bool(more)] = facts["windowing"]
    assert said == {
        ("detect", False): "overlap",
        ("detect", True): "reference",
        ("embed", False): "overlap",
        ("embed", True): "reference",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"decoding": {"thresholds": [0.5], "median_frames": [1]}},
        {"decoding": {"thresholds": [2.0] * 3, "median_frames": [1] * 3}},
        {"decoding": {"thresholds": [0.5] * 3}},
        {"decoding": [0.5]},
        {"origin": "mine"},
        {"origin": {"recipe": {"windowing": "overlp"}}},
    ],
)
def test_files_that_say_nonsense_are_refused(own: SEDModel, tmp_path: Path, change: dict) -> None:
    save_weights(own, tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    content[FACTS_KEY] = json.dumps(json.loads(content[FACTS_KEY]) | change)
    torch.save(content, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="what it says about itself cannot be read"):
        hps.load_model(tmp_path / "b.pt", checkpoint="fmn04.strong")
