"""Frame MobileNets (fmn): MobileNetV3 without time strides after the second.

Schmid et al. 2023 (EfficientAT, arXiv 2211.04772), PretrainedSED and EfficientSED (arXiv
2503.11373). One network; the width is a number.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from hear_pretrainedsed.backbones.base import Backbone
from hear_pretrainedsed.frontends import FrontEnd, preemphasis_mel


class Row(NamedTuple):
    """One inverted residual block at width 1."""

    kernel: int
    expanded: int
    out: int
    squeeze: bool
    hard_swish: bool
    stride: tuple[int, int]  # bands, time


STEM = 16
ROWS = (
    Row(3, 16, 16, False, False, (1, 1)),
    Row(3, 64, 24, False, False, (2, 2)),
    Row(3, 72, 24, False, False, (2, 1)),
    Row(5, 72, 40, True, False, (1, 1)),
    Row(5, 120, 40, True, False, (1, 1)),
    Row(5, 120, 40, True, False, (2, 1)),
    Row(3, 240, 80, False, True, (1, 1)),
    Row(3, 200, 80, False, True, (2, 1)),
    Row(3, 184, 80, False, True, (1, 1)),
    Row(3, 184, 80, False, True, (1, 1)),
    Row(3, 480, 112, True, True, (2, 1)),
    Row(3, 672, 112, True, True, (1, 1)),
    Row(5, 672, 160, True, True, (1, 1)),
    Row(5, 960, 160, True, True, (1, 1)),
    Row(5, 960, 160, True, True, (2, 1)),
)


def round8(channels: float) -> int:
    """To the nearest multiple of 8, at least 8, never below 90 % of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: tuple[int, int] = (1, 1),
    groups: int = 1,
    act: Callable[[], nn.Module] | None = None,
) -> nn.Sequential:
    """Convolution without bias, batch norm, and `act`."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
    return nn.Sequential(conv, norm, *([act()] if act else []))


class SqueezeExcite(nn.Module):
    """Channel gates from the mean over bands and time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = round8(channels // 4)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, bands, time) -> the same."""
        gates = self.fc2(self.fc1(x.mean(dim=(2, 3))).relu()).sigmoid()
        return x * gates[:, :, None, None]


class Squeezes(nn.Module):
    """Published files hold the squeeze-excite in a list; with one of them the list is itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conc_se_layers = nn.ModuleList([SqueezeExcite(channels)])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, bands, time) -> the same."""
        return self.conc_se_layers[0](x)


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, squeeze-excite, project; shortcut where shapes agree."""

    def __init__(self, inputs: int, row: Row, width: float) -> None:
        super().__init__()
        act = nn.Hardswish if row.hard_swish else nn.ReLU
        expanded, outputs = round8(row.expanded * width), round8(row.out * width)
        self.shortcut = row.stride == (1, 1) and inputs == outputs
        steps = [conv_norm(inputs, expanded, act=act)] if expanded != inputs else []
        steps.append(conv_norm(expanded, expanded, row.kernel, row.stride, expanded, act))
        if row.squeeze:
            steps.append(Squeezes(expanded))
        self.block = nn.Sequential(*steps, conv_norm(expanded, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, bands, time) -> (batch, outputs, bands', time')."""
        y = self.block(x)
        return x + y if self.shortcut else y


class FrameMobileNet(Backbone):
    """Stem, 15 inverted residuals, 1x1 convolution; 250 tokens of 40 ms."""

    prefixes = ("model.frame_mn.", "net.model.", "model.model.", "model.fmn.")
    reference_prefix = "model.frame_mn."

    def __init__(self, width: float) -> None:
        super().__init__()
        channels = round8(STEM * width)
        stem = conv_norm(1, channels, 3, (2, 2), act=nn.Hardswish)
        features: list[nn.Module] = [stem]
        self._dims = [channels]
        for row in ROWS:
            features.append(InvertedResidual(channels, row, width))
            channels = round8(row.out * width)
            self._dims.append(channels)
        self.embed_dim = 6 * channels
        features.append(conv_norm(channels, self.embed_dim, act=nn.Hardswish))
        self._dims.append(self.embed_dim)
        self.features = nn.Sequential(*features)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    @staticmethod
    def build_frontend() -> FrontEnd:
        """128 Kaldi bands up to 7 kHz, symmetric window."""
        return preemphasis_mel(periodic=False)

    @property
    def blocks_(self) -> nn.Sequential:
        """The stem, the 15 inverted residuals and the last convolution."""
        return self.features

    @property
    def block_dims(self) -> list[int]:
        """Channels of each block."""
        return self._dims

    def embed(self, spec: Tensor) -> Tensor:
        """The spec itself: the stem is the first block."""
        return spec

    def for_inference(self, dtype: torch.dtype) -> Backbone:
        """A copy with batch norms folded into the convolutions, channels last."""
        body = copy.deepcopy(self).eval().requires_grad_(False)
        for part in list(body.modules()):
            if isinstance(part, nn.Sequential) and isinstance(part[0], nn.Conv2d):
                part[0] = fuse_conv_bn_eval(part[0], part[1])
                del part[1]
            elif isinstance(part, nn.ReLU | nn.Hardswish):
                part.inplace = True
        return body.to(dtype, memory_format=torch.channels_last)

    def readout(self, x: Tensor) -> Tensor:
        """(batch, channels, bands, time) -> (batch, time, channels), the mean over bands."""
        return x.mean(dim=2).transpose(1, 2)

    def layer_of(self, name: str) -> int:
        """Index in `features`."""
        return self._layer_by_pattern(name, r"features\.(\d+)\.", r"$^")


class Fmn(FrameMobileNet):
    """The same network as EfficientSED's release names it, in five widths."""

    prefixes = ("net.model.", "model.model.", "model.fmn.", "model.frame_mn.")
    release_root = "net."
