"""Reference models of PretrainedSED's reference data: names, rule-made weights, test signal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hear_pretrainedsed.model import SEDModel, build_model
from hear_pretrainedsed.registry import read_labels
from hear_pretrainedsed.rule_weights import fill

#: backbone here -> name of its files in the reference data
MODELS = {
    "asit": "ASIT",
    "atst_f": "ATST-F",
    "beats": "BEATs",
    "fpasst": "fpasst",
    "frame_mn06": "frame_mn06",
    "frame_mn10": "frame_mn10",
    "m2d": "M2D",
}


@lru_cache(maxsize=1)
def reference_model(
    backbone: str,
    sequence_model: tuple[str, int] | None = None,
    head: str | None = "linear",
    n_classes: int = 447,
) -> SEDModel:
    """The network with rule-made weights, under no gradient; one is kept at a time."""
    labels = read_labels("audioset_strong_train")[:n_classes] if head else None
    with torch.device("meta"):
        model = build_model(backbone, sequence_model=sequence_model, head=head, labels=labels)
    return fill(model).requires_grad_(False)


def manifest(shared: Path, backbone: str) -> dict:
    """The manifest of a reference model."""
    return json.loads((shared / "parity" / f"{MODELS[backbone]}.manifest.json").read_text())


def arrays(shared: Path, name: str) -> dict[str, Tensor]:
    """Arrays of one .npz of the reference data."""
    with np.load(shared / "parity" / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def gap(found: Tensor, wanted: Tensor) -> float:
    """max |a - b| / max |b|, the reference data's measure of error."""
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def check_in_order(gaps: Iterable[tuple[str, float, float]]) -> None:
    """Fail at the first (stage, gap, limit) that is off, and name it."""
    seen = []
    for stage, found, limit in gaps:
        assert found <= limit, (
            f"first stage that differs: {stage} (gap {found:.2e}, limit {limit:.0e}); "
            f"before it: {', '.join(seen) or 'nothing'}"
        )
        seen.append(f"{stage} {found:.1e}")


def signal(n_samples: int = 160_000, seed: int = 0) -> Tensor:
    """A test clip (samples,): sweeps, decaying harmonics, clicks, exact silence at 3 to 4 s."""
    rng = np.random.default_rng(seed)
    t = np.arange(n_samples) / 16_000
    x = 0.003 * rng.standard_normal(n_samples)
    x += 0.3 * np.sin(2 * np.pi * (150 + 300 * (t % 5)) * (t % 5)) * (t % 5 < 2)
    for f0, onset in ((220, 1.5), (587, 4.2), (1760, 6.1), (90, 8.0)):
        since = np.clip(t - onset, 0, None)
        decay = np.exp(-3 * since) * (t >= onset)
        x += 0.2 * decay * sum(np.sin(2 * np.pi * f0 * k * since) / k for k in (1, 2, 3))
    x[4000::23_000] += 0.5
    x[(t >= 3) & (t < 4)] = 0
    return torch.from_numpy(x.astype(np.float32))
