"""`gru`: bidirectional GRU: teachers of PretrainedSED, and EfficientSED (arXiv 2503.11373)."""

from __future__ import annotations

from torch import Tensor, nn

from hear_pretrainedsed.sequence_models.base import SequenceModel


class BiGru(SequenceModel):
    """Two bidirectional layers of `dim` units a direction; no input projection.

    PretrainedSED's files name the layers `rnn.*`, as here, EfficientSED's `0.gru.*`.
    """

    n_together = 8  # each of 250 steps reads all weights, however many windows there are
    key_map = ((r"^0\.gru\.", "rnn."),)

    def __init__(self, inputs: int, dim: int, n_layers: int = 2) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"width {dim} of gru-{dim} has to be positive")
        self.rnn = nn.GRU(inputs, dim, n_layers, batch_first=True, bidirectional=True)
        self.out_dim, self.n_layers = 2 * dim, n_layers

    def release_names(self, name: str) -> list[str]:
        """EfficientSED's name: no file of PretrainedSED's release has a sequence model."""
        return [name.replace("rnn.", "0.gru.", 1)]

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (batch, frames, inputs) -> (batch, frames, 2 dim)."""
        return self.rnn(frames)[0]
