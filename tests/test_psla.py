"""PSLA: trunk and front end, against the original's numbers and without them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hear_pretrainedsed.backbones.psla import MBConv, Psla, PslaMel
from hear_pretrainedsed.model import build_checkpoint, build_model
from hear_pretrainedsed.registry import get_checkpoint
from tests.efficient_rule import arrays, manifest
from tests.psla_reference import (
    AUDIOSET,
    FILL,
    GOLDEN,
    N_PARAMETERS,
    check,
    formula_spec,
    golden_outputs,
    noise,
    published,
    reference_model,
)

TOKENS_LIMIT, OUT_LIMIT, AUDIO_LIMIT = (1e-3, 3e-5), (1e-4, 3e-5), (2e-1, 3e-3)


@pytest.fixture
def folder(shared: Path) -> Path:
    return shared / "parity_efficient"


@pytest.fixture
def reference(folder: Path) -> dict[str, Tensor]:
    return arrays(folder / "psla.npz")


@pytest.fixture
def spec(reference: dict[str, Tensor]) -> Tensor:
    return reference["fbank"].transpose(1, 2)[:, None]


# ---- the original's numbers ----


def test_names_shapes_and_size(folder: Path) -> None:
    model, facts = reference_model(folder), manifest(folder, "psla")
    found = {published(k): list(v.shape) for k, v in model.state_dict().items()}
    assert found == {k: entry["shape"] for k, entry in facts["tensors"].items()}
    assert model.n_parameters == facts["parameters"] == N_PARAMETERS


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("clips", [slice(0, 1), slice(1, 2), slice(0, 2)])
def test_from_the_stored_mel(
    folder: Path, reference: dict[str, Tensor], spec: Tensor, clips: slice, threads: int
) -> None:
    torch.set_num_threads(threads)
    model = reference_model(folder)
    tokens = model.backbone(spec[clips])
    check(tokens.transpose(1, 2), reference["pooled"][clips], TOKENS_LIMIT)
    check(model.head.clip(tokens), reference["out"][clips], OUT_LIMIT)


@pytest.mark.slow
def test_every_module_on_the_way(folder: Path, reference: dict[str, Tensor], spec: Tensor) -> None:
    """Mean, deviation, minimum, maximum and 64 samples of what each module gives."""
    model = reference_model(folder)
    body, head = model.backbone, model.head
    modules = {f"effnet.{k}": m for k, m in body.named_modules()}
    modules |= {f"attention.{k}": m for k, m in head.named_modules()}
    outputs: dict[str, Tensor] = {}
    wanted = [k.removeprefix("trace/") for k in reference if k.startswith("trace/")]
    hooks = [
        modules[k].register_forward_hook(lambda _, __, y, k=k: outputs.__setitem__(k, y))
        for k in wanted
        if k in modules
    ]
    tokens = body(spec)
    head.clip(tokens)
    for hook in hooks:
        hook.remove()
    outputs["avgpool"] = tokens.transpose(1, 2)[:, :, None]
    # the stem's and the head's norm come before the activation here, after nothing there
    assert sorted(outputs) == sorted(wanted) and len(wanted) == 35
    for name in wanted:
        x = outputs[name].double().flatten()
        places = torch.arange(64) * 2_654_435_761 % len(x)
        facts = torch.stack([x.mean(), x.std(correction=0), x.min(), x.max()])
        found, digest = torch.cat([facts, x[places]]), reference[f"trace/{name}"].double()
        gap = (found - digest).abs().max() / digest[1]
        assert gap < 1e-3, f"first module that differs: {name} ({gap:.1e} std)"
    features = nn.functional.silu(outputs["effnet._bn1"])
    check(features[0], reference["features_c0"], TOKENS_LIMIT)


@pytest.mark.slow
def test_pure_rule(reference: dict[str, Tensor], spec: Tensor) -> None:
    """Without calibrated statistics: what tests/golden can check too."""
    model = reference_model(None)
    check(model.head.clip(model.backbone(spec)), reference["rule/out"], OUT_LIMIT)


def test_front_end(folder: Path, reference: dict[str, Tensor], spec: Tensor) -> None:
    audio = arrays(folder / "audio_10s.npz")["audio"]
    frontend, constants = PslaMel(), arrays(folder / "constants.npz")
    torch.testing.assert_close(frontend.window, constants["psla/window"])
    torch.testing.assert_close(frontend.filters, constants["psla/mel_basis"], atol=2e-5, rtol=0)
    for found in (frontend(audio), torch.cat([frontend(clip[None]) for clip in audio])):
        difference = (found - spec).abs()
        assert difference.max() <= 1e-2 and difference.mean() <= 5e-5
        assert (found[..., 998:] == spec[..., 998:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2])
def test_from_audio(folder: Path, reference: dict[str, Tensor], batch_size: int) -> None:
    audio = arrays(folder / "audio_10s.npz")["audio"]
    model = reference_model(folder)
    found = torch.cat([model.weak_scores(part) for part in audio.split(batch_size)])
    check(found, reference["out"], AUDIO_LIMIT)


@pytest.mark.slow
def test_the_padding_of_version_071_is_another_network(
    folder: Path, reference: dict[str, Tensor], spec: Tensor
) -> None:
    """Stem and first stride-2 block padded after the input only, as 0.7.1 does for 260 x 260."""
    model = reference_model(folder)
    convs = (model.backbone._conv_stem, model.backbone._blocks[2]._depthwise_conv)

    def uneven(conv: nn.Conv2d, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (nn.functional.pad(inputs[0], (0, 1, 0, 1)),)

    hooks = [conv.register_forward_pre_hook(uneven) for conv in convs]
    try:
        for conv in convs:
            conv.padding = (0, 0)
        found = model.head.clip(model.backbone(spec))
    finally:
        for conv, hook in zip(convs, hooks, strict=True):
            conv.padding = (1, 1)
            hook.remove()
    check(found, reference["variant_071/out"], OUT_LIMIT)
    assert (found - reference["out"]).abs().max() > 0.1


# ---- without the reference data ----


@pytest.mark.slow
def test_golden_outputs() -> None:
    """Kept when this network agreed with the reference data; statistics are made anew here."""
    kept = arrays(GOLDEN)
    for name, found in golden_outputs().items():
        check(found, kept[name], (2e-3, 1e-4))
    assert (kept["clip"][0] - kept["clip"][1]).abs().max() > 0.05


@pytest.mark.slow
def test_golden_pure_rule() -> None:
    """The original's own numbers: with pure-rule statistics they hardly depend on the input."""
    model = reference_model(None)
    check(model.head.clip(model.backbone(formula_spec())), arrays(GOLDEN)["rule"], OUT_LIMIT)


def test_facts_of_the_trunk() -> None:
    body = Psla()
    assert (body.n_blocks, body.embed_dim) == (23, 1408)
    convs = [m for m in body.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.padding == ((conv.kernel_size[0] - 1) // 2,) * 2 for conv in convs)
    norms = [m for m in body.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    inputs = [32, *body.block_dims]
    squeezed = [block._se_reduce.out_channels for block in body.blocks_]
    assert squeezed == [max(1, int(n * 0.25)) for n in inputs[:23]]
    drops = [block.drop for block in body.blocks_]
    assert drops == pytest.approx([0.2 * i / 23 for i in range(23)])
    shapes = [(b._depthwise_conv.kernel_size[0], b._depthwise_conv.stride[0]) for b in body.blocks_]
    runs = [(3, 1, 2), (3, 2, 3), (5, 2, 3), (3, 2, 4), (5, 1, 4), (5, 2, 5), (3, 1, 2)]
    assert shapes == [(k, 1 if i else s) for k, s, n in runs for i in range(n)]


def test_macs_by_formula() -> None:
    """1945.6 M for 1056 spec frames and 33 steps, convolutions only."""
    with torch.device("meta"):
        model = build_checkpoint(get_checkpoint(AUDIOSET))
        total = 0

        def count(conv: nn.Conv2d, _: object, y: Tensor) -> None:
            nonlocal total
            total += y.numel() * math.prod(conv.weight.shape[1:])

        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        model.head.clip(model.backbone(torch.zeros(1, 1, 128, 1056)))
    assert total == 1_945_576_576


def test_drop_connect_drops_whole_branches_in_training_only() -> None:
    torch.manual_seed(0)
    block = MBConv(8, 8, 3, 1, 6, drop=0.25)
    for norm in (block._bn0, block._bn1, block._bn2):
        norm.momentum = 0.0  # keeps training and inference statistics apart only by the batch
    x = torch.randn(1, 8, 4, 6).expand(400, -1, -1, -1)
    branch = block(x) - x
    whole = branch.flatten(1).abs().amax(1)
    dropped = whole == 0
    assert 0.18 < dropped.float().mean() < 0.32
    kept = branch[~dropped]
    torch.testing.assert_close(kept, kept[:1].expand_as(kept), atol=1e-5, rtol=1e-4)
    block.drop = 0
    torch.testing.assert_close(kept[0] * 0.75, (block(x) - x)[0], atol=1e-4, rtol=1e-3)
    block.drop = 0.25
    still = block.eval()(x)
    torch.testing.assert_close(still, still[:1].expand_as(still))
    assert not MBConv(8, 16, 3, 1, 6, drop=0.9).shortcut


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = build_model("psla", head="multihead", labels=("a", "b")).train()
    for block in model.backbone.blocks_:
        block.drop = 0
    tokens = model.backbone(torch.randn(2, 1, 128, 96))
    loss = (model.head.clip(tokens) * torch.tensor([[1.0, -2], [3, 1]])).sum()
    (loss + model.head(tokens).square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_construction_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    build_checkpoint(get_checkpoint(AUDIOSET))
    assert capfd.readouterr() == ("", "")


def test_layers() -> None:
    body = Psla()
    layers = [body.layer_of(name) for name, _ in body.named_parameters()]
    assert set(layers) == set(range(23))
    assert body.layer_of("_conv_stem.weight") == 0 and body.layer_of("_bn0.bias") == 0
    assert body.layer_of("_blocks.7._bn2.bias") == 7 and body.layer_of("_bn1.weight") == 22
    with pytest.raises(ValueError, match="no parameter"):
        body.layer_of("_fc.weight")


# ---- front end ----


@pytest.mark.parametrize("n_samples", [1, 399, 400, 48_000, 160_000])
def test_a_short_clip_is_filled_before_normalisation(n_samples: int) -> None:
    spec = PslaMel()(noise(n_samples, batch=2))
    n_frames = max(0, 1 + (n_samples - 400) // 160)
    assert spec.shape == (2, 1, 128, 1056)
    torch.testing.assert_close(spec[..., n_frames:], torch.full_like(spec[..., n_frames:], FILL))
    assert n_frames == 0 or (spec[..., :n_frames] < FILL).any(dim=(0, 1, 2)).all()


def test_a_long_clip_is_cut() -> None:
    audio = noise(400_000)
    spec, frontend = PslaMel()(audio), PslaMel()
    assert spec.shape == (1, 1, 128, 1056)
    # the mean over all of the clip comes off, and the frames' own mean anyway
    torch.testing.assert_close(spec, frontend(audio[:, :169_200]), atol=1e-3, rtol=0)
    assert frontend.clip(audio, 480_000).shape == (1, 1, 128, 3000)
    torch.testing.assert_close(frontend.clip(audio, 480_000)[..., :1056], spec)


def test_clip_and_window_have_one_spec() -> None:
    audio, frontend = noise(120_000), PslaMel()
    torch.testing.assert_close(frontend.clip(audio, 168_960), frontend(audio))
