"""Bidirectional GRU on frames: teachers of PretrainedSED, `gru` of EfficientSED."""

from __future__ import annotations

from torch import Tensor, nn


class BiGru(nn.Module):
    """Two bidirectional layers of `dim` units a direction; no input projection."""

    def __init__(self, inputs: int, dim: int, n_layers: int = 2) -> None:
        super().__init__()
        self.rnn = nn.GRU(inputs, dim, n_layers, batch_first=True, bidirectional=True)
        self.out_dim = 2 * dim

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (batch, frames, inputs) -> (batch, frames, 2 dim)."""
        return self.rnn(frames)[0]
