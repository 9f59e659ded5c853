"""PSLA: attention pooling, its steps on the 40 ms grid, clip scores of any audio."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hear_pretrainedsed as hps
from hear_pretrainedsed.backbones.psla import Psla
from hear_pretrainedsed.frames import FrameGrid
from hear_pretrainedsed.heads import MultiHeadPooling, NoHeadError
from hear_pretrainedsed.model import SEDModel, build_checkpoint
from hear_pretrainedsed.registry import get_checkpoint
from hear_pretrainedsed.rule_weights import fill
from tests.psla_reference import AUDIOSET, Light, calibrated, check, light, noise

# ---- attention pooling ----


def test_pooling_against_loops() -> None:
    torch.manual_seed(1)
    head = MultiHeadPooling(6, 3).double().requires_grad_(False)
    assert (head.head_weight == 0.25).all()
    head.head_weight.copy_(torch.tensor([0.1, 0.3, 0.2, 0.35]))
    x = 3 * torch.randn(2, 5, 6, dtype=torch.float64)
    scores, clip = head(x), head.clip(x)
    assert scores.shape == (2, 5, 3) and clip.shape == (2, 3)
    for b in range(2):
        for k in range(3):
            frames, pooled = np.zeros(5), 0.0
            for h in range(4):
                a, c = (
                    [1 / (1 + math.exp(-float(m.weight[k, :, 0, 0] @ t + m.bias[k]))) for t in x[b]]
                    for m in (head.att[h], head.cla[h])
                )
                w = float(head.head_weight[h])
                frames += w * np.array(c)
                pooled += w * sum(p * q for p, q in zip(a, c, strict=True)) / sum(a)
            np.testing.assert_allclose(scores[b, :, k], frames, rtol=1e-12)
            assert float(clip[b, k]) == pytest.approx(pooled, rel=1e-12)


def test_attention_never_vanishes_and_scores_stay_within_bounds() -> None:
    head = MultiHeadPooling(2, 1).requires_grad_(False)
    for att, cla in zip(head.att, head.cla, strict=True):
        att.weight.zero_()
        att.bias.fill_(-200.0)  # sigmoid is 0 in float32: clamped, the plain mean over time
        cla.weight.fill_(1)
    x = torch.randn(1, 7, 2)
    torch.testing.assert_close(head.clip(x), head(x).mean(1), atol=1e-5, rtol=1e-5)
    head.head_weight.fill_(2)
    assert head(x).max() == 1 and head.clip(x + 5).max() == 1


def test_probabilities_have_no_logits() -> None:
    model = light()
    with pytest.raises(NoHeadError, match="emits probabilities: it has no logits"):
        model.logits(noise(8000))
    with pytest.raises(NoHeadError, match="no logits"):
        model.weak_logits(noise(8000))
    torch.testing.assert_close(model.scores(noise(8000)), model.head(model.frames(noise(8000))))


# ---- grid ----


@pytest.mark.parametrize(
    ("span", "first", "n_tokens"), [(168_960, 200, 33), (168_960, 200, 66), (159_744, None, 156)]
)
def test_tokens_at_their_true_times(span: int, first: int | None, n_tokens: int) -> None:
    """PSLA's 33 steps over 10.56 s, one of its earlier blocks, and ATST-SED's 156 of 64 ms."""
    grid = FrameGrid(token_span_samples=span, first_token_samples=first)
    tokens = torch.randn(2, n_tokens, 3, dtype=torch.float64)
    step = span / n_tokens
    centres = (step / 2 if first is None else first) + step * np.arange(n_tokens)
    wanted = [np.interp(320 + 640 * np.arange(250), centres, x) for x in tokens[0].T.numpy()]
    torch.testing.assert_close(grid.to_frames(tokens)[0].T, torch.tensor(np.stack(wanted)))
    assert grid.to_frames(tokens).shape == (2, 250, 3)


@pytest.mark.parametrize("n_tokens", [528, 1056])
def test_finer_tokens_are_averaged_by_their_centres(n_tokens: int) -> None:
    grid = FrameGrid(token_span_samples=168_960, first_token_samples=200)
    tokens = torch.randn(1, n_tokens, 2, dtype=torch.float64)
    found = grid.to_frames(tokens)
    centres = 200 + 168_960 / n_tokens * np.arange(n_tokens)
    for i in range(250):
        inside = np.flatnonzero((centres >= 640 * i) & (centres < 640 * (i + 1)))
        torch.testing.assert_close(found[0, i], tokens[0, inside].mean(0))


def test_a_step_sits_where_its_receptive_field_has_its_centre() -> None:
    """Output i of each stride reads around input 2 i: no half step is added on the way."""
    place, step = 0.0, 1
    for conv in (m for m in Psla().modules() if isinstance(m, nn.Conv2d)):
        place += step * ((conv.kernel_size[1] - 1) / 2 - conv.padding[1])
        step *= conv.stride[1]
    assert (place, step) == (0, 32)
    assert light().grid == FrameGrid(token_span_samples=168_960, first_token_samples=200)
    assert Psla.first_token_samples == 200 and Psla.token_span_samples == 33 * 32 * 160


@pytest.mark.slow
def test_a_step_listens_to_where_it_sits() -> None:
    """What moves a step most is the spec around frame 32 i, not 32 i + 16."""
    torch.manual_seed(0)
    spec = torch.randn(2, 1, 128, 1056)
    body = calibrated(spec).backbone
    spec = spec[:1].requires_grad_(True)
    tokens = body(spec)
    energy = torch.zeros(401)
    for i in (12, 16, 20):
        moved = (tokens[:, i] * torch.randn(1408)).sum()
        (grad,) = torch.autograd.grad(moved, spec, retain_graph=True)
        around = grad.square().sum((0, 1, 2))[32 * i - 200 : 32 * i + 201]
        energy += around / around.sum()
    energy -= energy.min()
    centre = (energy * torch.arange(-200, 201)).sum() / energy.sum()
    assert abs(centre) < 7


def test_filling_has_no_part_in_mel_frames() -> None:
    model = light()
    mel = model.mel_frames(noise(160_000))
    spec = model.frontend(noise(160_000))[0, 0]
    torch.testing.assert_close(mel[0, 249], spec[:, 995:998].mean(1))


# ---- clip scores and frames ----


@pytest.mark.parametrize("n_samples", [1, 300, 16_000, 160_000, 168_960])
def test_clip_scores_are_the_originals(n_samples: int) -> None:
    """One spec of 1056 frames, filled by the front end, and all of its 33 steps."""
    model, audio = light(), noise(n_samples, batch=3)
    tokens = model.backbone(model.frontend(audio))
    assert tokens.shape[1] == 33
    torch.testing.assert_close(model.weak_scores(audio), model.head.clip(tokens))


@pytest.mark.parametrize(
    ("n_samples", "n_steps"), [(168_961, 34), (178_000, 35), (337_920, 66), (500_000, 98)]
)
def test_clip_scores_of_long_audio(n_samples: int, n_steps: int) -> None:
    """Pieces of 10.56 s one after the other; steps that lie in the last one's filling are out."""
    model, audio = light(), noise(n_samples, batch=2)
    pieces = [model.backbone(model.frontend(piece)) for piece in audio.split(168_960, dim=1)]
    tokens = torch.cat(pieces, dim=1)[:, :n_steps]
    torch.testing.assert_close(model.tokens(audio), tokens)
    torch.testing.assert_close(model.weak_scores(audio), model.head.clip(tokens))


def test_half_a_minute_at_once() -> None:
    """FSD50K: 3000 spec frames, 94 steps, for clips of any length up to 30 s."""
    model = light(clip_s=30)
    for n_samples in (5000, 200_000, 480_000):
        tokens = model.tokens(noise(n_samples))
        assert tokens.shape[1] == 94
        wanted = model.backbone(model.frontend.clip(noise(n_samples), 480_000))
        torch.testing.assert_close(tokens, wanted)
    assert model.tokens(noise(480_001)).shape[1] == 95


def test_batch_size_changes_nothing() -> None:
    audio = noise(200_000, batch=5)
    torch.testing.assert_close(light(batch_size=2).tokens(audio), light().tokens(audio))


@pytest.mark.parametrize("windowing", ["reference", "overlap"])
@pytest.mark.parametrize("n_samples", [1, 7000, 160_000, 163_000, 410_000])
def test_frames_of_any_audio(n_samples: int, windowing: str) -> None:
    model = light(windowing=windowing)
    n_frames = max(1, (n_samples + 319) // 640)
    embeddings, timestamps = hps.get_timestamp_embeddings(noise(n_samples, batch=2), model)
    assert embeddings.shape == (2, n_frames, 128) and timestamps.shape == (2, n_frames)
    scores = model.scores(noise(n_samples, batch=2))
    assert scores.shape == (2, n_frames, 3) and 0 <= scores.min() and scores.max() <= 1


def test_with_a_sequence_model_clip_scores_come_from_its_frames() -> None:
    class Half(nn.Module):
        out_dim = 64

        def forward(self, frames: Tensor) -> Tensor:
            return frames[..., ::2]

    model = SEDModel(
        Light(), sequence_model=Half(), head=MultiHeadPooling(64, 3), labels=("a", "b", "c")
    ).eval()
    audio = noise(100_000)
    torch.testing.assert_close(model.weak_scores(audio), model.head.clip(model.frames(audio)))


def test_trace_tells_native_hops() -> None:
    hops = {step.name: round(step.hop_ms, 3) for step in light().trace(noise(160_000))}
    assert hops == {
        "audio": 0.062,
        "spec": 10.0,
        "tokens": 320.0,
        "frames": 40.0,
        "probabilities": 40.0,
    }


@pytest.mark.slow
def test_the_whole_network_from_audio() -> None:
    audio = noise(200_000, batch=2)
    model = fill(build_checkpoint(get_checkpoint(AUDIOSET))).requires_grad_(False)
    embeddings, _ = hps.get_timestamp_embeddings(audio, model)
    assert embeddings.shape == (2, 312, 1408) == (2, 312, model.timestamp_embedding_size)
    assert hps.get_scene_embeddings(audio, model).shape == (2, 1408)
    window = torch.zeros(2, 160_000)
    window[:, :40_000] = audio[:, 160_000:]
    tail = model.grid.to_frames(model.backbone(model.frontend(window)))
    check(embeddings[:, 250:], tail[:, :62], (1e-3, 3e-5))
    last = model.frames(audio, layer=-1)
    assert last.shape == (2, 312, 352)
    assert model.frames(audio[:, :9000], layer=[0, 5]).shape == (2, 14, 16 + 48)
