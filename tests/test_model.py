"""SEDModel: layers, heads, options, trace, gradients, odd audio, memory."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hear_pretrainedsed.frames import WINDOWINGS
from hear_pretrainedsed.heads import NoHeadError
from hear_pretrainedsed.model import Options, SEDModel, build_model
from hear_pretrainedsed.registry import BACKBONES, SEQUENCE_MODELS
from hear_pretrainedsed.rule_weights import fill
from tests.reference import reference_model, signal

SMALL = "frame_mn06"
LABELS = ("a", "b", "c")
#: parameters that take no part in inference: masked training's token, the unused position row
UNUSED = {"mask_embed"}


def small(head: str | None = "linear", **options: object) -> SEDModel:
    labels = LABELS if head else None
    model = build_model(SMALL, head=head, labels=labels, options=Options(**options))
    return fill(model).requires_grad_(False)


@pytest.fixture(scope="module")
def clip() -> Tensor:
    return signal()[None]


def test_building_is_silent_and_leaves_the_global_generator_usable() -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = build_model(SMALL)
    assert not out.getvalue() and not err.getvalue() and not model.training


@pytest.mark.parametrize("layer", [0, 5, -1, -17])
def test_a_layer_is_what_the_block_emits(clip: Tensor, layer: int) -> None:
    model = small()
    blocks = list(model.backbone.features)
    x = model.frontend(clip)
    for block in blocks[: range(len(blocks))[layer] + 1]:
        x = block(x)
    wanted = model.grid.to_frames(x.mean(2).transpose(1, 2))
    torch.testing.assert_close(model.frames(clip, layer=layer), wanted)


def test_all_layers_of_a_transformer_are_stacked(clip: Tensor) -> None:
    model = build_model("atst_f")
    stacked = model.frames(clip, layer="all")
    assert stacked.shape == (1, 12, 250, 768)
    torch.testing.assert_close(stacked[:, 9], model.frames(clip, layer=-3))
    together = model.frames(clip, layer=[2, -3])
    torch.testing.assert_close(together, torch.cat([stacked[:, 2], stacked[:, 9]], dim=2))
    last = model.grid.to_frames(model.backbone.norm_frame(stacked[:, 11]))
    torch.testing.assert_close(last, model.frames(clip))


def test_blocks_of_different_widths_are_not_stacked(clip: Tensor) -> None:
    with pytest.raises(ValueError, match='layer="all" stacks blocks of one width.*list of blocks'):
        small().frames(clip, layer="all")


@pytest.mark.parametrize("layer", [17, -18, [0, 99], [], "last", 1.5, True, [True]])
def test_a_wrong_layer_is_refused(clip: Tensor, layer: object) -> None:
    with pytest.raises(ValueError, match="layer is .*allowed: whole numbers from -17 to 16"):
        small().frames(clip, layer=layer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windowing": "overlapp"}, "unknown windowing 'overlapp'; did you mean 'overlap'"),
        ({"precision": "fp16"}, "unknown precision 'fp16'.*one of: fp32, bf16"),
        ({"sample_rate": 0}, "sample_rate is 0; it has to be a positive whole number"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it has to be a positive whole number"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**options)


def test_a_linear_head_gives_logits_and_scores(clip: Tensor) -> None:
    model = small()
    logits, frames = model.logits(clip), model.frames(clip)
    assert logits.shape == (1, 250, 3) and model.labels == LABELS
    torch.testing.assert_close(logits, model.head.strong(frames))
    torch.testing.assert_close(model.scores(clip), logits.sigmoid())
    torch.testing.assert_close(model.weak_logits(clip), model.head.weak(frames.mean(1)))
    torch.testing.assert_close(model.weak_scores(clip), model.weak_logits(clip).sigmoid())


def test_an_attention_head_has_scores_only(clip: Tensor) -> None:
    model = small("attention")
    frames = model.frames(clip)
    p = model.head.strong(frames).sigmoid()
    a = model.head.weak(frames).softmax(-1).clamp(1e-7, 1)
    torch.testing.assert_close(model.scores(clip), p)
    torch.testing.assert_close(model.weak_scores(clip), (p * a).sum(1) / a.sum(1))
    for call in (model.logits, model.weak_logits):
        with pytest.raises(NoHeadError, match="emits probabilities: it has no logits"):
            call(clip)


def test_without_a_head_everything_that_needs_one_says_what_to_do(clip: Tensor) -> None:
    model = small(None)
    assert model.labels is None and model.head is None
    for call in (model.logits, model.scores, model.weak_logits, model.weak_scores):
        with pytest.raises(NoHeadError, match="no trained head.*`probe`.*`finetune`"):
            call(clip)


def test_trace_tells_the_journey(clip: Tensor) -> None:
    steps = reference_model("frame_mn06").trace(torch.cat([clip, clip]))
    assert [s.name for s in steps] == ["audio", "spec", "tokens", "frames", "logits"]
    assert [s.shape for s in steps] == [
        (2, 160_000), (2, 1, 128, 1000), (2, 250, 576), (2, 250, 576), (2, 250, 447)
    ]  # fmt: skip
    assert [s.hop_ms for s in steps] == [0.0625, 10, 40, 40, 40]
    assert all(s.ms >= 0 for s in steps)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_a_gradient_reaches_every_parameter(backbone: str) -> None:
    model = fill(build_model(backbone)).requires_grad_(True)
    model(signal()[None]).square().mean().backward()
    for name, parameter in model.backbone.named_parameters():
        if name.split(".")[-1] in UNUSED:
            assert parameter.grad is None
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("sequence", sorted(SEQUENCE_MODELS))
def test_any_backbone_carries_any_sequence_model(clip: Tensor, sequence: str) -> None:
    model = build_model(SMALL, sequence_model=(sequence, 128), head="linear", labels=LABELS)
    assert model.frames(clip).shape == (1, 250, model.frame_dim)
    assert model.timestamp_embedding_size == model.frame_dim
    assert model.logits(clip).shape == (1, 250, 3)


def test_frames_keep_no_graph_and_forward_does(clip: Tensor) -> None:
    model = small().requires_grad_(True)
    assert not model.frames(clip).requires_grad
    assert model(clip).requires_grad


@pytest.mark.parametrize("windowing", WINDOWINGS)
def test_batch_neighbours_and_batch_size_do_not_matter(windowing: str) -> None:
    clips = torch.stack([signal(400_000, seed) for seed in (0, 1)])
    one = small(windowing=windowing, batch_size=1)
    many = small(windowing=windowing, batch_size=7)
    together = many.frames(clips)
    for i in range(2):
        alone = one.frames(clips[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_long_audio_is_its_ten_second_chunks() -> None:
    """`reference` windowing is the originals': chunks alone, the last one zero-padded."""
    audio, model = signal(370_000)[None], small()
    chunks = torch.nn.functional.pad(audio, (0, 110_000)).unflatten(1, (3, 160_000))[0]
    wanted = model(chunks).flatten(0, 1)[: model.grid.n_frames(370_000)]
    torch.testing.assert_close(model.frames(audio)[0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 319, 640, 15_999])
def test_short_clips(n: int) -> None:
    model = small()
    frames = model.frames(signal(n)[None])
    assert frames.shape == (1, model.grid.n_frames(n), 576) and frames.isfinite().all()


@pytest.mark.parametrize(
    "audio",
    [torch.zeros(1, 30_000), torch.full((1, 30_000), 0.5), 5 * signal(30_000)[None]],
    ids=["silence", "dc", "beyond full scale"],
)
def test_degenerate_audio_is_defined(audio: Tensor) -> None:
    scores = small().scores(audio)
    assert scores.isfinite().all() and scores.min() >= 0 and scores.max() <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_bad_samples_are_named(value: float) -> None:
    audio = torch.zeros(2, 5000)
    audio[1, 1234] = audio[1, 4000] = value
    with pytest.raises(ValueError, match="1234"):
        small().frames(audio)


@pytest.mark.parametrize("shape", [(5000,), (1, 1, 5000), (1, 0), (0, 5000)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="audio"):
        small().frames(torch.zeros(shape))


def test_other_rates_are_resampled_inside() -> None:
    soxr = pytest.importorskip("soxr")
    audio = signal(120_000)
    model = small(sample_rate=48_000)
    assert model.sample_rate == 48_000
    up = torch.from_numpy(soxr.resample(audio.numpy(), 16_000, 48_000))
    frames = model.frames(up[None])
    wanted = small().frames(audio[None])
    assert frames.shape == wanted.shape
    assert (frames - wanted).abs().mean() < 0.05 * wanted.abs().mean()


def test_bf16_gives_float32_near_fp32(clip: Tensor) -> None:
    full = small().scores(clip) > 0.5
    half_model = small(precision="bf16")
    scores = half_model.scores(clip)
    assert scores.dtype == torch.float32
    assert {p.dtype for p in half_model.parameters()} == {torch.float32}
    assert ((scores > 0.5) == full).float().mean() >= 0.98


@pytest.mark.slow
def test_an_hour_through_atst_in_bounded_memory() -> None:
    """Two of the twelve blocks: what is kept at a time is the same, in a sixth of the time."""
    script = """
        import torch
        from benchmarks.memory import forget_peak, peak_gb
        from hear_pretrainedsed.model import build_model
        torch.set_num_threads(2)
        model = build_model("atst_f").requires_grad_(False)
        del model.backbone.blocks[2:]
        model.frames(torch.zeros(1, 16_000))
        audio = torch.zeros(1, 16_000 * 3600)
        forget_peak()
        before = peak_gb()
        assert model.frames(audio).shape == (1, 90_000, 768)
        print(peak_gb() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert float(done.stdout) < 1.5, f"{done.stdout} GiB above the weights and the audio"


def test_inference_parts_follow_the_weights(clip: Tensor) -> None:
    """Folded copies are made once, and again after a step of training or a new state."""
    model = small()
    parts = model.inference_parts()
    assert model.inference_parts()[0] is parts[0] and parts[0] is not model.backbone
    assert not any("_parts" in name for name in model.state_dict())
    before = model.frames(clip)
    with torch.no_grad():
        model.backbone.features[3].block[0][0].weight.mul_(1.5)
    torch.testing.assert_close(model.frames(clip), model(clip), rtol=1e-4, atol=1e-4)
    assert (model.frames(clip) - before).abs().max() > 0.01
    model.train()
    model(clip.repeat(2, 1))  # batch norms count
    model.eval()
    torch.testing.assert_close(model.frames(clip), model(clip), rtol=1e-4, atol=1e-4)


def test_sequence_models_that_see_many_windows_at_a_time_give_the_same() -> None:
    model = build_model("fmn04", sequence_model=("gru", 16), options=Options(batch_size=2)).eval()
    assert model.sequence_model.n_together > 1
    audio = torch.randn(5, 16_000 * 25)  # 15 windows: backbone by twos, sequence model at once
    alone = torch.cat([model.frames(clip[None]) for clip in audio])
    torch.testing.assert_close(model.frames(audio), alone, atol=1e-5, rtol=1e-4)
