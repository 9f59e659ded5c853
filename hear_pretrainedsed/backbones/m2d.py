"""M2D: Niizumi et al. 2023 (arXiv 2210.14648). 5 x 62 patches, five band tokens a time step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hear_pretrainedsed.backbones.vit import EPS, PatchEmbed, ViT, token_parameter
from hear_pretrainedsed.frontends import FrontEnd, m2d_mel

N_BANDS, N_STEPS = 5, 62


class M2D(ViT):
    """M2D base on 80 bands; the tokens of one time step are concatenated, lowest band first."""

    prefixes = ("model.backbone.", "model.m2d.backbone.")
    reference_prefix = "model.m2d.backbone."
    upstream_prefixes = (r"module\.ar\.runtime\.backbone\.", "")
    # The front end's buffers are made here from their formulas, and the normalisation is fixed.
    unused_keys = (r"model\.(m2d\.)?to_spec\..*", r"(.*\.)?norm_stats")
    embed_dim = 768 * N_BANDS

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = token_parameter(1, 1, self.width)
        self.pos_embed = token_parameter(1, 1 + N_BANDS * N_STEPS, self.width)
        self.patch_embed = PatchEmbed(self.width)
        self.norm = nn.LayerNorm(self.width, eps=EPS)

    @staticmethod
    def build_frontend() -> FrontEnd:
        """80 Slaney bands."""
        return m2d_mel()

    def embed(self, spec: Tensor) -> Tensor:
        """(batch, 1, 80, 1001) -> (batch, 1 + 310, 768), band-major; the last 9 frames unused."""
        x = self.patch_embed(spec) + self.pos_embed[:, 1:]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        return torch.cat([first, x], dim=1)

    def finish(self, x: Tensor) -> Tensor:
        """The final norm."""
        return self.norm(x)

    def readout(self, x: Tensor) -> Tensor:
        """(batch, 1 + 310, 768) -> (batch, 62, 5 * 768)."""
        bands = x[:, 1:].view(x.shape[0], N_BANDS, N_STEPS, self.width)
        return bands.transpose(1, 2).flatten(2)
