"""PSDS1 and mAP during training are those of `downstream.metrics` on what the model gives."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from downstream.metrics import PSDS1, frame_map, psds
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.training.new_head import with_head
from pretraining import validation
from pretraining.build import random_model
from pretraining.clips import decode, window
from pretraining.corpus import Corpus, open_corpus
from pretraining.corpus_writer import write_corpus
from pretraining.importers import Request, list_clips
from pretraining.validation import (
    check_decodable,
    clip_table,
    mean_ap,
    median,
    psds1,
    shared_classes,
)
from tests.pretraining.small_corpus import (
    LABELS,
    MIDS,
    encoded,
    small_corpus,
    sound,
    write_classes,
    write_strong,
    write_weak,
)
from tests.pretraining.tiny_runs import tiny  # noqa: F401

pytestmark = pytest.mark.usefixtures("tiny")
OWN = ("Speech", "Music", "Bark")  # of the model: two are the corpus', in another order


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Loud noise where there is an event; clip 3 has none of the model's classes."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "audio").mkdir()
    rng, rows = np.random.default_rng(0), []
    for i in range(8):
        audio = sound(10 if i else 14, seed=i) * 0.05
        kinds = [1] if i == 3 else rng.integers(3, size=3)
        for kind in kinds:
            onset = float(rng.uniform(0, 9))
            rows.append((f"c{i}_0", onset, onset + 1.5, MIDS[kind]))
            audio[int(onset * 16_000) : int((onset + 1.5) * 16_000)] *= 8 + kind
        if i == 1:  # one class twice, overlapping
            rows += [("c1_0", 4.0, 6.0, MIDS[0]), ("c1_0", 5.5, 7.0, MIDS[0])]
        (folder / "audio" / f"c{i}_0.flac").write_bytes(encoded(audio))
    strong = write_strong(folder / "strong.tsv", rows)
    request = Request(
        audio=(folder / "audio",), strong=(strong,), classes=str(write_classes(folder))
    )
    return open_corpus(write_corpus(list_clips("folder", request), folder / "corpus"))


def model_for(labels: tuple[str, ...] = OWN, **parts: bool) -> SEDModel:
    return with_head(random_model("tiny", 0), labels, 0, **parts).eval()


@torch.no_grad()
def test_psds1_is_that_of_smoothed_logits_of_the_shared_classes(corpus: Corpus) -> None:
    model = model_for()
    labels = ("Speech", "Bark")
    scores, reference = {}, {}
    for i in range(len(corpus)):
        record = corpus[i]
        named = [(a, min(b, 10.0), corpus.labels[c]) for a, b, c in record.events if a < 10]
        known = [event for event in named if event[2] in labels]
        if known:
            logits = model.logits(torch.from_numpy(window(decode(record.audio), 0))[None])[0]
            smooth = scipy.ndimage.median_filter(logits.numpy(), (9, 1), mode="reflect")
            scores[record.name], reference[record.name] = smooth[:, [0, 2]], united(known)
    assert len(scores) > 4 and "c3_0" not in scores
    durations = dict.fromkeys(scores, 10.0)
    wanted = psds(scores, 0.04, labels, reference, durations, **PSDS1).macro
    assert 0 < wanted < 1 and psds1(model, corpus) == pytest.approx(wanted, abs=1e-6)
    model.options = type(model.options)(batch_size=3)
    assert psds1(model, corpus) == pytest.approx(wanted, abs=1e-6)


def united(events: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Slow and obvious: milliseconds that are in any event."""
    out = []
    for label in {event[2] for event in events}:
        own = sorted(event for event in events if event[2] == label)
        while own:
            a, b, _ = own.pop(0)
            while own and own[0][0] <= b:
                b = max(b, own.pop(0)[1])
            out.append((a, b, label))
    return out


@torch.no_grad()
def test_map_is_of_the_clips(corpus: Corpus) -> None:
    model = model_for(weak=True)
    scores, targets = [], []
    for i in range(len(corpus)):
        record = corpus[i]
        audio = torch.from_numpy(window(decode(record.audio), 0))[None]
        scores.append(model.weak_scores(audio)[0].numpy()[[0, 2]])
        targets.append([int(2 in record.weak), int(0 in record.weak)])
    both = {"a": np.array(scores)}, {"a": np.array(targets, np.uint8)}
    assert clip_table(model, corpus)[0] == pytest.approx(np.array(scores), abs=1e-6)
    assert mean_ap(model, corpus) == pytest.approx(frame_map(*both, ("Speech", "Bark")).macro)


@pytest.mark.parametrize("value", [psds1, mean_ap])
def test_fewer_clips_at_a_time_when_memory_runs_out(corpus, value) -> None:
    wanted, model = value(model_for(weak=True), corpus), model_for(weak=True)
    sizes = []

    def short_of_memory(module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model.frontend.register_forward_pre_hook(short_of_memory)
    assert value(model, corpus) == pytest.approx(wanted, abs=1e-6)
    assert sizes[:3] == [4, 2, 2] and max(sizes[1:]) == 2


def test_a_corpus_without_what_is_asked_is_refused(corpus, tmp_path) -> None:
    with pytest.raises(ValueError, match="has none of the 2 classes that are learned"):
        psds1(model_for(("Music", "Rain")), corpus)
    assert shared_classes(("Bell", "Rain", "Bark"), corpus).labels == ("Bell", "Bark")
    audio = tmp_path / "audio"
    audio.mkdir()
    (audio / "w0_30000.flac").write_bytes(encoded(sound(1)))
    weak = write_weak(tmp_path / "weak.csv", {"w0": ",".join(MIDS[:1])})
    request = Request(audio=(audio,), weak=(weak,), classes=str(write_classes(tmp_path)))
    weak_corpus = open_corpus(write_corpus(list_clips("folder", request), tmp_path / "corpus"))
    with pytest.raises(ValueError, match="PSDS1 needs a strong corpus"):
        psds1(model_for(LABELS), weak_corpus)


def test_broken_clips_are_left_out(tmp_path, monkeypatch) -> None:
    corpus = small_corpus(tmp_path, 4)
    plain = validation.decode
    calls = []

    def breaks(data: bytes) -> np.ndarray:
        calls.append(data)
        if len(calls) == 2:
            raise validation.AudioError("damaged")
        return plain(data)

    monkeypatch.setattr(validation, "decode", breaks)
    with pytest.warns(UserWarning, match="1 clip cannot be decoded: clip1_0"):
        assert 0 <= psds1(model_for(LABELS), corpus) <= 1


def test_a_corpus_of_broken_clips_is_refused(tmp_path, monkeypatch) -> None:
    def breaks(data: bytes) -> np.ndarray:
        raise validation.AudioError("damaged")

    corpus = small_corpus(tmp_path, 4)
    monkeypatch.setattr(validation, "decode", breaks)
    with pytest.raises(ValueError, match="4 clips cannot be decoded: clip0_0, .*damaged"):
        psds1(model_for(LABELS), corpus)
    with pytest.raises(ValueError, match="4 clips cannot be decoded: clip0_0, .*damaged"):
        check_decodable(corpus)


def test_one_clip_that_can_be_decoded_is_enough(tmp_path, monkeypatch) -> None:
    corpus = small_corpus(tmp_path, 4)
    plain, last = validation.decode, corpus[3].audio
    seen = []

    def breaks(data: bytes) -> np.ndarray:
        seen.append(data)
        if data != last:
            raise validation.AudioError("damaged")
        return plain(data)

    monkeypatch.setattr(validation, "decode", breaks)
    check_decodable(corpus)
    assert len(seen) == 4
    monkeypatch.setattr(validation, "decode", lambda data: seen.append(data) or plain(data))
    check_decodable(corpus)
    assert len(seen) == 5  # no more is decoded than is needed


@settings(max_examples=20)
@given(st.integers(9, 60), st.integers(0, 1000))
def test_the_median_is_scipy_s(n_frames: int, seed: int) -> None:
    values = torch.randn(2, n_frames, 3, generator=torch.Generator().manual_seed(seed))
    wanted = scipy.ndimage.median_filter(values.numpy(), (1, 9, 1), mode="reflect")
    assert np.array_equal(median(values).numpy(), wanted)
