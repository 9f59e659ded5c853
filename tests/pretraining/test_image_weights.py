"""`pretrain --image-weights`: PSLA's start from ImageNet, its place in the card, mistakes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hear_pretrainedsed.backbones.psla import Psla
from hear_pretrainedsed.registry import BACKBONES
from pretraining.build import start_model
from pretraining.corpus import Corpus
from pretraining.presets import PRESETS
from pretraining.run import run
from tests.pretraining.conftest import Call
from tests.pretraining.small_corpus import LABELS, small_corpus
from tests.pretraining.tiny_runs import DrawnBackbone, shrunken, tiny, tiny_run  # noqa: F401

PSLA = ("--preset", "weak-psla-audioset", "--backbone", "psla")


class ImageBackbone(DrawnBackbone):
    """With a first layer that images would have another one of."""

    image_skips = (r"blocks\.0\..*", r"_fc\..*")


@pytest.fixture
def images(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The tiny backbone, as one that can start from images."""
    monkeypatch.setitem(BACKBONES, "tiny", ImageBackbone)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"), 3)


def efficientnet(seed: int = 5) -> dict[str, Tensor]:
    """Invented weights under efficientnet_pytorch's names: three colours, 1000 classes."""
    torch.manual_seed(seed)
    state = {k: v.clone() for k, v in Psla().state_dict().items()}
    state["_conv_stem.weight"] = torch.randn(32, 3, 3, 3)
    return state | {"_fc.weight": torch.randn(1000, 1408), "_fc.bias": torch.randn(1000)}


def tiny_file(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    state = {k: torch.randn(v.shape) for k, v in ImageBackbone().state_dict().items()}
    torch.save(state | {"blocks.0.0.weight": torch.randn(16, 24), "_fc.bias": torch.ones(9)}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("counters", [True, False])
def test_psla_starts_from_images(tmp_path: Path, counters: bool) -> None:
    state = {k: v for k, v in efficientnet().items() if counters or "num_batches" not in k}
    torch.save(state, tmp_path / "efficientnet-b2.pth")
    recipe = PRESETS["weak-psla-fsd50k"]
    plain = start_model(recipe, LABELS, 0, backbone="psla").state_dict()
    path = tmp_path / "efficientnet-b2.pth"
    model = start_model(recipe, LABELS, 0, backbone="psla", image_weights=path)
    n_taken = 0
    for name, value in model.state_dict().items():
        given = state.get(name.removeprefix("backbone."))
        own = given is None or name == "backbone._conv_stem.weight"
        assert torch.equal(value, plain[name] if own else given), name
        n_taken += not own
    assert n_taken == len(state) - 3  # all but the stem and the classifier


def test_config_card_and_parents_tell_the_file(images: None, corpus: Corpus, tmp_path) -> None:
    path = tiny_file(tmp_path / "images.pth")
    job = tiny_run(shrunken(PRESETS["weak"]), corpus, tmp_path / "out")
    job = replace(job, sources=replace(job.sources, image_weights=path))
    start = job.start().state_dict()
    for name, value in torch.load(path).items():
        if name.startswith("blocks.1."):
            assert torch.equal(start[f"backbone.{name}"], value)
    assert start["backbone.blocks.0.0.weight"].shape == (16, 8)
    run(job)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    told = {"role": "image weights", "file": "images.pth", "sha256": sha256}
    assert card["parents"] == [told] and card["config"]["image_weights_sha256"] == sha256
    assert "not stated" in card["licence"]["image weights"]


def test_a_run_does_not_go_on_from_another_file(images: None, corpus: Corpus, tmp_path) -> None:
    job = tiny_run(shrunken(PRESETS["weak"]), corpus, tmp_path / "out")
    run(replace(job, sources=replace(job.sources, image_weights=tiny_file(tmp_path / "a.pth"))))
    other = replace(job.sources, image_weights=tiny_file(tmp_path / "b.pth", seed=1))
    with pytest.raises(ValueError, match=r"image_weights_sha256 was '\w{64}', is '\w{64}'"):
        run(replace(job, sources=other))
    with pytest.raises(ValueError, match=r"image_weights_sha256 was '\w{64}', is None"):
        run(job)


def test_a_plan_names_the_file(images: None, call: Call, tmp_path: Path) -> None:
    path = tiny_file(tmp_path / "images.pth")
    words = ("--preset", "weak-psla-audioset", "--backbone", "tiny", "--image-weights", path)
    code, out, err = call(*words, "--dry-run", "--corpus-size", 50, "--clips-per-s", 9)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert code == 0, err
    assert f"start:        weights of images, images.pth (sha256 {sha256[:12]}...)" in out


@pytest.mark.parametrize("more", [("--dry-run", "--corpus-size", 9), ("-o", "out")])
@pytest.mark.parametrize(
    ("start", "message"),
    [
        (("--backbone", "fmn04"), "images.pth is for --backbone psla: fmn04 has no start from im"),
        (("-c", "psla.weak-audioset"), "is for --backbone psla: a checkpoint brings its own weig"),
        ((), "is for --backbone psla: a checkpoint brings its own weights"),
    ],
)
def test_other_starts_are_refused(call: Call, corpus, tmp_path, start, message, more) -> None:
    words = ("--preset", "weak-psla-audioset", *start, "--image-weights", "images.pth")
    more = tuple(tmp_path / "out" if word == "out" else word for word in more)
    code, out, err = call(*words, "--corpus", corpus.folder, *more)
    assert code == 2 and message in err and err.count("\n") == 1 and out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_files_of_something_else_are_refused(call: Call, corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights, but long enough for a file")
    less = efficientnet()
    del less["_blocks.3._bn1.weight"]
    torch.save(less, tmp_path / "less.pth")
    torch.save({"features.0.0.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "other.pth")
    for name, message in (
        ("gone.pth", "gone.pth: there is no such file"),
        ("text.pth", "text.pth is no file of weights"),
        ("less.pth", "less.pth does not hold this backbone: 1 missing: _blocks.3._bn1.weight"),
        ("other.pth", "1 unknown: features.0.0.weight"),
    ):
        words = (*PSLA, "--corpus", corpus.folder, "--image-weights", tmp_path / name)
        code, out, err = call(*words, "-o", tmp_path / "out")
        assert code == 2 and message in err and err.count("\n") == 1 and out == "", err
    assert not (tmp_path / "out").exists()
