"""BEATs: Chen et al. 2023 (arXiv 2212.09058). 62 x 8 patches, post-norm, gated position bias."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from hear_pretrainedsed.backbones.base import Backbone
from hear_pretrainedsed.frontends import FrontEnd, KaldiMel

WIDTH, N_HEADS, HEAD_DIM, N_LAYERS = 768, 12, 64, 12
N_BUCKETS, MAX_DISTANCE = 320, 800
ALPHA = (2 * N_LAYERS) ** 0.25  # deep norm
DROPOUT, LAYER_DROP = 0.1, 0.05  # in training


def relative_buckets(n_tokens: int, device: torch.device) -> Tensor:
    """Bucket (query, key) of the relative position key - query, T5 style.

    The first half of the buckets is for keys before the query. Distances up to 79 have a bucket
    each, larger ones share logarithmic buckets; the logarithm is evaluated in float32, since its
    rounding decides which bucket a distance falls into.
    """
    position = torch.arange(n_tokens, device=device)
    distance = position[None, :] - position[:, None]
    half, exact = N_BUCKETS // 2, N_BUCKETS // 4
    size = distance.abs()
    far = torch.log(size.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact)
    far = (exact + (far * (half - exact)).long()).clamp(max=half - 1)
    return half * (distance > 0) + torch.where(size < exact, size, far)


class GatedAttention(nn.Module):
    """Self-attention whose relative position bias is gated by each query."""

    def __init__(self, *, holds_table: bool) -> None:
        super().__init__()
        self.grep_a = nn.Parameter(torch.ones(1, N_HEADS, 1, 1))
        if holds_table:  # one table for all layers, kept by the first
            self.relative_attention_bias = nn.Embedding(N_BUCKETS, N_HEADS)
        self.k_proj = nn.Linear(WIDTH, WIDTH)
        self.v_proj = nn.Linear(WIDTH, WIDTH)
        self.q_proj = nn.Linear(WIDTH, WIDTH)
        self.out_proj = nn.Linear(WIDTH, WIDTH)
        self.grep_linear = nn.Linear(HEAD_DIM, 8)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (batch, tokens, dim), bias (heads, tokens, tokens) -> (batch, tokens, dim)."""
        batch, tokens, _ = x.shape
        q, k, v = (
            projection(x).view(batch, tokens, N_HEADS, HEAD_DIM)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        gate = self.gate(q)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        dropout = DROPOUT if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=gate * bias, dropout_p=dropout)
        return self.out_proj(x.transpose(1, 2).reshape(batch, tokens, WIDTH))

    def gate(self, q: Tensor) -> Tensor:
        """q (batch, tokens, heads, 64), unscaled -> gate (batch, heads, tokens, 1)."""
        a, b = self.grep_linear(q).unflatten(-1, (2, 4)).sum(-1).sigmoid().unbind(-1)
        a, b = a.transpose(1, 2).unsqueeze(-1), b.transpose(1, 2).unsqueeze(-1)
        return a * (b * self.grep_a - 1) + 2


class Layer(nn.Module):
    """Post-norm layer with deep-norm scaling: x = norm(alpha x + f(x)), twice."""

    def __init__(self, *, holds_table: bool) -> None:
        super().__init__()
        self.self_attn = GatedAttention(holds_table=holds_table)
        self.self_attn_layer_norm = nn.LayerNorm(WIDTH)
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)
        self.final_layer_norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (batch, tokens, dim), bias (heads, tokens, tokens) -> (batch, tokens, dim)."""
        attended = F.dropout(self.self_attn(x, bias), DROPOUT, self.training)
        x = self.self_attn_layer_norm(ALPHA * x + attended)
        mixed = F.dropout(self.fc2(F.gelu(self.fc1(x))), DROPOUT, self.training)
        return self.final_layer_norm(ALPHA * x + mixed)


class Encoder(nn.Module):
    """Convolutional position embedding, norm, and the layers."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv1d(WIDTH, WIDTH, 128, padding=64, groups=16)
        self.pos_conv = nn.Sequential(weight_norm(conv, dim=2))
        self.layer_norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(Layer(holds_table=i == 0) for i in range(N_LAYERS))

    def embed(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) -> input of the first layer."""
        position = F.gelu(self.pos_conv(x.transpose(1, 2))[..., :-1])
        x = self.layer_norm(x + position.transpose(1, 2))
        return F.dropout(x, DROPOUT, self.training)

    def position_bias(self, n_tokens: int) -> Tensor:
        """The ungated bias (heads, query, key)."""
        table = self.layers[0].self_attn.relative_attention_bias
        return table(relative_buckets(n_tokens, table.weight.device)).permute(2, 0, 1)


class Beats(Backbone):
    """BEATs base (iter3+). Training drops a tenth of the values, and a twentieth of the layers."""

    prefixes = ("model.model.", "model.beats.")
    reference_prefix = "model.beats."
    upstream_prefixes = ("",)
    key_map = (
        (r"^(encoder\.pos_conv\.0)\.weight_g$", r"\1.parametrizations.weight.original0"),
        (r"^(encoder\.pos_conv\.0)\.weight_v$", r"\1.parametrizations.weight.original1"),
        # one shared table, listed under every layer
        (
            r"^encoder\.layers\.\d+\.self_attn\.relative_attention_bias\.",
            "encoder.layers.0.self_attn.relative_attention_bias.",
        ),
    )
    embed_dim = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.post_extract_proj = nn.Linear(512, WIDTH)
        self.patch_embedding = nn.Conv2d(1, 512, 16, stride=16, bias=False)
        self.encoder = Encoder()
        self.layer_norm = nn.LayerNorm(512)

    @staticmethod
    def build_frontend() -> FrontEnd:
        """128 Kaldi bands of 16-bit-scaled audio, Povey window."""
        return KaldiMel(mean=15.41663, std=2 * 6.55582, scale=32768, window_power=0.85)

    @property
    def blocks_(self) -> nn.ModuleList:
        """The twelve layers."""
        return self.encoder.layers

    def embed(self, spec: Tensor) -> Tensor:
        """(batch, 1, 128, 998) -> (batch, 496, 768), time-major."""
        patches = self.patch_embedding(spec.transpose(2, 3)).flatten(2).transpose(1, 2)
        x = self.post_extract_proj(self.layer_norm(patches))
        return self.encoder.embed(F.dropout(x, DROPOUT, self.training))

    def run(self, spec: Tensor) -> Iterator[Tensor]:
        """Yield what each layer emits; all layers share one position bias."""
        x = self.embed(spec)
        bias = self.encoder.position_bias(x.shape[1])
        for layer in self.blocks_:
            if not self.training or torch.rand(()) >= LAYER_DROP:
                x = layer(x, bias)
            yield x

    def layer_of(self, name: str) -> int:
        """Everything before the layers counts as layer 0."""
        return self._layer_by_pattern(name, r"encoder\.layers\.(\d+)\.", r"$^")
