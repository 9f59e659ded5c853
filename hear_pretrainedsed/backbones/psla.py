"""PSLA: EfficientNet-B2 on a log-mel of 10.56 s.

Gong, Chung and Glass 2021 (PSLA, arXiv 2102.01243), Tan and Le 2019 (EfficientNet, arXiv
1905.11946); padding and names are those of efficientnet_pytorch 0.7.0, with which the published
weights were trained. The attention pooling above it is `heads.MultiHeadPooling`.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from hear_pretrainedsed.backbones.base import Backbone
from hear_pretrainedsed.frontends import HOP_SAMPLES, KaldiMel

SPEC_FRAMES = 1056  # AudioSet; FSD50K's clips have 3000
MEAN, STD = -4.6476, 4.5699
DROP_CONNECT = 0.2  # of the last block; earlier ones in proportion


class Stage(NamedTuple):
    """Blocks of one width; the first of them has the stride."""

    kernel: int
    stride: int
    expansion: int
    out: int
    repeats: int


STEM, TOP = 32, 1408
STAGES = (
    Stage(3, 1, 1, 16, 2),
    Stage(3, 2, 6, 24, 3),
    Stage(5, 2, 6, 48, 3),
    Stage(3, 2, 6, 88, 4),
    Stage(5, 1, 6, 120, 4),
    Stage(5, 2, 6, 208, 5),
    Stage(3, 1, 6, 352, 2),
)
#: convolution -> the norm after it, in the trunk and in its blocks
FOLDED = {
    "_conv_stem": "_bn0",
    "_conv_head": "_bn1",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
}


class PslaMel(KaldiMel):
    """Kaldi log-mel of the mean-free clip, filled up or cut to a fixed number of spec frames.

    What fills up is zero before normalisation, and so +1.0170 after it: not what silence gives.
    """

    def __init__(self) -> None:
        super().__init__(mean=MEAN, std=STD, centre_clip=True)

    def forward(self, audio: Tensor) -> Tensor:
        """Audio (batch, samples) -> spec (batch, 1, 128, 1056), float32."""
        return self._filled(audio, SPEC_FRAMES)

    def clip(self, audio: Tensor, span_samples: int) -> Tensor:
        """Audio (batch, samples) -> spec (batch, 1, 128, span_samples / 160), as in training."""
        return self._filled(audio, span_samples // HOP_SAMPLES)

    def clips(self, audio: Tensor, n_samples: Tensor, span_samples: int) -> Tensor:
        """`clip` of each of some clips: what fills up begins where each ends, `n_samples` (batch,).

        Audio (batch, samples) -> spec (batch, 1, 128, span_samples / 160).
        """
        spec = self.clip(audio, span_samples)
        n_own = (n_samples - len(self.window)) // HOP_SAMPLES + 1  # whole spec frames of the clip
        after = torch.arange(spec.shape[3], device=spec.device) >= n_own.to(spec.device)[:, None]
        return spec.masked_fill(after[:, None, None], -self.mean / self.std)

    def _filled(self, audio: Tensor, spec_frames: int) -> Tensor:
        if audio.shape[1] < len(self.window):  # not one whole spec frame
            spec = audio.new_zeros(len(audio), 1, self.n_mels, 0, dtype=torch.float32)
        else:
            spec = super().forward(audio)
        missing = spec_frames - spec.shape[3]  # negative: so many are cut off
        return nn.functional.pad(spec, (0, missing), value=-self.mean / self.std)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Convolution without bias, padded by (kernel - 1) / 2 on all four sides.

    Version 0.7.0 gets there from "same" padding of a nominal 260 x 260 image, whose surplus it
    rounds up on both sides. Version 0.7.1 pads two layers unevenly: all activations differ.
    """
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class MBConv(nn.Module):
    """Expand, depthwise convolution, squeeze-excite, project; shortcut where shapes agree.

    The squeeze is a quarter of the block's input, not of its expanded width. In training the
    branch beside the shortcut is dropped clip by clip with probability `drop` (drop-connect).
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, drop: float
    ) -> None:
        super().__init__()
        width, squeezed = inputs * expansion, max(1, inputs // 4)
        self.drop = drop
        self.shortcut = stride == 1 and inputs == outputs
        if expansion > 1:
            self._expand_conv = _conv(inputs, width, 1)
            self._bn0 = _norm(width)
        self.expands = expansion > 1
        self._depthwise_conv = _conv(width, width, kernel, stride, groups=width)
        self._bn1 = _norm(width)
        self._se_reduce = nn.Conv2d(width, squeezed, 1)
        self._se_expand = nn.Conv2d(squeezed, width, 1)
        self._project_conv = _conv(width, outputs, 1)
        self._bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, bands, time) -> (batch, outputs, bands / stride, time / stride)."""
        y = nn.functional.silu(self._bn0(self._expand_conv(x))) if self.expands else x
        y = nn.functional.silu(self._bn1(self._depthwise_conv(y)))
        squeezed = nn.functional.silu(self._se_reduce(y.mean(dim=(2, 3), keepdim=True)))
        y = y * self._se_expand(squeezed).sigmoid()
        y = self._bn2(self._project_conv(y))
        if not self.shortcut:
            return y
        if self.training and self.drop > 0:
            kept = torch.rand(len(y), 1, 1, 1, device=y.device) >= self.drop
            y = y * kept / (1 - self.drop)
        return x + y


class Psla(Backbone):
    """Stem, 23 mobile inverted bottlenecks, 1x1 convolution; 33 tokens of 0.32 s."""

    prefixes = ("module.effnet.", "effnet.")
    release_root = "module."
    reference_prefix = "effnet."
    unused_keys = (r"(module\.)?effnet\._fc\.(weight|bias)",)
    any_length = True
    image_skips = (r"_conv_stem\.weight", r"_fc\.(weight|bias)")
    token_span_samples = SPEC_FRAMES * HOP_SAMPLES
    # Every stride is padded alike on both sides, so step i sits on input 2 i, and after five of
    # them on spec frame 32 i, whose centre is 200 + 160 * 32 i samples.
    first_token_samples = KaldiMel.first_centre_samples
    embed_dim = TOP

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _conv(1, STEM, 3, stride=2)
        self._bn0 = _norm(STEM)
        blocks: list[nn.Module] = []
        n_blocks = sum(stage.repeats for stage in STAGES)
        inputs = STEM
        for stage in STAGES:
            for i in range(stage.repeats):
                stride = 1 if i else stage.stride
                drop = DROP_CONNECT * len(blocks) / n_blocks
                block = MBConv(inputs, stage.out, stage.kernel, stride, stage.expansion, drop)
                blocks.append(block)
                inputs = stage.out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _conv(inputs, TOP, 1)
        self._bn1 = _norm(TOP)

    @staticmethod
    def build_frontend() -> PslaMel:
        """128 Kaldi bands from 20 Hz to 8 kHz, 1056 spec frames."""
        return PslaMel()

    @property
    def blocks_(self) -> nn.ModuleList:
        """The 23 bottlenecks."""
        return self._blocks

    @property
    def block_dims(self) -> list[int]:
        """Channels of each block."""
        return [stage.out for stage in STAGES for _ in range(stage.repeats)]

    def embed(self, spec: Tensor) -> Tensor:
        """spec (batch, 1, 128, spec_frames) -> (batch, 32, 64, spec_frames / 2)."""
        return nn.functional.silu(self._bn0(self._conv_stem(spec)))

    def finish(self, x: Tensor) -> Tensor:
        """(batch, 352, 4, tokens) -> features (batch, 1408, 4, tokens)."""
        return nn.functional.silu(self._bn1(self._conv_head(x)))

    def for_inference(self, dtype: torch.dtype) -> Backbone:
        """A copy with batch norms folded into the convolutions, channels last."""
        body = copy.deepcopy(self).eval().requires_grad_(False)
        for part in (body, *body.blocks_):
            for conv_name, norm_name in FOLDED.items():
                if hasattr(part, conv_name):
                    conv, norm = getattr(part, conv_name), getattr(part, norm_name)
                    setattr(part, conv_name, fuse_conv_bn_eval(conv, norm))
                    setattr(part, norm_name, nn.Identity())
        return body.to(dtype, memory_format=torch.channels_last)

    def readout(self, x: Tensor) -> Tensor:
        """(batch, channels, bands, time) -> (batch, time, channels), the mean over bands."""
        return x.mean(dim=2).transpose(1, 2)

    def layer_of(self, name: str) -> int:
        """Index of the block; the stem counts as the first, the last convolution as the last."""
        return self._layer_by_pattern(name, r"_blocks\.(\d+)\.", r"(_conv_head|_bn1)\.")
