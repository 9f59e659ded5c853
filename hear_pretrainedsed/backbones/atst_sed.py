"""ATST-SED: the DCASE baseline's CRNN and ATST-Frame side by side, fine-tuned for DESED.

Shao, Li and Li 2024 (arXiv 2309.08153). Each of the two has a mel of its own; their outputs meet at
the CNN's 156 steps of 64 ms, and two bidirectional GRU layers give the tokens. The head above them
is `heads.TokenAttentionHead`.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from hear_pretrainedsed.backbones.atst_f import AtstFrame
from hear_pretrainedsed.backbones.base import Backbone
from hear_pretrainedsed.frontends import HOP_SAMPLES, FrontEnd, StftMel, atst_mel, htk_filters

ATST_MELS, CRNN_MELS = 64, 128
CRNN_HOP_SAMPLES = 256
WIDTHS = (16, 32, 64, 128, 128, 128, 128)
POOLS = ((2, 2), (2, 2), (1, 2), (1, 2), (1, 2), (1, 2), (1, 2))  # time, mels
UNITS = 128  # of the fusion, and of a GRU layer in each direction
DROPOUT = 0.5
N_STEPS, STEP_SAMPLES = 156, 1024


def crnn_mel() -> StftMel:
    """The CNN's mel: 128 HTK bands of magnitudes in dB, each clip stretched to 0..1."""

    def compress(mel: Tensor) -> Tensor:
        decibel = (20 * mel.clamp(min=1e-5).log10()).clamp(-50, 80)
        low = decibel.amin(dim=(1, 2), keepdim=True)
        high = decibel.amax(dim=(1, 2), keepdim=True)
        return (decibel - low) / (high - low + 1e-8)

    return StftMel(
        torch.hamming_window(2048, periodic=False),
        htk_filters(CRNN_MELS, 0, 8000, n_fft=2048),
        n_fft=2048,
        hop_samples=CRNN_HOP_SAMPLES,
        magnitude=True,
        compress=compress,
    )


def split(spec: Tensor) -> tuple[Tensor, Tensor]:
    """Both mels in a spec (batch, 1, 192, 1001): (batch, 1, 64, 1001), (batch, 1, 128, 626)."""
    n_frames = 1 + (spec.shape[3] - 1) * HOP_SAMPLES // CRNN_HOP_SAMPLES
    return spec[:, :, :ATST_MELS], spec[:, :, ATST_MELS:, :n_frames]


class AtstSedMel(FrontEnd):
    """Both mels in one spec (batch, 1, 192, 1001): ATST-Frame's 64 bands above the CNN's 128.

    The CNN's 626 spec frames, one every 16 ms, fill the first columns of their rows; zeros follow.
    """

    def __init__(self) -> None:
        nn.Module.__init__(self)  # windows and filters are those of the two
        self.atst = atst_mel()
        self.crnn = crnn_mel()
        self.n_mels = ATST_MELS + CRNN_MELS

    def compute(self, audio: Tensor) -> Tensor:
        """Audio (batch, samples) -> (batch, spec_frames, 192)."""
        atst, crnn = self.atst.compute(audio), self.crnn.compute(audio)
        filled = nn.functional.pad(crnn, (0, 0, 0, atst.shape[1] - crnn.shape[1]))
        return torch.cat([atst, filled], dim=2)

    def parts(self, spec: Tensor) -> list[tuple[Tensor, int, int]]:
        """The two mels with their first centres and hops, in samples."""
        atst, crnn = split(spec)
        return [(atst, 0, HOP_SAMPLES), (crnn, 0, CRNN_HOP_SAMPLES)]


class ContextGate(nn.Module):
    """x * sigmoid(linear map over channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, time, mels) -> the same."""
        gates = self.linear(x.permute(0, 2, 3, 1)).sigmoid()
        return x * gates.permute(0, 3, 1, 2)


def _cnn() -> nn.Sequential:
    """(batch, 1, 626, 128) -> (batch, 128, 156, 1)."""
    steps, inputs = nn.Sequential(), 1
    for i, (outputs, pool) in enumerate(zip(WIDTHS, POOLS, strict=True)):
        steps.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, 3, padding=1))
        steps.add_module(f"batchnorm{i}", nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.99))
        steps.add_module(f"cg{i}", ContextGate(outputs))
        steps.add_module(f"dropout{i}", nn.Dropout(DROPOUT))
        steps.add_module(f"pooling{i}", nn.AvgPool2d(pool))
        inputs = outputs
    return steps


class AtstSed(Backbone):
    """CNN, ATST-Frame, fusion and GRU; 156 tokens of 64 ms. `layer=` counts the transformer's.

    Tokens are placed where the labels of training were: step i at 64 i to 64 (i + 1) ms. The
    transformer's 250 tokens, spread over the same 9.984 s, fall one into each frame.
    """

    # The network alone, as the entries `sed_teacher` and `sed_student` of a training file hold it.
    prefixes = ("",)
    # Lightning files of the authors: student and teacher; stages end and are chosen by the teacher.
    upstream_prefixes = (r"sed_teacher\.",)
    reference_prefix = ""
    head_names = ("dense.", "dense_softmax.")
    token_span_samples = N_STEPS * STEP_SAMPLES
    embed_dim = 2 * UNITS

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.ModuleDict({"cnn": _cnn()})
        gru = nn.GRU(UNITS, UNITS, num_layers=2, batch_first=True, bidirectional=True)
        self.rnn = nn.ModuleDict({"rnn": gru})
        self.cat_tf = nn.Linear(WIDTHS[-1] + AtstFrame.embed_dim, UNITS)
        self.atst_frame = nn.ModuleDict({"atst": AtstFrame()})
        self.dropout = nn.Dropout(DROPOUT)

    @staticmethod
    def build_frontend() -> AtstSedMel:
        """64 bands every 10 ms and 128 bands every 16 ms."""
        return AtstSedMel()

    @property
    def blocks_(self) -> nn.ModuleList:
        """The transformer's twelve blocks."""
        return self.atst_frame["atst"].blocks

    @property
    def block_dims(self) -> list[int]:
        """The transformer's width, twelve times."""
        return self.atst_frame["atst"].block_dims

    def embed(self, spec: Tensor) -> Tensor:
        """spec (batch, 1, 192, 1001) -> input of the transformer (batch, 250, 768)."""
        return self.atst_frame["atst"].embed(split(spec)[0])

    def forward(self, spec: Tensor) -> Tensor:
        """spec (batch, 1, 192, 1001) -> tokens (batch, 156, 256)."""
        mel, crnn = split(spec)
        local = self.cnn["cnn"](crnn.transpose(2, 3)).squeeze(3)
        wide = self.atst_frame["atst"](mel).transpose(1, 2)
        wide = nn.functional.adaptive_avg_pool1d(wide, local.shape[2])
        x, _ = self.rnn["rnn"](self.cat_tf(torch.cat([local, wide], dim=1).transpose(1, 2)))
        return self.dropout(x)

    def for_inference(self, dtype: torch.dtype) -> Backbone:
        """A copy whose CNN has its batch norms folded, channels last; the transformer is shared.

        In another precision than float32 the transformer is a copy as well.
        """
        shared = {id(self.atst_frame): self.atst_frame} if dtype == torch.float32 else {}
        body = copy.deepcopy(self, shared)
        for part in (body.cnn, body.rnn, body.cat_tf, body.dropout):
            part.eval().requires_grad_(False)
        cnn = body.cnn["cnn"]
        for i in range(len(WIDTHS)):
            conv, norm = getattr(cnn, f"conv{i}"), getattr(cnn, f"batchnorm{i}")
            setattr(cnn, f"conv{i}", fuse_conv_bn_eval(conv, norm))
            setattr(cnn, f"batchnorm{i}", nn.Identity())
        cnn.to(memory_format=torch.channels_last)
        return body.to(dtype)

    def layer_of(self, name: str) -> int:
        """The transformer's block; its embeddings count as 0, all else as the last block."""
        atst = r"atst_frame\.atst\."
        last = rf"(?!{atst})|{atst}norm_frame\."
        return self._layer_by_pattern(name, rf"{atst}blocks\.(\d+)\.", last)
