"""PSLA with weights by the reference data's rule, what to feed it, and its golden arrays.

`python -m tests.psla_reference SHARED` makes tests/golden/psla from the reference data.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hear_pretrainedsed.backbones.psla import MBConv, Psla, PslaMel
from hear_pretrainedsed.heads import MultiHeadPooling
from hear_pretrainedsed.model import Options, SEDModel, build_checkpoint, build_model
from hear_pretrainedsed.registry import get_checkpoint
from tests.efficient_rule import arrays, gaps, rule_value

GOLDEN = Path(__file__).parent / "golden" / "psla" / "outputs.npz"
AUDIOSET, FSD50K = "psla.weak-audioset", "psla.weak-fsd50k"
FILL = 4.6476 / 4.5699  # +1.0170: zero before normalisation
N_PARAMETERS = 13_640_766


def published(name: str) -> str:
    """Name here -> name in the reference data, and in a released file below `module.`."""
    return re.sub("^backbone", "effnet", re.sub("^head", "attention", name))


def rule_state(model: SEDModel) -> dict[str, Tensor]:
    """Weights by the reference data's rule, under its names."""
    shapes = {published(k): tuple(v.shape) for k, v in model.state_dict().items()}
    state = {k: rule_value(k, shape) for k, shape in shapes.items()}
    state["attention.head_weight"] /= 4
    return state


@lru_cache(maxsize=1)
def reference_model(folder: Path | None) -> SEDModel:
    """psla.weak-audioset with rule-made weights; batch-norm statistics of the reference data."""
    model = build_checkpoint(get_checkpoint(AUDIOSET))
    state = rule_state(model)
    if folder is not None:
        state |= arrays(folder / "psla.bn.npz")
    model.load_state_dict({k: state[published(k)] for k in model.state_dict()})
    return model.requires_grad_(False)


def check(found: Tensor, wanted: Tensor, limit: tuple[float, float]) -> None:
    """Largest and mean difference, in standard deviations of the reference."""
    largest, mean = gaps(found, wanted)
    assert largest <= limit[0] and mean <= limit[1], f"max {largest:.1e}, mean {mean:.1e}"


class Light(nn.Module):
    """A trunk with PSLA's front end and steps that costs nothing: a mean over 32 spec frames."""

    embed_dim = 128
    token_span_samples = Psla.token_span_samples
    first_token_samples = Psla.first_token_samples

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Parameter(torch.ones(1))

    @staticmethod
    def build_frontend() -> PslaMel:
        return PslaMel()

    def for_inference(self, dtype: torch.dtype) -> nn.Module:
        return self.to(dtype)

    def forward(self, spec: Tensor) -> Tensor:
        pooled = nn.functional.avg_pool1d(spec[:, 0], 32, ceil_mode=True)
        return pooled.transpose(1, 2) * self.unit


def light(clip_s: float | None = None, **options: object) -> SEDModel:
    torch.manual_seed(0)
    head, labels = MultiHeadPooling(128, 3), ("a", "b", "c")
    return SEDModel(
        Light(), head=head, labels=labels, clip_s=clip_s, options=Options(**options)
    ).eval()


def noise(n_samples: int, batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    swell = torch.linspace(0, 20, n_samples).sin().abs()
    return 0.1 * torch.randn(batch, n_samples, generator=generator) * swell


def formula_spec() -> Tensor:
    """Two specs (2, 1, 128, 1056) made of moving bands, no recording."""
    band, time = torch.arange(128.0)[:, None], torch.arange(1056.0)
    one = (band / 7 + (time / 40).sin() * 3).sin() + (time / 11 - band / 30).cos()
    two = (band * time / 900).sin() - (time / 200).cos() * (band / 64)
    spec = torch.stack([one, two])[:, None]
    spec[..., 998:] = FILL
    return spec


def calibrated(spec: Tensor) -> SEDModel:
    """Rule-made weights, batch-norm statistics of `spec`."""
    model = build_checkpoint(get_checkpoint(AUDIOSET))
    state = rule_state(model)
    model.load_state_dict({k: state[published(k)] for k in model.state_dict()})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1
        if isinstance(module, MBConv):
            module.drop = 0
    with torch.no_grad():
        model.train().backbone(spec)
    return model.requires_grad_(False).eval()


def golden_outputs() -> dict[str, Tensor]:
    spec = formula_spec()
    model = calibrated(spec)
    tokens = model.backbone(spec)
    return {"tokens": tokens[:, ::4, ::16], "clip": model.head.clip(tokens)}


def released(path: Path, n_classes: int, *, prefix: str = "module.", seed: int = 0) -> Path:
    """A file as PSLA's training writes them, with the classifier that it never uses."""
    torch.manual_seed(seed)
    model = build_model("psla", head="multihead", n_classes=n_classes)
    state = {prefix + published(k): v for k, v in model.state_dict().items()}
    state |= {f"{prefix}effnet._fc.weight": torch.zeros(3, 1408)}
    state |= {f"{prefix}effnet._fc.bias": torch.zeros(3)}
    torch.save(state, path)
    return path


def make_golden(folder: Path) -> None:
    """Write tests/golden/psla: `python -m tests.test_psla SHARED`."""
    found = {k: v.numpy() for k, v in golden_outputs().items()}
    found["rule"] = arrays(folder / "psla.npz")["rule/out"].numpy()
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(GOLDEN, **found)


if __name__ == "__main__":
    make_golden(Path(sys.argv[1]) / "parity_efficient")
