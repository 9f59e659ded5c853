"""ATST-Frame: Li, Shao, Li 2023 (arXiv 2306.04186). 250 tokens of 40 ms, no class token."""

from __future__ import annotations

from torch import Tensor, nn

from hear_pretrainedsed.backbones.vit import EPS, ViT, token_parameter
from hear_pretrainedsed.frontends import FrontEnd, atst_mel


class LinearPatches(nn.Module):
    """Columns of 64 bands x 4 frames, flattened band-major, through one linear map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(256, width)

    def forward(self, spec: Tensor) -> Tensor:
        """(batch, 1, 64, 4 n + rest) -> (batch, n, width)."""
        patches = spec[:, 0].unfold(2, 4, 4)  # (batch, 64, n, 4)
        return self.patch_embed(patches.permute(0, 2, 1, 3).flatten(2))


class AtstFrame(ViT):
    """ATST-Frame base."""

    prefixes = ("model.atst.",)
    reference_prefix = "model.atst."
    # Lightning files of the authors: student and teacher; the teacher is what is published.
    upstream_prefixes = (
        r"(model\.)?teacher\.encoder\.",
        r"(encoder\.encoder\.)?frame_encoder\.",
        r"(encoder\.)?encoder\.",
        r"",
    )
    key_map = ((r"^norm\.", "norm_frame."),)  # there; the release says norm_frame
    # The mel transform's buffers are made here from their formulas.
    unused_keys = (r"model\.atst_mel\.mel_transform\..*",)

    def __init__(self) -> None:
        super().__init__(qkv_bias=False)
        self.mask_embed = token_parameter(1, 1, self.width)  # masked training only
        self.pos_embed = token_parameter(1, 251, self.width)  # row 0 is unused
        self.patch_embed = LinearPatches(self.width)
        self.norm_frame = nn.LayerNorm(self.width, eps=EPS)

    @staticmethod
    def build_frontend() -> FrontEnd:
        """64 HTK bands in dB."""
        return atst_mel()

    def embed(self, spec: Tensor) -> Tensor:
        """(batch, 1, 64, 1001) -> (batch, 250, 768); the last spec frame is left out."""
        x = self.patch_embed(spec)
        return x + self.pos_embed[:, 1 : 1 + x.shape[1]]

    def finish(self, x: Tensor) -> Tensor:
        """The final norm."""
        return self.norm_frame(x)
