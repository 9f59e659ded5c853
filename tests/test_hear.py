"""HEAR's API, for every checkpoint of the registry: modules, shapes, timestamps, options."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hear_pretrainedsed as hps
from hear_pretrainedsed.complexity import complexity
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.registry import BACKBONES, CHECKPOINTS, SEQUENCE_MODELS, get_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:first load of")

ReleaseFile = Callable[[str], Path]
MN = "frame_mn06.strong"
RATE = 16_000
LARGE = 6e8  # MACs a window


def architectures() -> dict[str, str]:
    """Each backbone and each sequence model -> the smallest checkpoint with it."""
    by_size = sorted(CHECKPOINTS.values(), key=lambda c: (complexity(c).parameters, c.name))
    found = {}
    for facts in reversed(by_size):  # the smallest is written last
        sequence = facts.sequence_model
        found[f"+{sequence[0]}" if sequence else facts.backbone] = facts.name
    return found


ARCHITECTURES = architectures()


def slow_if_large(names: dict[str, str]) -> list:
    """Parameters of a test: networks of over 0.6 GMAC a window are slow."""
    return [
        pytest.param(name, id=key, marks=[pytest.mark.slow] * (macs(name) > LARGE))
        for key, name in names.items()
    ]


def macs(checkpoint: str) -> int:
    cost = complexity(get_checkpoint(checkpoint))
    return cost.backbone + cost.sequence_model


def module_of(checkpoint: str) -> object:
    return importlib.import_module(f"hear_pretrainedsed.{get_checkpoint(checkpoint).module}")


def noise(n_samples: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.2 * torch.randn(batch, n_samples, generator=generator).clamp(-4, 4)


def n_frames(n_samples: int) -> int:
    return max(1, (n_samples + 319) // 640)


def close(a: torch.Tensor, b: torch.Tensor, limit: float = 1e-4) -> bool:
    """Whether two arrays agree to `limit`, relative to their size."""
    return a.shape == b.shape and float((a - b).abs().max()) <= limit * float(b.abs().max())


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    """Small networks: a second thread costs more than it brings."""
    torch.set_num_threads(1)


# ---- modules


def test_every_architecture_has_a_representative() -> None:
    checkpoints = [get_checkpoint(name) for name in ARCHITECTURES.values()]
    assert {c.backbone for c in checkpoints} == set(BACKBONES)
    used = {c.sequence_model[0] for c in CHECKPOINTS.values() if c.sequence_model}
    assert {c.sequence_model[0] for c in checkpoints if c.sequence_model} == used
    assert used <= set(SEQUENCE_MODELS)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_every_checkpoint_is_a_hear_module(checkpoint: str) -> None:
    module = module_of(checkpoint)
    assert module.__name__ == f"hear_pretrainedsed.{get_checkpoint(checkpoint).module}"
    assert checkpoint in module.__doc__
    assert module.load_model.keywords == {"checkpoint": checkpoint}
    assert module.get_timestamp_embeddings is hps.get_timestamp_embeddings
    assert module.get_scene_embeddings is hps.get_scene_embeddings


def test_names_are_unique_and_collide_with_nothing() -> None:
    names = hps.list_checkpoints()
    assert names == sorted(set(names)) and len(names) == len(CHECKPOINTS)
    modules = [facts.module for facts in CHECKPOINTS.values()]
    assert len(set(modules)) == len(modules)
    assert all(name.isidentifier() for name in modules)
    assert not set(modules) & {info.name for info in pkgutil.iter_modules(hps.__path__)}
    assert not set(modules) & set(hps.__all__)
    files = [facts.file for facts in CHECKPOINTS.values()]
    assert len(set(files)) == len(files)


def test_a_module_without_a_path_takes_the_file_in_the_cache(
    release_file: ReleaseFile, own_cache: Path
) -> None:
    source = release_file(MN)
    (own_cache / source.name).symlink_to(source)
    module = module_of(MN)
    audio = noise(RATE)
    there = module.get_scene_embeddings(audio, module.load_model())
    assert torch.equal(there, module.get_scene_embeddings(audio, module.load_model(str(source))))


# ---- the contract, one process, every architecture


@pytest.mark.parametrize("checkpoint", slow_if_large(ARCHITECTURES))
def test_contract(checkpoint: str, release_file: ReleaseFile) -> None:
    torch.set_num_threads(2 if macs(checkpoint) > LARGE else 1)
    module = module_of(checkpoint)
    model = module.load_model(str(release_file(checkpoint)))
    assert isinstance(model, torch.nn.Module) and not model.training
    assert model.sample_rate == RATE
    assert type(model.timestamp_embedding_size) is int and type(model.scene_embedding_size) is int
    for n_samples in (1, RATE // 2, 10 * RATE, 10 * RATE + 160):
        check_timestamps(module, model, noise(n_samples))
    check_scenes(module, model)
    check_neighbours(model)
    check_layers(model)


def check_timestamps(module: object, model: SEDModel, audio: torch.Tensor) -> None:
    """Shapes, types and times."""
    batch, n_samples = audio.shape
    embeddings, timestamps = module.get_timestamp_embeddings(audio, model)
    assert embeddings.dtype == torch.float32 and timestamps.is_floating_point()
    assert embeddings.shape == (batch, n_frames(n_samples), model.timestamp_embedding_size)
    assert timestamps.shape == embeddings.shape[:2]
    assert embeddings.isfinite().all() and not embeddings.requires_grad
    expected = (torch.arange(n_frames(n_samples)) + 0.5) * 40
    assert torch.equal(timestamps, expected.expand(batch, -1))
    if n_samples > 320:
        assert float(timestamps.max()) < 1000 * n_samples / RATE


def check_scenes(module: object, model: SEDModel) -> None:
    """The mean over frames."""
    audio = noise(RATE // 2, 2)
    scene = module.get_scene_embeddings(audio, model)
    assert scene.dtype == torch.float32 and not scene.requires_grad
    assert scene.shape == (2, model.scene_embedding_size)
    assert close(scene, module.get_timestamp_embeddings(audio, model)[0].mean(dim=1), 1e-5)


def check_neighbours(model: SEDModel) -> None:
    """A clip's embeddings are those it has alone, beside silence, beside noise, in any batch.

    Up to rounding, which a matrix product may do differently in another batch and rule-made
    networks enlarge: to 1e-4 of a clip's norm at most. A true dependence is far larger.
    """
    audio = noise(RATE, 3)
    audio[0] = 0
    audio[1] *= 0.03
    together, _ = hps.get_timestamp_embeddings(audio, model)
    assert together.shape[0] == 3
    alone = torch.cat([hps.get_timestamp_embeddings(clip[None], model)[0] for clip in audio])
    before, model.options = model.options, replace(model.options, batch_size=2)
    by_two, _ = hps.get_timestamp_embeddings(audio, model)
    model.options = before
    for found in (together, by_two):
        difference = (found - alone).norm(dim=(1, 2)) / alone.norm(dim=(1, 2))
        assert difference.max() < 5e-4, difference


def check_layers(model: SEDModel) -> None:
    """Every block's output can be had; they stand in order, the spec behind them."""
    before, audio = model.options, noise(RATE)
    widths = model.backbone.block_dims
    model.options = replace(before, layer="all", concat_mel=True)
    found, _ = hps.get_timestamp_embeddings(audio, model)
    assert model.timestamp_embedding_size == sum(widths) + model.frontend.n_mels
    assert found.shape == (1, 25, model.timestamp_embedding_size)
    model.options = replace(before, layer=-1)
    last, _ = hps.get_timestamp_embeddings(audio, model)
    assert last.shape == (1, 25, widths[-1])
    first_column = sum(widths[:-1])
    assert close(found[..., first_column : first_column + widths[-1]], last)
    model.options = before


# ---- details that do not depend on the architecture


@pytest.fixture(scope="module")
def load(release_file: ReleaseFile) -> Callable[..., SEDModel]:
    """The MobileNet with options, as heareval passes them: through JSON."""

    def load(**options: object) -> SEDModel:
        return module_of(MN).load_model(str(release_file(MN)), **json.loads(json.dumps(options)))

    return load


def embed(audio: torch.Tensor, model: SEDModel) -> torch.Tensor:
    return hps.get_timestamp_embeddings(audio, model)[0]


@pytest.mark.parametrize("n_samples", [319, 320, 321, 640, 960, 961, 159_999, 160_320, 160_321])
def test_no_timestamp_lies_beyond_the_end(n_samples: int, load: Callable[..., SEDModel]) -> None:
    embeddings, timestamps = hps.get_timestamp_embeddings(noise(n_samples), load())
    assert embeddings.shape[1] == timestamps.shape[1] == n_frames(n_samples)
    duration_ms = 1000 * n_samples / RATE
    assert timestamps[0, -1] < max(duration_ms, 20.001)
    assert timestamps[0, -1] + 40 >= duration_ms  # and none is missing


def test_timestamps_of_two_clips_share_no_memory(load: Callable[..., SEDModel]) -> None:
    _, timestamps = hps.get_timestamp_embeddings(noise(RATE, 2), load())
    timestamps[0] += 1
    assert timestamps[1, 0] == 20


def test_layers_by_index_list_and_all(load: Callable[..., SEDModel]) -> None:
    audio = noise(2 * RATE)
    one, again = load(layer=3), load(layer=3 - len(load().backbone.block_dims))
    assert torch.equal(embed(audio, one), embed(audio, again))
    assert torch.equal(embed(audio, one), load().frames(audio, layer=3))
    several = load(layer=[5, 3])
    assert several.timestamp_embedding_size == sum(several.backbone.block_dims[i] for i in (5, 3))
    parts = [embed(audio, load(layer=5)), embed(audio, one)]
    assert torch.equal(embed(audio, several), torch.cat(parts, dim=2))
    everything = load(layer="all")
    assert everything.timestamp_embedding_size == sum(everything.backbone.block_dims)
    start = sum(everything.backbone.block_dims[:3])
    found = embed(audio, everything)[..., start : start + one.timestamp_embedding_size]
    assert torch.equal(found, parts[1])


def test_overlapping_windows_change_long_clips_only(load: Callable[..., SEDModel]) -> None:
    audio = noise(12 * RATE)
    reference, overlap = load(windowing="reference"), load(windowing="overlap")
    assert torch.equal(embed(audio, load()), embed(audio, reference))
    assert torch.equal(embed(audio[:, :160_000], overlap), embed(audio[:, :160_000], reference))
    a, b = embed(audio, reference), embed(audio, overlap)
    assert a.shape == b.shape and not close(a, b, 1e-2)
    assert close(a[:, :125], b[:, :125])  # up to the first middle, both are of the first window


def test_48_khz_is_resampled_inside(load: Callable[..., SEDModel]) -> None:
    t = torch.arange(3 * 48_000) / 48_000
    tone = 0.3 * torch.sin(2 * torch.pi * (200 + 300 * t) * t)[None]
    model = load(sample_rate=48_000)
    assert model.sample_rate == 48_000
    embeddings, timestamps = hps.get_timestamp_embeddings(tone, model)
    assert embeddings.shape[1] == 75 and timestamps[0, -1] == 2980
    at_16_khz = embed(tone[:, ::3], load())  # band-limited: every third sample is the tone itself
    assert torch.cosine_similarity(embeddings, at_16_khz, dim=2).mean() > 0.99
    assert not close(embed(tone, load())[:, :75], at_16_khz, 0.1)


def test_bf16_gives_float32_embeddings(load: Callable[..., SEDModel]) -> None:
    audio = noise(2 * RATE)
    embeddings, exact = embed(audio, load(precision="bf16")), embed(audio, load())
    assert embeddings.dtype == torch.float32
    assert not torch.equal(embeddings, exact)
    assert torch.cosine_similarity(embeddings, exact, dim=2).min() > 0.98


def test_concat_mel_appends_the_averaged_spec(load: Callable[..., SEDModel]) -> None:
    audio, plain, both = noise(10 * RATE), load(), load(concat_mel=True)
    size = plain.timestamp_embedding_size
    assert both.timestamp_embedding_size == both.scene_embedding_size == size + 128
    embeddings = embed(audio, both)
    assert torch.equal(embeddings[..., :size], embed(audio, plain))
    spec = plain.frontend(audio)[0, 0].T  # hop 10 ms, the first centre at 0 ms
    assert torch.allclose(embeddings[0, 7, size:], spec[28:32].mean(dim=0), atol=1e-5)


def test_options_together_as_heareval_passes_them(load: Callable[..., SEDModel]) -> None:
    options = {"layer": [-1, 4], "windowing": "overlap", "concat_mel": True, "batch_size": 1}
    model = load(**options)
    embeddings = embed(noise(11 * RATE, 2), model)
    assert embeddings.shape == (2, 275, model.timestamp_embedding_size)
    scene = hps.get_scene_embeddings(noise(11 * RATE, 2), model)
    assert close(scene, embeddings.mean(dim=1), 1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"laier": 1}, r"unknown option 'laier'; did you mean 'layer'\?"),
        ({"windowing": "overlaps"}, r"unknown windowing 'overlaps'; did you mean 'overlap'\?"),
        ({"precision": "fp16"}, r"unknown precision 'fp16'.*bf16"),
        ({"layer": 99}, r"layer is 99; allowed"),
        ({"layer": "al"}, r"'al'"),
        ({"sample_rate": 0}, r"sample_rate is 0"),
        ({"batch_size": 1.5}, r"batch_size is 1\.5"),
    ],
)
def test_wrong_options_are_refused_by_name(
    options: dict[str, object], message: str, load: Callable[..., SEDModel]
) -> None:
    with pytest.raises(ValueError, match=message):
        load(**options)


def test_a_file_of_another_checkpoint_is_refused(release_file: ReleaseFile) -> None:
    with pytest.raises(ValueError, match=r"frame_mn06\.strong, not of frame_mn10\.strong"):
        module_of("frame_mn10.strong").load_model(str(release_file(MN)))
