"""PSLA: registry lines, files, class names, starts from other networks."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor

import hear_pretrainedsed as hps
from hear_pretrainedsed.backbones.psla import Psla
from hear_pretrainedsed.checkpoints import (
    CheckpointError,
    load_for_transfer,
    load_image_weights,
    load_weights,
    save_weights,
)
from hear_pretrainedsed.model import Options, build_checkpoint, build_model
from hear_pretrainedsed.registry import get_checkpoint, list_checkpoints, read_labels
from tests.psla_reference import AUDIOSET, FSD50K, N_PARAMETERS, noise, published, released

# ---- registry and files ----


@pytest.fixture(scope="module")
def audioset_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("psla") / "own.pth", 527)


@pytest.fixture(scope="module")
def fsd50k_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("psla") / "own.pth", 200)


def test_registry_lines() -> None:
    names = [name for name in list_checkpoints() if name.startswith("psla.")]
    assert names == [AUDIOSET, f"{AUDIOSET}-wa", FSD50K, f"{FSD50K}-wa"]
    facts = [get_checkpoint(name) for name in names]
    assert len({c.file for c in facts}) == 4
    assert {(c.stage, c.url, c.sha256, c.references) for c in facts} == {
        ("weak", None, None, ("psla",))
    }
    labels = read_labels("audioset_527")
    assert len(set(labels)) == 527 and labels[0] == "Speech"
    assert labels[526] == "Field recording" and labels[73] != labels[74]


def test_labels_are_the_published_ones(shared: Path) -> None:
    path = shared / "data" / "meta" / "audioset_class_labels_indices.csv"
    with path.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["index"]))
    assert read_labels("audioset_527") == tuple(row["display_name"] for row in rows)


@pytest.mark.parametrize("name", [AUDIOSET, FSD50K])
def test_a_missing_file_is_asked_for_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=get_checkpoint(name).file):
        hps.load_model(checkpoint=name)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_a_released_file_is_found_in_the_cache(own_cache: Path, prefix: str) -> None:
    for name in (AUDIOSET, f"{AUDIOSET}-wa"):
        path = released(own_cache / get_checkpoint(name).file, 527, prefix=prefix)
        model = hps.load_model(checkpoint=name)
        assert model.provenance["left_out"] == [
            f"{prefix}effnet._fc.weight",
            f"{prefix}effnet._fc.bias",
        ]
        state = torch.load(path, weights_only=True)
        for key, value in model.state_dict().items():
            assert torch.equal(value, state[prefix + published(key)]), key
        assert len(model.labels) == 527 and model.n_parameters == N_PARAMETERS


@pytest.mark.slow
def test_files_of_other_classes_or_damaged_ones_are_refused(
    audioset_file: Path, fsd50k_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="of another shape.*head.att.0"):
        hps.load_model(fsd50k_file, checkpoint=AUDIOSET)
    state = torch.load(audioset_file, weights_only=True)
    del state["module.attention.head_weight"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match="1 missing: head.head_weight"):
        hps.load_model(tmp_path / "less.pth", checkpoint=AUDIOSET)
    state["module.attention.head_weight"] = torch.ones(4)
    state["module.effnet._blocks.23._bn0.bias"] = torch.ones(4)
    torch.save(state, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match="1 unknown: module.effnet._blocks.23"):
        hps.load_model(tmp_path / "more.pth", checkpoint=AUDIOSET)


@pytest.mark.slow
def test_unknown_class_names_give_scores_and_no_events(fsd50k_file: Path, tmp_path: Path) -> None:
    model, audio = hps.load_model(fsd50k_file, checkpoint=FSD50K), noise(16_000)
    assert model.labels is None and model.clip_samples == 480_000
    assert model.scores(audio).shape == (1, 25, 200)
    assert model.weak_scores(audio).shape == (1, 200)
    with pytest.raises(ValueError, match=f"{FSD50K} are not known here.*vocabulary=FILE"):
        hps.detect(audio, model)
    names = [f"Class, {i}" for i in range(200)]
    tables = {
        "plain.txt": "\n".join(names) + "\n\n",
        "vocabulary.csv": "".join(f'{i},"{name}",/m/{i}\n' for i, name in enumerate(names)),
        "indices.csv": "index,mid,display_name\n"
        + "".join(f'{i},/m/{i},"{name}"\n' for i, name in enumerate(names)),
    }
    for file, text in tables.items():
        (tmp_path / file).write_text(text)
        model = hps.load_model(fsd50k_file, checkpoint=FSD50K, vocabulary=tmp_path / file)
        assert model.labels == tuple(names), file
    events = hps.detect(audio[0], model, threshold=0.0)
    assert {event.label for event in events} <= set(names) and events


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (FSD50K, "a\nb\n", "holds 2 names, 2 of them different; the head .* has 200"),
        (FSD50K, "a\n" * 200, "holds 200 names, 1 of them different"),
        (FSD50K, None, "cannot be read"),
        (AUDIOSET, "a\nb\n", "has those of audioset_527"),
        ("beats.ssl", "a\nb\n", "has no trained head"),
    ],
)
def test_vocabularies_that_do_not_fit(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    path = tmp_path / "names.txt"
    if text is not None:
        path.write_text(text)
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_checkpoint(get_checkpoint(name), Options(vocabulary=path))


def image_state() -> dict[str, Tensor]:
    """EfficientNet-B2 as efficientnet_pytorch holds it: three colours, 1000 classes."""
    torch.manual_seed(5)
    state = {k: v.clone() for k, v in Psla().state_dict().items()}
    state["_conv_stem.weight"] = torch.randn(32, 3, 3, 3)
    return state | {"_fc.weight": torch.randn(1000, 1408), "_fc.bias": torch.randn(1000)}


@pytest.mark.slow
def test_start_from_images(tmp_path: Path) -> None:
    state = image_state()
    torch.save(state, tmp_path / "efficientnet-b2.pth")
    model = build_model("psla", head="multihead", labels=("a", "b"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = load_image_weights(model, tmp_path / "efficientnet-b2.pth")
    assert found.left_out == ["_conv_stem.weight", "_fc.weight", "_fc.bias"]
    for name, value in model.state_dict().items():
        kept = name.startswith("head.") or name == "backbone._conv_stem.weight"
        wanted = before[name] if kept else state[name.removeprefix("backbone.")]
        assert torch.equal(value, wanted), name
    del state["_blocks.3._bn1.weight"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match="1 missing: _blocks.3._bn1.weight"):
        load_image_weights(model, tmp_path / "less.pth")
    with torch.device("meta"):
        other = build_model("beats")
    with pytest.raises(CheckpointError, match="Beats has no start from images"):
        load_image_weights(other, tmp_path / "less.pth")


@pytest.mark.slow
def test_transfer_under_a_head_of_other_classes(audioset_file: Path, tmp_path: Path) -> None:
    model = build_model("psla", head="multihead", labels=("a", "b"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = load_for_transfer(model, audioset_file, get_checkpoint(AUDIOSET))
    kinds = [(m, i, p) for m in ("att", "cla") for i in range(4) for p in ("weight", "bias")]
    dropped = [f"head.{m}.{i}.{p}" for m, i, p in kinds]
    unused = ["module.effnet._fc.weight", "module.effnet._fc.bias"]
    assert found.left_out == unused + dropped
    state = torch.load(audioset_file, weights_only=True)
    for name, value in model.state_dict().items():
        wanted = before[name] if name in dropped else state["module." + published(name)]
        assert torch.equal(value, wanted), name
    del state["module.effnet._bn1.weight"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match="1 missing: backbone._bn1.weight"):
        load_for_transfer(model, tmp_path / "less.pth", get_checkpoint(AUDIOSET))


@pytest.mark.slow
def test_own_layout_comes_back(audioset_file: Path, tmp_path: Path) -> None:
    model = hps.load_model(audioset_file, checkpoint=AUDIOSET)
    save_weights(model, tmp_path / "mine.safetensors")
    again = build_checkpoint(get_checkpoint(AUDIOSET))
    found = load_weights(again, tmp_path / "mine.safetensors", get_checkpoint(AUDIOSET))
    assert found.layout == "own" and not found.left_out
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
