"""fPaSST: PaSST (Koutini et al. 2022) at frame rate, from PretrainedSED (arXiv 2409.09546)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hear_pretrainedsed.backbones.vit import EPS, ViT, token_parameter
from hear_pretrainedsed.frontends import FrontEnd, preemphasis_mel

N_FRAMES = 250


class FramePatches(nn.Module):
    """Patches of all 128 bands x 2 frames at stride 1; frame t sees frames t and t + 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(16, width, (128, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 16, 128, frames) -> (batch, width, 1, frames), zeros after the end."""
        return self.proj(F.pad(x, (0, 1)))


class FPaSST(ViT):
    """Frame-rate PaSST: a small convolutional stem, one token a frame, two class tokens."""

    prefixes = ("model.", "model.fpasst.")
    reference_prefix = "model.fpasst."

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = token_parameter(1, 1, self.width)
        self.dist_token = token_parameter(1, 1, self.width)
        self.new_pos_embed = token_parameter(1, 2, self.width)
        self.freq_new_pos_embed = token_parameter(1, self.width, 1, 1)
        self.time_new_pos_embed = token_parameter(1, self.width, 1, N_FRAMES)
        self.conv_in_1 = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.conv_in_2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv_in_3 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.patch_embed = FramePatches(self.width)
        self.norm = nn.LayerNorm(self.width, eps=EPS)

    @staticmethod
    def build_frontend() -> FrontEnd:
        """128 Kaldi bands up to 7 kHz, periodic window."""
        return preemphasis_mel(periodic=True)

    def embed(self, spec: Tensor) -> Tensor:
        """(batch, 1, 128, 1000) -> (batch, 2 + 250, 768)."""
        x = F.gelu(self.conv_in_1(spec))
        x = F.gelu(self.conv_in_2(x))
        x = F.gelu(self.conv_in_3(x))  # (batch, 64, 32, 250)
        x = x.reshape(x.shape[0], 16, 128, x.shape[3])[..., :N_FRAMES]
        x = self.patch_embed(x)
        x = x + self.time_new_pos_embed[..., : x.shape[3]] + self.freq_new_pos_embed
        x = x.flatten(2).transpose(1, 2)
        heads = torch.cat([self.cls_token, self.dist_token], dim=1) + self.new_pos_embed
        return torch.cat([heads.expand(x.shape[0], -1, -1), x], dim=1)

    def finish(self, x: Tensor) -> Tensor:
        """The final norm."""
        return self.norm(x)

    def readout(self, x: Tensor) -> Tensor:
        """Drop the two class tokens."""
        return x[:, 2:]
