"""A linear probe over the HEAR API: one linear layer on frozen embeddings, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def frame_targets(
    events: Sequence[tuple[float, float, str]], labels: list[str], timestamps_ms: Tensor
) -> Tensor:
    """Events of a clip -> (frames, classes): 1 where a class sounds at the frame's centre."""
    targets = torch.zeros(len(timestamps_ms), len(labels))
    for onset_s, offset_s, label in events:
        sounds = (timestamps_ms >= 1000 * onset_s) & (timestamps_ms <= 1000 * offset_s)
        targets[sounds, labels.index(label)] = 1
    return targets


def train_probe(
    features: Tensor, targets: Tensor, *, n_steps: int = 300, weight_decay: float = 1e-3
) -> nn.Module:
    """Features (frames, dim) and targets (frames, classes) -> features (..., dim) to logits.

    The features are standardised inside; all frames are one batch, and the start is zero, so
    that nothing here is random.
    """
    mean, std = features.mean(0), features.std(0) + 1e-5
    linear = nn.Linear(features.shape[1], targets.shape[1])
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=0.01, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    standardised = (features - mean) / std
    for _ in range(n_steps):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(linear(standardised), targets).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():  # fold the standardisation into the layer
        linear.weight /= std
        linear.bias -= linear.weight @ mean
    return linear.requires_grad_(False)
