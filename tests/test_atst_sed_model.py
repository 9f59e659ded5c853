"""ATST-SED without the original's numbers: files, spec, times, pooling, training, other uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hear_pretrainedsed as hps
from hear_pretrainedsed.backbones.atst_sed import AtstSed, AtstSedMel, ContextGate, split
from hear_pretrainedsed.checkpoints import CheckpointError, save_weights
from hear_pretrainedsed.export import export_onnx
from hear_pretrainedsed.frames import FrameGrid
from hear_pretrainedsed.frontends import atst_mel
from hear_pretrainedsed.heads import AttentionHead, NoHeadError, TokenAttentionHead
from hear_pretrainedsed.model import HEADS, Options, SEDModel, build_model
from hear_pretrainedsed.registry import get_checkpoint, list_checkpoints
from hear_pretrainedsed.streaming import StreamingDetector
from tests.atst_sed_reference import DESED, FLOOR, formula_spec, small
from tests.export_models import needs_onnx
from tests.layouts import State, check_filled, load, put, released, stand_in, under
from tests.reference import signal

STAGE1 = f"{DESED}-stage1"


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    """One block of the transformer: a second thread brings little."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> SEDModel:
    """One block of the transformer."""
    return small()


# ---- registry and files ----


def test_registry_lines() -> None:
    names = [name for name in list_checkpoints() if name.startswith("atst_sed.")]
    assert names == [DESED, STAGE1]
    for name in names:
        facts = get_checkpoint(name)
        assert (facts.stage, facts.url, facts.sha256, facts.psds1) == ("strong", None, None, None)
        assert (facts.labels, facts.references) == ("desed", ("atst_sed",))
        with pytest.raises(ValueError, match=facts.file):
            hps.load_model(checkpoint=name)
    assert "PSDS1 0.583 and PSDS2 0.810" in get_checkpoint(DESED).note


def student(state: State) -> State:
    """Other numbers under the same names."""
    return {k: stand_in(v.flatten()[0] + 1000, *v.shape) for k, v in state.items()}


def training_file(state: State) -> dict[str, object]:
    """What the authors' training writes: both networks, twice, and its own parts."""
    own = {"mel_spec.spectrogram.window": stand_in(3, 2048)}
    both = under(student(state), "sed_student.") | under(state, "sed_teacher.")
    entries = {"sed_student": student(state), "sed_teacher": state}
    return {"epoch": 249, "state_dict": own | both, **entries}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["training", "entries", "bare"])
def test_layouts(tmp_path: Path, layout: str) -> None:
    state = released(DESED)
    files = {"bare": state, "training": training_file(state)}
    files["entries"] = {k: v for k, v in training_file(state).items() if k.startswith("sed_")}
    model, loaded = load(put(tmp_path, files[layout], "own.ckpt"), DESED)
    check_filled(model, DESED)
    assert loaded.layout == ("upstream" if layout == "training" else "release")
    if layout == "training":
        left = set(under(state, "sed_student.")) | {"mel_spec.spectrogram.window"}
        assert set(loaded.left_out) == left | {"epoch", "sed_student", "sed_teacher"}
    else:
        assert loaded.left_out == (["sed_student"] if layout == "entries" else [])


def without(state: State, end: str) -> State:
    return {k: v for k, v in state.items() if not k.endswith(end)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda s: without(s, "cg3.linear.bias"), "1 missing: backbone.cnn.cnn.cg3.linear.bias"),
        (lambda s: without(s, "dense_softmax.bias"), "1 missing: head.weak.bias"),
        (lambda s: without(s, "norm_frame.bias"), "1 missing: .*atst.norm_frame.bias"),
        (lambda s: s | {"cnn.cnn.conv7.bias": stand_in(1, 128)}, "unknown: .*cnn.conv7.bias"),
        (lambda s: s | {"dense.bias": stand_in(1, 11)}, r"head.strong.bias has \(11,\), not"),
        (lambda s: s | {"rnn.rnn.bias_hh_l1": stand_in(1, 3)}, r"rnn.rnn.bias_hh_l1 has \(3,\)"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "sed_teacher."])
def test_files_that_do_not_fit(tmp_path: Path, state: object, message: str, prefix: str) -> None:
    whole = under(state(released(DESED)), prefix)
    with pytest.raises(CheckpointError, match=message):
        load(put(tmp_path, whole), DESED)


def test_a_student_alone_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, under(released(DESED), "sed_student."))
    with pytest.raises(CheckpointError, match="none of its 223 keys belongs to atst_sed"):
        load(path, DESED)
    with pytest.raises(CheckpointError, match="none of its .* keys belongs to atst_sed"):
        load(put(tmp_path, released("atst_f.ssl")), DESED)


def test_a_published_name_tells_the_stage(tmp_path: Path) -> None:
    path = put(tmp_path, {"x": torch.zeros(1)}, get_checkpoint(STAGE1).file)
    with pytest.raises(CheckpointError, match="published file of atst_sed.strong-desed-stage1"):
        load(path, DESED)


@pytest.mark.slow
def test_own_layout_comes_back(tmp_path: Path) -> None:
    model, _ = load(put(tmp_path, released(DESED)), DESED)
    save_weights(model, tmp_path / "mine.safetensors")
    again = hps.load_model(tmp_path / "mine.safetensors")
    check_filled(again, DESED)
    assert type(again.head) is TokenAttentionHead and again.labels == model.labels
    assert again.provenance["layout"] == "own" and not again.provenance["left_out"]


# ---- spec ----


def test_spec_against_torchaudio() -> None:
    transforms = pytest.importorskip("torchaudio.transforms")
    clip = signal(seed=3)[None]
    mel = transforms.MelSpectrogram(
        16_000, 2048, 2048, 256, 0, 8000, n_mels=128, power=1,
        window_fn=torch.hamming_window, wkwargs={"periodic": False},
    )(clip)  # fmt: skip
    decibel = transforms.AmplitudeToDB("amplitude", top_db=None)(mel).clamp(-50, 80)
    wanted = (decibel - decibel.min()) / (decibel.max() - decibel.min() + 1e-8)
    atst, crnn = split(AtstSedMel()(clip))
    assert (crnn[0] - wanted).abs().max() < 1e-4
    assert torch.equal(atst, atst_mel()(clip))
    assert (atst.max() - atst.min()).item() == pytest.approx(FLOOR, rel=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_a_clip_without_contrast_has_a_defined_spec(level: float) -> None:
    spec = AtstSedMel()(torch.full((1, 160_000), level))
    crnn = split(spec)[1]
    assert spec.isfinite().all() and 0 <= crnn.min() and crnn.max() <= 1
    assert level or not crnn.any()


def test_mel_frames_take_each_mel_at_its_own_times(model: SEDModel) -> None:
    spec = model.frontend(signal()[None])
    found = model.mel_frames(signal()[None])[0]
    assert found.shape == (250, 192) == (250, model.frontend.n_mels)
    atst, crnn = (part[0, 0].numpy() for part in split(spec))
    for frame in (0, 1, 2, 77, 248, 249):
        for mel, hop, columns in ((atst, 160, slice(0, 64)), (crnn, 256, slice(64, None))):
            inside = [
                i for i in range(160_000 // hop) if 640 * frame <= hop * i < 640 * frame + 640
            ]
            np.testing.assert_allclose(found[frame, columns], mel[:, inside].mean(1), atol=1e-5)


# ---- times ----


def test_the_transformers_tokens_fall_one_into_each_frame(model: SEDModel) -> None:
    (tokens,) = model.backbone.block_tokens(formula_spec()[:1], [0])
    assert tokens.shape == (1, 250, 768)
    assert model.grid == FrameGrid(token_span_samples=156 * 1024)
    torch.testing.assert_close(model.grid.to_frames(tokens), tokens)
    frames = model.frames(signal(100_000)[None], layer=0)
    assert frames.shape == (1, 156, 768)


@pytest.mark.parametrize("step", [3, 80, 152])
def test_a_step_listens_around_its_own_64_ms(model: SEDModel, step: int) -> None:
    """Convolutions of 3: one, two and five times four of the CNN's spec frames to each side."""
    cnn = model.backbone.cnn["cnn"]
    before, after = (split(formula_spec()[:1])[1].transpose(2, 3) for _ in range(2))
    after[:, :, 4 * step : 4 * step + 4] += 0.5
    moved = (cnn(before) - cnn(after))[0, :, :, 0].norm(dim=0)
    assert moved.shape == (156,)
    assert moved.nonzero()[:, 0].tolist() == list(range(max(0, step - 6), min(156, step + 7)))


@pytest.mark.parametrize("step", [0, 80, 155])
def test_the_transformer_meets_the_cnn_at_its_steps(model: SEDModel, step: int) -> None:
    """Step i has the mean of the tokens that share any of its time: floor to ceiling."""
    body, spec = model.backbone, formula_spec()[:1]
    wide = body.atst_frame["atst"](split(spec)[0])[0]
    given: list[Tensor] = []
    hook = body.cat_tf.register_forward_pre_hook(lambda _, x: given.append(x[0][0]))
    body(spec)
    hook.remove()
    first, end = step * 250 // 156, -(-(step + 1) * 250 // 156)
    torch.testing.assert_close(given[0][step, 128:], wide[first:end].mean(0))
    local = body.cnn["cnn"](split(spec)[1].transpose(2, 3))
    torch.testing.assert_close(given[0][:, :128], local[0, :, :, 0].T)


# ---- scores ----


def test_scores_are_probabilities_and_there_are_no_logits(model: SEDModel) -> None:
    audio = signal(120_000)[None]
    frames = model.frames(audio)
    assert frames.shape == (1, 187, 256)
    torch.testing.assert_close(model.scores(audio), model.head.strong(frames).sigmoid())
    for ask in (model.logits, model.weak_logits):
        with pytest.raises(NoHeadError, match="emits probabilities: it has no logits"):
            ask(audio)


@pytest.mark.parametrize("n_samples", [1, 159_800, 160_001, 250_000])
def test_clip_scores_are_pooled_over_steps(model: SEDModel, n_samples: int) -> None:
    """Windows of 10 s; of the last one of several, only the steps that the clip reaches."""
    audio = torch.stack([signal(n_samples), 0.1 * signal(n_samples, seed=1)])
    pieces = [nn.functional.pad(p, (0, 160_000 - p.shape[1])) for p in audio.split(160_000, 1)]
    steps = [model.backbone(model.frontend(piece)) for piece in pieces]
    rest = (n_samples - 160_000) * 156 / 160_000
    if len(steps) > 1:
        steps[1] = steps[1][:, : int(np.ceil(rest))]
    x = torch.cat(steps, dim=1)
    torch.testing.assert_close(model.tokens(audio), x, atol=1e-4, rtol=1e-3)
    p, a = model.head.strong(x).sigmoid(), model.head.weak(x).softmax(-1).clamp(1e-7, 1)
    wanted = (p * a).sum(1) / a.sum(1)
    torch.testing.assert_close(model.weak_scores(audio), wanted, atol=1e-4, rtol=1e-4)


def test_the_head_differs_from_attention_in_what_it_pools_only() -> None:
    assert HEADS["token_attention"] is TokenAttentionHead
    torch.manual_seed(0)
    ours, other = TokenAttentionHead(6, 3), AttentionHead(6, 3)
    other.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 6)
    assert torch.equal(ours(x), other(x)) and torch.equal(ours.clip(x), other.clip(x))
    assert (ours.pools, other.pools) == ("tokens", "frames")


# ---- the network's parts ----


def test_facts_of_the_cnn() -> None:
    with torch.device("meta"):
        cnn = AtstSed().cnn["cnn"]
    norms = [m for m in cnn if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.99)}
    assert [norm.num_features for norm in norms] == [16, 32, 64, 128, 128, 128, 128]
    pools = [m.kernel_size for m in cnn if isinstance(m, nn.AvgPool2d)]
    assert pools == [(2, 2)] * 2 + [(1, 2)] * 5
    assert {m.p for m in cnn if isinstance(m, nn.Dropout)} == {0.5}
    assert [name.rstrip("0123456") for name, _ in cnn.named_children()][:5] == [
        "conv", "batchnorm", "cg", "dropout", "pooling"
    ]  # fmt: skip


def test_context_gate_against_loops() -> None:
    torch.manual_seed(0)
    gate, x = ContextGate(3).double(), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    found = gate(x)
    for b, t, m in np.ndindex(2, 4, 5):
        column = x[b, :, t, m]
        wanted = column * (gate.linear.weight @ column + gate.linear.bias).sigmoid()
        torch.testing.assert_close(found[b, :, t, m], wanted)


def test_inference_parts_are_faster_and_the_same() -> None:
    model = small().train()
    body = model.backbone.for_inference(torch.float32)
    own = model.backbone
    assert body.atst_frame["atst"] is own.atst_frame["atst"]  # no second 340 MB
    assert not [m for m in body.cnn.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in own.cnn.modules()) == 7
    assert all(m.training for m in own.modules())  # left as it was
    spec = formula_spec()
    torch.testing.assert_close(body(spec), own.eval()(spec), atol=1e-4, rtol=1e-3)
    half = own.for_inference(torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in own.parameters()} == {torch.float32}
    assert (half(spec.bfloat16()).float() - own(spec)).abs().mean() < 0.05


def test_dropout_in_training_only() -> None:
    model, spec = small(), formula_spec()[:1]
    assert torch.equal(model.backbone(spec), model.backbone(spec))
    torch.manual_seed(0)
    body = model.backbone.train()
    dropped = body(spec) == 0
    assert 0.45 < dropped.float().mean() < 0.55
    body.dropout.eval()
    for norm in (m for m in body.cnn.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eval()
    assert (body(spec) - body(spec)).abs().max() > 1e-3  # within the CNN as well


def test_layers_of_parameters() -> None:
    with torch.device("meta"):
        body = AtstSed()
    layers = {name: body.layer_of(name) for name, _ in body.named_parameters()}
    assert set(layers.values()) == set(range(12)) and body.n_blocks == 12
    assert {k for k, i in layers.items() if i == 0 and ".blocks." not in k} == {
        f"atst_frame.atst.{name}"
        for name in ("mask_embed", "pos_embed", "patch_embed.patch_embed.weight",
                     "patch_embed.patch_embed.bias")
    }  # fmt: skip
    atst = "atst_frame.atst."
    for name in ("cnn.cnn.conv0.weight", "cat_tf.bias", "rnn.rnn.weight_ih_l0"):
        assert layers[name] == 11, name
    assert layers[f"{atst}norm_frame.bias"] == layers[f"{atst}blocks.11.norm1.bias"] == 11
    with pytest.raises(ValueError, match="AtstSed has no parameter"):
        body.layer_of("dense.weight")


# ---- other uses ----


@needs_onnx
@pytest.mark.slow
def test_export(tmp_path: Path, model: SEDModel) -> None:
    """The exporter compares the graph's outputs with PyTorch's itself."""
    facts = export_onnx(model, tmp_path / "m.onnx", from_audio=True)
    assert list(facts.outputs) == ["scores", "weak_scores", "frames"]
    assert facts.batch_norms == "folded"


@pytest.mark.slow
def test_live_detection_is_offline_overlap() -> None:
    model, audio = small(options=Options(windowing="overlap")), signal(240_000)
    detector = StreamingDetector(model, threshold=0.3)
    parts = [detector.feed(chunk.numpy()) for chunk in audio.split(50_000)]
    scores = np.concatenate([part.scores for part in (*parts, detector.close())])
    np.testing.assert_allclose(scores, model.scores(audio[None])[0], atol=1e-4)


def test_with_a_sequence_model_clips_are_pooled_over_its_frames(model: SEDModel) -> None:
    above = build_model("frame_mn06", sequence_model=("tf", 64)).sequence_model
    head = TokenAttentionHead(64, 3).requires_grad_(False)
    above[0] = nn.Linear(256, 64)
    more = SEDModel(model.backbone, sequence_model=above, head=head, labels=("a", "b", "c"))
    audio = signal(50_000)[None]
    torch.testing.assert_close(more.eval().weak_scores(audio), head.clip(more.frames(audio)))
