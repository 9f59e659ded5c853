"""A model of a few hundred numbers with the parts of a real one, and recordings it can learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from hear_pretrainedsed.backbones.base import Backbone
from hear_pretrainedsed.heads import LinearHead
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.training.pieces import Recording

LABELS = ("high", "low")
N_BANDS = 8


class TinyFrontend(nn.Module):
    """Energies of 8 bands of each 40 ms."""

    n_mels = N_BANDS

    def forward(self, audio: Tensor) -> Tensor:
        power = torch.fft.rfft(audio.unflatten(1, (-1, 640)).float()).abs()[..., 1:]
        bands = power.unflatten(2, (N_BANDS, -1)).mean(dim=3)
        return bands.clamp(min=1e-4).log().transpose(1, 2)[:, None]


class TinyBackbone(Backbone):
    """Two blocks of a linear layer each; `norm`: a batch norm and dropout in the first."""

    embed_dim = 16

    def __init__(self, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        first: list[nn.Module] = [nn.Linear(N_BANDS, 16), nn.Tanh(), nn.Dropout(dropout)]
        if norm:
            first.insert(1, nn.BatchNorm1d(250))
        self.blocks = nn.ModuleList([nn.Sequential(*first), nn.Sequential(nn.Linear(16, 16))])

    @staticmethod
    def build_frontend() -> nn.Module:
        return TinyFrontend()

    @property
    def blocks_(self) -> nn.ModuleList:
        return self.blocks

    def embed(self, spec: Tensor) -> Tensor:
        return spec[:, 0].transpose(1, 2)

    def layer_of(self, name: str) -> int:
        return self._layer_by_pattern(name, r"blocks\.(\d+)\.", r"$^")


def tiny_model(seed: int = 0, *, norm: bool = False, dropout: float = 0.0) -> SEDModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = LinearHead(16, len(LABELS), weak=False)
        return SEDModel(TinyBackbone(norm, dropout), head=head, labels=LABELS).eval()


def tones(folder: Path, seconds: Sequence[float] = (25.0, 10.0, 4.0)) -> list[Recording]:
    """Recordings with tones of two pitches in noise, every second another one or none."""
    folder.mkdir(parents=True, exist_ok=True)
    recordings = []
    for i, length in enumerate(seconds):
        rng = np.random.default_rng(i)
        n = round(length * 16_000)
        audio, times = 0.01 * rng.standard_normal(n), np.arange(n) / 16_000
        targets = np.zeros(((n + 319) // 640, len(LABELS)), np.uint8)
        for second in range(int(length)):
            which = int(rng.integers(3))  # 2: silence
            if which < 2:
                hz = (6000, 500)[which]
                part = slice(second * 16_000, (second + 1) * 16_000)
                audio[part] += 0.3 * np.sin(2 * np.pi * hz * times[part])
                targets[second * 25 : (second + 1) * 25, which] = 1
        path = folder / f"{i}.wav"
        soundfile.write(path, audio.astype(np.float32), 16_000, subtype="FLOAT")
        recordings.append(Recording(path.name, path, targets))
    return recordings
