"""Sequence models: contract, oracles, published names and what each of them is known by."""

from __future__ import annotations

import copy
import math
import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hear_pretrainedsed.registry import BACKBONES, SEQUENCE_MODELS
from hear_pretrainedsed.sequence_models.attn import Attn
from hear_pretrainedsed.sequence_models.base import (
    GatedAttention,
    RMSNorm,
    SequenceModel,
    rotary_frequencies,
    rotate,
)
from hear_pretrainedsed.sequence_models.gru import BiGru
from hear_pretrainedsed.sequence_models.hybrid import BiMinGru, Hybrid, candidate, linear_scan
from hear_pretrainedsed.sequence_models.mamba import Mamba, Mamba2, state_space_scan
from hear_pretrainedsed.sequence_models.tcn import CausalConv, Tcn
from hear_pretrainedsed.sequence_models.tf import Tf

INPUTS, DIM = 24, 32
NAMES = sorted(SEQUENCE_MODELS)


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    torch.set_num_threads(1)


def make(name: str, inputs: int = INPUTS, dim: int = DIM, seed: int = 0) -> SequenceModel:
    """A small model in eval mode whose parameters are all away from zero."""
    torch.manual_seed(seed)
    model = SEQUENCE_MODELS[name](inputs, dim)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.eval()


def frames(batch: int, n_frames: int, dim: int = INPUTS, seed: int = 0) -> Tensor:
    return torch.randn(batch, n_frames, dim, generator=torch.Generator().manual_seed(seed))


# ---- the contract ----


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_frames", [1, 2, 17, 63, 64, 65, 250, 701])
def test_any_length(name: str, n_frames: int) -> None:
    model = make(name)
    out = model(frames(2, n_frames))
    assert out.shape == (2, n_frames, model.out_dim)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_clips_of_a_batch_are_independent(name: str) -> None:
    model, x = make(name), frames(3, 40)
    loud = torch.cat([x[:1], 50 * x[1:2], x[2:]])
    with torch.no_grad():
        alone, among, beside = model(x[:1]), model(x), model(loud)
    torch.testing.assert_close(alone[0], among[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(beside[2], among[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_gradient(name: str) -> None:
    model = make(name)
    weight = frames(2, 70, model.out_dim, seed=1)
    (model(frames(2, 70)) * weight).sum().backward()
    for key, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), key
        assert p.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    model = make(name, inputs=3, dim=16 if name != "mamba" else 32).double()
    x = frames(1, 5, 3).double()
    state = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(2)
    shift = {k: torch.randn(v.shape, generator=generator).double() for k, v in state.items()}

    def at(t: float) -> Tensor:
        moved = {k: v.detach() + t * shift[k] for k, v in state.items()}
        return torch.func.functional_call(model, moved, x).square().sum()

    model(x).square().sum().backward()
    slope = sum((p.grad * shift[k]).sum() for k, p in state.items())
    estimate = (at(1e-6) - at(-1e-6)) / 2e-6
    assert estimate.item() == pytest.approx(slope.item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_construction_is_silent(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SEQUENCE_MODELS[name](64, 256)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("inputs", sorted({256, 384, 576, 768, 960, 1408, 1920, 2880, 3840}))
def test_every_backbone_can_carry_every_model(name: str, inputs: int) -> None:
    with torch.device("meta"):
        model = SEQUENCE_MODELS[name](inputs, 256)
        out = model(torch.empty(1, 250, inputs)) if name != "gru" else None
    assert model.out_dim == (512 if name == "gru" else 256)
    assert out is None or out.shape == (1, 250, 256)


def test_the_widths_above_are_those_of_the_backbones() -> None:
    with torch.device("meta"):
        assert {make().embed_dim for make in BACKBONES.values()} <= {
            256, 384, 576, 768, 960, 1408, 1920, 2880, 3840,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dim", "message"),
    [
        ("tf", 250, "width 250 of tf-250 does not divide by its 8 heads: take a multiple of 8"),
        ("tf", 106, "width 106 of tf-106 does not divide by its 4 heads"),
        ("attn", 100, "width 100 of attn-100 does not divide by its 8 heads"),
        ("hybrid", 100, "width 100 of hybrid-100 does not divide by its 8 heads"),
        ("mamba", 104, "width 104 of mamba-104 does not make whole heads of 64 channels"),
        ("mamba", 16, "take a multiple of 32"),
        ("tcn", 0, "width 0 of tcn-0"),
        ("gru", 0, "width 0 of gru-0"),
        ("tf", 0, "width 0 of tf-0"),
        ("mamba", 0, "width 0 of mamba-0"),
    ],
)
def test_width_that_does_not_divide(name: str, dim: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SEQUENCE_MODELS[name](INPUTS, dim)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_for_training_only(name: str) -> None:
    model, x = make(name), frames(1, 30)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        model.train()
        differs = not torch.equal(model(x), model(x))
    assert differs == (name in ("tf", "tcn"))
    rates = {m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p}
    rates |= {m.dropout for m in model.modules() if isinstance(m, GatedAttention) and m.dropout}
    assert rates == ({0.2} if name in ("tf", "tcn") else set())


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_close(name: str) -> None:
    """Of the angles, steps and scans nothing is kept in bfloat16, however late the frame."""
    model, x = make(name, dim=64), frames(1, 500)
    with torch.no_grad():
        exact = model(x)
        half = model.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    error = (half.float() - exact)[:, -50:].square().mean().sqrt() / exact.std()
    assert error < 0.05


def test_no_cuda_only_package_is_imported() -> None:
    for package in ("mamba_ssm", "causal_conv1d", "selective_scan_cuda", "flash_attn"):
        assert package not in sys.modules
    for path in Path(sys.modules[SequenceModel.__module__].__file__).parent.glob("*.py"):
        imported = {
            line.split()[1].split(".")[0]
            for line in path.read_text().splitlines()
            if line.startswith(("import ", "from "))
        }
        assert imported <= {"__future__", "collections", "hear_pretrainedsed", "math", "re",
                            "torch", "typing"}, path.name  # fmt: skip


# ---- attention ----


def test_rms_norm() -> None:
    norm, x = RMSNorm(5), frames(2, 3, 5)
    norm.gamma.data = torch.arange(5.0)
    expected = x / x.square().mean(dim=-1, keepdim=True).sqrt() * torch.arange(5.0)
    torch.testing.assert_close(norm(x), expected)
    assert torch.equal(norm(torch.zeros(1, 5)), torch.zeros(1, 5))


@pytest.mark.parametrize("size", [2, 8, 13, 26])
def test_rotary_embedding_is_a_complex_rotation(size: int) -> None:
    x = frames(2, 300, size).double()
    pairs = size // 2
    z = torch.complex(x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2])
    angle = torch.arange(300)[:, None] * 10_000 ** (-2 * torch.arange(pairs).double() / size)
    turned = z * torch.polar(torch.ones_like(angle), angle)
    out = rotate(x)
    torch.testing.assert_close(out[..., 0 : 2 * pairs : 2], turned.real, rtol=0, atol=2e-4)
    torch.testing.assert_close(out[..., 1 : 2 * pairs : 2], turned.imag, rtol=0, atol=2e-4)
    assert torch.equal(out[..., 2 * pairs :], x[..., 2 * pairs :])  # a last odd channel stays


def test_rotary_products_depend_on_the_distance_alone() -> None:
    q, k = frames(1, 1, 32).expand(1, 60, 32), frames(1, 1, 32, seed=1).expand(1, 60, 32)
    products = (rotate(q) @ rotate(k).mT)[0]
    torch.testing.assert_close(products[3, 10], products[43, 50], rtol=1e-4, atol=1e-4)
    assert abs(products[3, 10] - products[3, 11]) > 0.01


def attention_slowly(attention: GatedAttention, x: Tensor, n_heads: int) -> Tensor:
    """Gated attention head by head."""
    x = attention.norm(x)
    q, k, v = attention.to_qkv(x).chunk(3, dim=-1)
    size, heads = v.shape[-1] // n_heads, []
    gates = torch.sigmoid(attention.to_gates(x))
    for i in range(n_heads):
        part = slice(i * size, (i + 1) * size)
        weights = rotate(q[..., part]) @ rotate(k[..., part]).mT / math.sqrt(size)
        heads.append(weights.softmax(dim=-1) @ v[..., part] * gates[..., i : i + 1])
    return F.linear(torch.cat(heads, dim=-1), attention.to_out[0].weight)


@pytest.mark.parametrize(
    ("name", "dim", "n_heads"),
    [("tf", 104, 4), ("tf", 128, 8), ("attn", 104, 8), ("attn", 64, 8)],
)
def test_gated_attention_against_one_head_at_a_time(name: str, dim: int, n_heads: int) -> None:
    model, x = make(name, dim=dim), frames(2, 30, dim)
    attention = next(m for m in model.modules() if isinstance(m, GatedAttention))
    torch.testing.assert_close(
        attention(x), attention_slowly(attention, x, n_heads), rtol=1e-4, atol=1e-5
    )


def test_tf_is_residual_and_ends_in_a_norm() -> None:
    model, x = make("tf"), frames(1, 20)
    y = model[0](x)
    for attention, feed_forward in model[1].layers:
        y = y + attention_slowly(attention, y, 4)
        hidden = F.gelu(feed_forward.net[1](feed_forward.net[0](y)))
        y = y + feed_forward.net[4](hidden)
    expected = model[1].norm(y)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_starting_weights() -> None:
    for name in ("tf", "attn"):
        torch.manual_seed(0)
        model = SEQUENCE_MODELS[name](200, 128)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
                assert module.bias is None or not module.bias.any()
    torch.manual_seed(0)
    mixer = Mamba2(4096)
    steps = F.softplus(mixer.dt_bias.detach())
    assert 1e-3 <= steps.min() < 2e-3 and 0.05 < steps.max() <= 0.1
    assert (steps < 1e-2).float().mean().item() == pytest.approx(0.5, abs=0.15)
    rates = mixer.A_log.detach().exp()
    assert 0.999 <= rates.min() < 2 and 15 < rates.max() <= 16
    assert torch.equal(mixer.D, torch.ones(128))
    conv = CausalConv(16, 1)
    torch.testing.assert_close(conv.weight_g[:, 0, 0], conv.weight_v.flatten(1).norm(dim=1))


# ---- gru, tcn ----


def test_gru_against_its_equations() -> None:
    model, x = make("gru", 3, 4), frames(1, 9, 3)

    def run(x: Tensor, end: str) -> Tensor:
        w = {k: getattr(model.rnn, k + end) for k in
             ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}  # fmt: skip
        h, out = torch.zeros(4), []
        for row in x:
            a = (w["weight_ih"] @ row + w["bias_ih"]).chunk(3)
            b = (w["weight_hh"] @ h + w["bias_hh"]).chunk(3)
            r, z = torch.sigmoid(a[0] + b[0]), torch.sigmoid(a[1] + b[1])
            h = (1 - z) * torch.tanh(a[2] + r * b[2]) + z * h
            out.append(h)
        return torch.stack(out)

    y = x[0]
    for layer in ("_l0", "_l1"):
        y = torch.cat([run(y, layer), run(y.flip(0), f"{layer}_reverse").flip(0)], dim=1)
    torch.testing.assert_close(model(x)[0], y, rtol=1e-4, atol=1e-5)


def test_tcn_sees_the_past_only_and_as_far_as_published() -> None:
    model = make("tcn").double()
    x = frames(1, 400).double().requires_grad_()
    model(x)[0, 300].sum().backward()
    seen = x.grad[0].abs().sum(dim=1).nonzero()[:, 0]
    assert seen.max() == 300
    # two networks of blocks with two convolutions of kernel 3, dilations 1 to 16
    assert seen.min() == 300 - 2 * 2 * 2 * (1 + 2 + 4 + 8 + 16)


def test_tcn_convolution_is_weight_normalised() -> None:
    conv = CausalConv(6, 4)
    conv.weight_g.data = torch.rand(6, 1, 1) + 1
    x = torch.randn(2, 6, 50)
    v = conv.weight_v.detach()
    weight = torch.stack([g * w / w.norm() for g, w in zip(conv.weight_g, v, strict=True)])
    full = F.conv1d(x, weight, conv.bias, padding=8, dilation=4)
    torch.testing.assert_close(conv(x), full[..., :50], rtol=1e-4, atol=1e-5)


def test_tcn_against_its_blocks() -> None:
    model, x = make("tcn"), frames(2, 60)
    y = model[0](x).transpose(1, 2)
    for network in model[1].layers:
        inner = y
        for block in network.network:
            outer = block.conv2(block.conv1(inner).clamp(min=0)).clamp(min=0)
            inner = (inner + outer).clamp(min=0)
        y = y + inner
    torch.testing.assert_close(model(x), y.transpose(1, 2))
    dilations = [block.conv2.dilation for block in model[1].layers[1].network]
    assert dilations == [1, 2, 4, 8, 16]


# ---- hybrid ----


@pytest.mark.parametrize("n_frames", [1, 2, 3, 15, 16, 17, 250, 1000])
def test_linear_scan_against_a_loop(n_frames: int) -> None:
    generator = torch.Generator().manual_seed(n_frames)
    keep = torch.rand(2, n_frames, 3, generator=generator).double()
    add = torch.randn(2, n_frames, 3, generator=generator).double()
    y, expected = torch.zeros(2, 3).double(), []
    for t in range(n_frames):
        y = keep[:, t] * y + add[:, t]
        expected.append(y)
    torch.testing.assert_close(linear_scan(keep, add), torch.stack(expected, dim=1))


def test_linear_scan_is_exact_in_float32_over_an_hour() -> None:
    n_frames, generator = 90_000, torch.Generator().manual_seed(0)
    gate = 6 * torch.randn(1, n_frames, 2, generator=generator)
    keep, add = torch.sigmoid(-gate), gate.sigmoid() * torch.rand(1, n_frames, 2)
    y, expected = torch.zeros(2).double(), []
    for k, a in zip(keep[0].double(), add[0].double(), strict=True):
        y = k * y + a
        expected.append(y)
    found = linear_scan(keep, add)[0].double()
    assert ((found - torch.stack(expected)).abs() / torch.stack(expected)).max() < 2e-6


def test_minimal_gru_against_its_equations() -> None:
    model, x = BiMinGru(6).double(), frames(1, 40, 6).double()

    def run(layer: nn.Module, x: Tensor) -> Tensor:
        y, out = torch.zeros(6).double(), []
        for row in layer.to_hidden_and_gate(x):
            h, z = row[:6], row[6:].sigmoid()
            y = (1 - z) * y + z * torch.where(h >= 0, h + 0.5, h.sigmoid())
            out.append(y)
        return torch.stack(out)

    ahead = run(model.forward_minGRU, x[0])
    back = run(model.backward_minGRU, x[0].flip(0)).flip(0)
    expected = model.to_out(torch.cat([ahead, back], dim=1))
    torch.testing.assert_close(model(x)[0], expected)
    assert candidate(torch.tensor(0.0)) == 0.5


def hybrid_slowly(model: Hybrid, x: Tensor, n_heads: int) -> Tensor:
    """Hybrid layers with attention and norms head by head."""
    x = model[0](x)
    for mix_norm, mix, norm, feed_forward in model[1].layers:
        y = mix_norm(x)
        q, k, v = (part.chunk(n_heads, dim=-1) for part in mix.to_qkv(y).chunk(3, dim=-1))
        recurrent, heads = mix.rnn(y).chunk(n_heads, dim=-1), []
        for i in range(n_heads):
            attention = (q[i] @ k[i].mT / math.sqrt(q[i].shape[-1])).softmax(dim=-1) @ v[i]
            heads.append((mix.attn_out_norm(attention) + mix.rnn_out_norm(recurrent[i])) / 2)
        x = x + mix.to_out(torch.cat(heads, dim=-1))
        x = x + feed_forward[2](F.gelu(feed_forward[0](norm(x))))
    return model[1].norm(x)


@pytest.mark.parametrize(("dim", "n_heads"), [(104, 8), (160, 8), (104, 4)])
def test_heads_of_hybrid_follow_the_norms(dim: int, n_heads: int) -> None:
    """8 heads at every width, 13 channels at 104; a file whose norms have 26 has 4."""
    built = make("hybrid", dim=dim)
    assert built[1].layers[0][1].attn_out_norm.gamma.shape == (dim // 8,)
    state = built.state_dict()
    names = [name for name in state if "_out_norm.gamma" in name]
    assert len(names) == 4
    for i, name in enumerate(names):
        state[name] = 1 + 0.1 * frames(1, 1, dim // n_heads, seed=i)[0, 0]
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert built.file_shapes(shapes) == shapes
    built.load_state_dict(state)
    x = frames(2, 30)
    torch.testing.assert_close(built(x), hybrid_slowly(built, x, n_heads), rtol=1e-4, atol=1e-5)


def test_copies_of_hybrid_take_their_heads_from_a_file() -> None:
    model = make("hybrid", dim=104)
    file = {k: v.repeat(2) if "_out_norm" in k else v for k, v in model.state_dict().items()}
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.load_state_dict(file)
        sizes = {mix.rnn_out_norm.gamma.numel() for _, mix, _, _ in copied[1].layers}
        assert sizes == {26}
    assert model[1].layers[0][1].rnn_out_norm.gamma.numel() == 13


def test_heads_of_hybrid_have_to_agree() -> None:
    model = make("hybrid", dim=104)
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    norms = [name for name in own if "_out_norm.gamma" in name]
    for given in ({norms[0]: (26,)}, dict.fromkeys(norms, (25,)), dict.fromkeys(norms, (2, 13))):
        assert model.file_shapes(own | given) == own
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(model.state_dict() | {name: torch.ones(25) for name in norms})


# ---- mamba ----


def recurrence(x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The state-space model step by step, as it is defined."""
    state = x.new_zeros(*x[:, 0].shape, b.shape[-1])
    out = []
    for t in range(x.shape[1]):
        decay = (rate * step[:, t]).exp()[..., None, None]
        added = (step[:, t, :, None] * x[:, t])[..., None] * b[:, t, None, None, :]
        state = decay * state + added
        out.append((state * c[:, t, None, None, :]).sum(-1))
    return torch.stack(out, dim=1)


def scan_inputs(n_frames: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(n_frames)
    x = torch.randn(2, n_frames, 3, 5, generator=g)
    step = F.softplus(2 * torch.randn(2, n_frames, 3, generator=g) - 2)
    rate = -16 * torch.rand(3, generator=g)
    b, c = (torch.randn(2, n_frames, 4, generator=g) for _ in range(2))
    return tuple(v.double() for v in (x, step, rate, b, c))


@pytest.mark.parametrize("n_frames", [1, 2, 63, 64, 65, 250])
def test_chunked_scan_against_the_recurrence(n_frames: int) -> None:
    inputs = scan_inputs(n_frames)
    expected = recurrence(*inputs)
    for chunk in (1, 16, 64, 1000):
        torch.testing.assert_close(state_space_scan(*inputs, chunk), expected)
    single = state_space_scan(*(v.float() for v in inputs))
    assert (single - expected).abs().max() / expected.std() < 2e-6


def test_mamba2_against_the_recurrence() -> None:
    """The whole mixer in the reference's size; the reference's own gap is 1.7e-5."""
    torch.manual_seed(0)
    mixer, x = Mamba2(256), frames(1, 250, 256)

    def slowly(mixer: Mamba2, x: Tensor) -> Tensor:
        parts = mixer.in_proj(x)
        z, mixed, dt = parts[..., :512], parts[..., 512:1152], parts[..., 1152:]
        early = F.pad(mixed, (0, 0, 2, 0))
        kernel = mixer.conv1d.weight[:, 0]
        mixed = sum(early[:, i : i + x.shape[1]] * kernel[:, i] for i in range(3))
        mixed = F.silu(mixed + mixer.conv1d.bias)
        u = mixed[..., :512].unflatten(-1, (8, 64))
        y = recurrence(u, F.softplus(dt + mixer.dt_bias), -mixer.A_log.exp(),
                       mixed[..., 512:576], mixed[..., 576:])  # fmt: skip
        y = (y + mixer.D[:, None] * u).flatten(2)
        return F.linear(y * F.silu(z), mixer.out_proj.weight)

    with torch.no_grad():
        found = mixer(x)
        expected = slowly(mixer.double(), x.double())
    assert (found - expected).abs().max() / expected.std() < 1e-5


@pytest.mark.parametrize(("dim", "n_heads"), [(128, 8), (256, 8), (160, 5), (512, 16)])
def test_heads_of_mamba(dim: int, n_heads: int) -> None:
    assert len(Mamba2(dim).A_log) == n_heads


def test_mamba_sees_the_past_only() -> None:
    model = make("mamba")
    x = frames(1, 150).requires_grad_()
    model(x)[0, 100].sum().backward()
    seen = x.grad[0].abs().sum(dim=1).nonzero()[:, 0]
    assert seen.max() == 100 and seen.min() < 60


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return out


@pytest.mark.parametrize("name", ["mamba", "hybrid", "tcn", "tf"])
def test_memory_grows_linearly_with_the_length(name: str) -> None:
    model = make(name)

    def largest(n_frames: int) -> int:
        with torch.no_grad(), Largest() as mode:
            model(frames(1, n_frames))
        return mode.elements

    assert largest(4 * 1024) <= 4.2 * largest(1024)


# ---- names ----


def test_published_names() -> None:
    assert BiGru.rename("0.gru.weight_ih_l0") == BiGru.rename("rnn.weight_ih_l0")
    assert make("gru").release_names("rnn.bias_hh_l1") == ["0.gru.bias_hh_l1"]
    name = "1.layers.0.network.3.conv2.weight_g"
    place = "1.layers.0.network.3.net.4.weight_g"
    assert make("tcn").release_names(name) == [name, place]
    assert Tcn.rename(place) == name and Tcn.rename("1.layers.0.x") == "1.layers.0.x"
    for name in NAMES:
        model = make(name)
        for key in model.state_dict():
            assert {model.rename(there) for there in model.release_names(key)} == {key}


def test_constants() -> None:
    assert make("tf", dim=104).constants().keys() == {
        "1.layers.0.0.pos_encoding.freqs", "1.layers.1.0.pos_encoding.freqs",
    }  # fmt: skip
    assert make("attn").constants().keys() == {
        "1.layers.0.pos_encoding.freqs", "1.layers.1.pos_encoding.freqs",
    }  # fmt: skip
    with torch.device("meta"):
        values = Tf(INPUTS, 104).constants() | Attn(INPUTS, 104).constants()
    assert {v.device.type for v in values.values()} == {"cpu"}
    assert {tuple(v.shape) for v in values.values()} == {(13,), (6,)}
    assert torch.equal(values["1.layers.0.0.pos_encoding.freqs"], rotary_frequencies(26))
    for model in (make("gru"), make("hybrid"), make("mamba"), make("tcn")):
        assert model.constants() == {}
    assert isinstance(make("mamba"), Mamba)
