"""Clips of other lengths than 10 s: FSD50K's 30 s, as PSLA sees them, from corpus to checkpoint."""

from __future__ import annotations

import csv
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hear_pretrainedsed as hps
from hear_pretrainedsed.backbones.base import Backbone
from hear_pretrainedsed.backbones.psla import Psla, PslaMel
from hear_pretrainedsed.frontends import KaldiMel
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.registry import BACKBONES, CHECKPOINTS
from hear_pretrainedsed.training.augment import mix_audio
from hear_pretrainedsed.training.augmentation import Augmentation
from hear_pretrainedsed.training.batch import Batch
from hear_pretrainedsed.user_registry import import_checkpoint, remove_checkpoint
from pretraining.build import start_model
from pretraining.clips import Clips, Draw, crop_start, decode
from pretraining.corpus import Corpus, open_corpus
from pretraining.corpus_writer import write_corpus
from pretraining.encoding import encode
from pretraining.importers import Request, list_clips
from pretraining.presets import PRESETS
from pretraining.run import run
from pretraining.run_folders import read_runs
from pretraining.teacher_scores import compute_scores
from pretraining.validation import clip_table
from pretraining.vocabulary import open_vocabulary
from tests.pretraining.conftest import Call
from tests.pretraining.small_corpus import encoded, small_corpus, sound
from tests.pretraining.test_clips import FakeCorpus, Logits, clip
from tests.pretraining.tiny_runs import DrawnFrontend, shrunken, tiny, tiny_run  # noqa: F401

FSD50K = PRESETS["weak-psla-fsd50k"]
N, FILL = 480_000, (0 + 4.6476) / 4.5699
SECONDS = {"3": 3.0, "25": 25.0, "30": 30.0, "33": 33.0}

pytestmark = pytest.mark.usefixtures("tiny")


class LightTrunk(Backbone):
    """PSLA's front end and steps of 32 spec frames at next to no cost; notes what it sees."""

    embed_dim = 16
    any_length = True
    token_span_samples, first_token_samples = Psla.token_span_samples, Psla.first_token_samples
    prefixes = ("light.",)
    seen: ClassVar[list[Tensor]] = []

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(128, 16)])

    @staticmethod
    def build_frontend() -> PslaMel:
        return PslaMel()

    @property
    def blocks_(self) -> nn.ModuleList:
        return self.blocks

    def embed(self, spec: Tensor) -> Tensor:
        self.seen.append(spec.detach().clone())
        return nn.functional.avg_pool1d(spec[:, 0], 32, ceil_mode=True).transpose(1, 2)

    def layer_of(self, name: str) -> int:
        return self._layer_by_pattern(name, r"blocks\.(\d+)\.", r"$^")


@pytest.fixture
def light(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The backbones `tiny` and `psla` are `LightTrunk`."""
    monkeypatch.setitem(BACKBONES, "tiny", LightTrunk)
    monkeypatch.setitem(BACKBONES, "psla", LightTrunk)
    LightTrunk.seen.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsd50k")


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    """As FSD50K: recordings of any length, with clip labels."""
    audio = folder / "FSD50K.dev_audio"
    audio.mkdir()
    lines = ["fname,labels,mids,split"]
    for i, (name, seconds) in enumerate(SECONDS.items()):
        loud = sound(seconds, seed=i) * np.linspace(0.2, 1, round(seconds * 16_000))[:, None]
        (audio / f"{name}.wav").write_bytes(encoded(loud + 0.01, "WAV"))
        lines.append(f'{name},{("Bark", "Bell")[i % 2]},"",train')
    (folder / "vocabulary.csv").write_text("0,Bark,/m/05tny_\n1,Bell,/m/0395lw\n")
    (folder / "dev.csv").write_text("\n".join(lines) + "\n")
    request = Request((audio,), (), (folder / "dev.csv",), str(folder / "vocabulary.csv"))
    return open_corpus(write_corpus(list_clips("fsd50k", request), folder / "corpus"))


def by_hand(audio: np.ndarray, spec_frames: int = 3000) -> Tensor:
    """A clip's own log mel, then zeros before normalisation: (1, 1, 128, spec_frames)."""
    mel = KaldiMel(mean=-4.6476, std=4.5699)(torch.from_numpy(audio - audio.mean())[None])
    return nn.functional.pad(mel[..., :spec_frames], (0, spec_frames - mel.shape[3]), value=FILL)


def own_model(backbone: str = "psla", clip_s: float = 30.0) -> SEDModel:
    recipe = replace(FSD50K, clip_s=clip_s)
    return start_model(recipe, ("Bell", "Bark"), 3, backbone=backbone).eval()


@torch.no_grad()
def with_statistics(model: SEDModel, specs: Tensor) -> SEDModel:
    """Batch norms that know these specs: at the random start every clip has the same scores."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1
    model.train().backbone(specs)
    return model.eval()


def test_the_network_is_trained_on_30_s(light: None, corpus: Corpus, tmp_path: Path) -> None:
    recipe = replace(shrunken(FSD50K), augmentation=Augmentation(), sampling="uniform")
    recipe = replace(recipe, replacement=False, n_epochs=1)
    job = tiny_run(recipe, corpus, tmp_path / "out")
    job = replace(job, sources=replace(job.sources, valid=None))
    run(job)
    draws = [draw for step in range(2) for draw in job.order.step(step)]
    seen = torch.cat(LightTrunk.seen)
    assert seen.shape == (4, 1, 128, 3000) and sorted(d.index for d in draws) == [0, 1, 2, 3]
    for spec, draw in zip(seen, draws, strict=True):
        audio = decode(corpus[draw.index].audio)
        start = crop_start(len(audio), draw.seed, N)
        assert (start > 0) == (len(audio) > N)
        wanted = by_hand(audio[start : start + N])[0]
        assert (spec - wanted).abs().max() < 1e-3
        n_own = 1 + (min(len(audio), N) - 400) // 160
        assert (spec[..., n_own:] == torch.tensor(FILL)).all() and n_own < 3000


@pytest.mark.parametrize("backbone", ["light", pytest.param("psla", marks=pytest.mark.slow)])
@torch.no_grad()
def test_scores_in_validation_are_of_whole_clips(
    corpus: Corpus, backbone: str, request: pytest.FixtureRequest
) -> None:
    if backbone == "light":
        request.getfixturevalue("light")
    specs = torch.cat([by_hand(decode(corpus[i].audio)[:N]) for i in (0, 1)])
    model = with_statistics(own_model(), specs)
    scores, targets = clip_table(model, corpus)
    for number, name in enumerate(corpus.names):
        audio = decode(corpus[number].audio)
        hand = model.head.clip(model.backbone(by_hand(audio[:N])))[0]
        np.testing.assert_allclose(scores[number], hand.numpy(), atol=2e-5)
        if name != "33":  # longer than the model sees at once
            whole = model.weak_scores(torch.from_numpy(audio)[None])[0]
            np.testing.assert_allclose(scores[number], whole.numpy(), atol=2e-5)
        assert targets[number].tolist() == [number % 2, 1 - number % 2]
    assert np.ptp(scores, axis=0).min() > 1e-4  # the clips are told apart


@torch.no_grad()
def test_short_clips_of_10_s_are_filled_up_alike(light: None, corpus: Corpus) -> None:
    """AudioSet's 1056 spec frames: what follows a clip is no silence there either."""
    model, audio = own_model(clip_s=10.0), decode(corpus[0].audio)
    assert model.clip_samples == 168_960
    wanted = model.head.clip(model.backbone(by_hand(audio, 1056)))[0]
    np.testing.assert_allclose(clip_table(model, corpus)[0][0], wanted.numpy(), atol=2e-5)


def test_a_teacher_of_labels_hears_clips_so_too(light: None, folder: Path, corpus: Corpus) -> None:
    model = own_model()
    vocabulary = open_vocabulary(str(folder / "vocabulary.csv"))
    found = compute_scores(model, corpus, range(4), vocabulary, batch_size=3)
    place = {name: number for number, name in enumerate(corpus.names)}
    for name, scores in zip(found.names, found.scores, strict=True):
        audio = torch.from_numpy(decode(corpus[place[name]].audio))
        wanted = model.weak_scores(audio[None]).detach()[0].flip(0)
        np.testing.assert_allclose(scores, wanted.numpy(), atol=1e-6)


def test_the_checkpoint_keeps_its_length(light: None, corpus: Corpus, tmp_path: Path) -> None:
    job = tiny_run(shrunken(FSD50K), corpus, tmp_path / "out")
    made = run(job)
    assert all(spec.shape[3] == 3000 for spec in LightTrunk.seen)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["config"]["clip_s"] == 30.0
    (folder,) = read_runs([tmp_path / "out"])
    network = folder.network()
    network.load_state_dict(made.model.state_dict())
    assert network.clip_samples == N
    wanted = clip_table(made.model, corpus)[0]
    np.testing.assert_array_equal(clip_table(network, corpus)[0], wanted)
    with (tmp_path / "out" / "results.csv").open() as file:
        best = next(csv.DictReader(file))
    scores = [score for _, score in made.fitted.valid_scores]
    assert float(best["map"]) == pytest.approx(max(scores), abs=1e-5)
    try:
        with warnings.catch_warnings(action="ignore"):
            import_checkpoint(made.path, "psla.weak-mine")
            loaded = hps.load_model(checkpoint="psla.weak-mine")
        assert CHECKPOINTS["psla.weak-mine"].clip_s == 30.0 and loaded.clip_samples == N
        audio = torch.from_numpy(decode(corpus[0].audio))[None]
        assert torch.equal(loaded.weak_scores(audio), made.model.weak_scores(audio))
        own = hps.load_model(made.path, checkpoint="psla.weak-audioset")
        assert own.clip_samples == N  # the file's own, not that of the name
    finally:
        remove_checkpoint("psla.weak-mine")


def test_a_run_of_another_length_is_another_run(light: None, corpus: Corpus, tmp_path) -> None:
    recipe = replace(shrunken(FSD50K), n_epochs=1)
    run(tiny_run(recipe, corpus, tmp_path / "out"))
    with pytest.raises(ValueError, match=r"clip_s was 30.0, is 12.0"):
        run(tiny_run(replace(recipe, clip_s=12.0), corpus, tmp_path / "out"))


def test_crops_of_another_length_keep_their_events() -> None:
    audio = np.linspace(-0.9, 0.9, 33 * 16_000).astype(np.float32)
    events = ((2.5, 4.0, 0), (20.0, 31.5, 1))
    clips = Clips(FakeCorpus([clip(audio, events)]), clip_samples=N)
    row = clips[Draw(0, 8)]
    start = crop_start(len(audio), 8, N)
    assert 0 < start <= 3 * 16_000 and row.n_samples == N
    np.testing.assert_allclose(row.audio, audio[start : start + N], atol=1e-4)
    shifted = [(a - start / 16_000, b - start / 16_000, c) for a, b, c in events]
    np.testing.assert_array_equal(row.targets, encode(shifted, 2, 750))
    batch = clips.batch([row])
    assert batch.targets.shape == (1, 750, 2) and batch.n_samples.tolist() == [N]
    assert clips.batch([]).targets.shape == (0, 750, 2) and clips.batch([]).audio.shape == (0, N)
    with pytest.raises(ValueError, match="clip_samples is 480000; pseudo labels are of 10 s"):
        Clips(FakeCorpus([clip(audio)]), Logits(), clip_samples=N)


def test_mixtures_end_where_their_clip_does() -> None:
    """Slow and obvious: clip by clip, each partner brought to the clip's length (PSLA)."""
    torch.manual_seed(0)
    n_samples = torch.tensor([3, 9, 6])
    clips = [torch.randn(n) + 1 for n in n_samples]
    rows = nn.utils.rnn.pad_sequence(clips, batch_first=True)
    partner, shares = torch.tensor([1, 2, 0]), torch.tensor([0.4, 0.7, 0.9])
    chosen = torch.tensor([True, True, False])
    mixed = mix_audio(Batch(rows, n_samples=n_samples), partner, shares, chosen)
    for i in range(2):
        one, other = (clips[k] - clips[k].mean() for k in (i, int(partner[i])))
        fitting = torch.zeros_like(one)
        fitting[: len(other)] = other[: len(one)]
        wanted = shares[i] * one + (1 - shares[i]) * fitting
        n = len(one)
        torch.testing.assert_close(mixed.audio[i, :n], wanted - wanted.mean())
        assert not mixed.audio[i, n:].any()
    assert torch.equal(mixed.audio[2], rows[2]) and torch.equal(mixed.n_samples, n_samples)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("strong_teacher",), "clip_s is 30 with stage strong, head linear, sequence_model gru-20"),
        (("strong_student",), "stage strong, head linear, pseudo file: frames, events and pseudo "),
        (("weak", "--backbone", "psla"), "clip_s is 30 with head linear: frames, events"),
        (("weak-psla-fsd50k", "--backbone", "fmn04"), "Fmn sees 10 s at a time here: take --back"),
        (("weak-psla-fsd50k", "--set", "clip_s=0.5"), "clip_s is 0.5; it is from 1 to 600 sec"),
        (("weak-psla-fsd50k", "--set", "clip_s=long"), "clip_s is 'long'; it was 30.0"),
    ],
)
def test_what_cannot_be_longer_is_refused(call: Call, tmp_path: Path, words, message) -> None:
    size = ("--dry-run", "--corpus-size", 9, "--clips-per-s", 9)
    length = () if "fsd50k" in words[0] else ("--set", "clip_s=30.0")
    code, out, err = call("--preset", *words, *length, *size)
    assert code == 2 and message in err and err.count("\n") == 1 and out == ""


def test_a_frame_head_still_hears_silence(tmp_path: Path, monkeypatch) -> None:
    """A linear head's frames in silence are frames like others, in training and afterwards."""
    corpus = small_corpus(tmp_path / "corpus", 2)
    monkeypatch.delattr(DrawnFrontend, "clips")  # of heads on tokens alone
    recipe = replace(shrunken(PRESETS["weak"]), augmentation=Augmentation(wav_mixup=1.0))
    made = run(tiny_run(recipe, corpus, tmp_path / "out"))
    audio = np.zeros((1, 160_000), np.float32)
    own = decode(corpus[0].audio)
    audio[0, : len(own)] = own
    with torch.no_grad():
        wanted = made.model.weak_scores(torch.from_numpy(audio))[0]
    np.testing.assert_allclose(clip_table(made.model, corpus)[0][0], wanted.numpy(), atol=1e-6)


def test_plans_of_whole_clips(light: None, call: Call) -> None:
    """The estimate grows with the clip; a head for clips alone has one, too."""
    needs = []
    for length in (10.0, 30.0):
        words = ("--preset", "weak-psla-fsd50k", "--backbone", "psla", "--set", f"clip_s={length}")
        code, out, err = call(*words, "--dry-run", "--corpus-size", 99)
        assert code == 0, err
        assert f"24 clips x 1 a step; a clip has {length:g} s" in out
        needs.append(next(line for line in out.splitlines() if line.startswith("memory")))
    assert "batch 0.03 GiB" in needs[0] and "batch 0.09 GiB" in needs[1]
    assert {(len(spec), spec.shape[3]) for spec in LightTrunk.seen[-3:]} == {(4, 3000), (1, 3000)}
    code, out, err = call("--preset", "weak", "--backbone", "tiny", "--dry-run", "--corpus-size", 9)
    assert code == 0 and "memory:" in out and "a clip has 10 s" in out, err
