"""ASiT: Atito et al. 2022 (arXiv 2211.13189). 62 x 8 patches and a class token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hear_pretrainedsed.backbones.vit import EPS, PatchEmbed, ViT, token_parameter
from hear_pretrainedsed.frontends import FrontEnd, KaldiMel


class ASiT(ViT):
    """ASiT base. Its position table is an 8 x 37 grid whose *first* axis is stretched over time.

    The table was learned with bands first; the published wrapper reads it with time first. The
    checkpoints were trained that way, so it is kept. All 497 outputs, the class token among them,
    go into the pooling to 250 frames, as in the original.
    """

    prefixes = ("model.", "model.asit.")
    reference_prefix = "model.asit."

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = token_parameter(1, 1, self.width)
        self.pos_embed = token_parameter(1, 1 + 8 * 37, self.width)
        self.patch_embed = PatchEmbed(self.width)
        self.norm = nn.LayerNorm(self.width, eps=EPS)

    @staticmethod
    def build_frontend() -> FrontEnd:
        """128 Kaldi bands of the mean-free clip."""
        return KaldiMel(mean=-4.2677393, std=2 * 4.5689974, centre_clip=True)

    def embed(self, spec: Tensor) -> Tensor:
        """(batch, 1, 128, 998) -> (batch, 1 + 496, 768), time-major."""
        x = self.patch_embed(spec.transpose(2, 3))
        x = x + self.position_grid(spec.shape[3] // 16, spec.shape[2] // 16)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        return torch.cat([first, x], dim=1)

    def position_grid(self, rows: int, columns: int) -> Tensor:
        """The position table resized to (1, rows * columns, 768)."""
        grid = self.pos_embed[:, 1:].view(1, 8, 37, self.width).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
        return grid.flatten(2).transpose(1, 2)

    def finish(self, x: Tensor) -> Tensor:
        """The final norm."""
        return self.norm(x)
