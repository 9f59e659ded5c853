"""ATST-SED with weights by the reference data's rule, what to feed it, and its golden arrays.

`python -m tests.atst_sed_reference SHARED` makes tests/golden/atst_sed from the reference data.
"""

from __future__ import annotations

import math
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hear_pretrainedsed.backbones.atst_sed import ATST_MELS, CRNN_MELS, split
from hear_pretrainedsed.model import SEDModel, build_checkpoint, build_model
from hear_pretrainedsed.registry import get_checkpoint
from hear_pretrainedsed.rule_weights import fill, published_names
from tests.efficient_rule import arrays, rule_value

GOLDEN = Path(__file__).parent / "golden" / "atst_sed" / "outputs.npz"
DESED = "atst_sed.strong-desed"
TABLES = ("pos_embed", "mask_embed")
#: 80 dB in units of the transformer's spec
FLOOR = 2 * 80 / (50.6842 + 79.6482)


def build() -> SEDModel:
    """The network without values."""
    with torch.device("meta"):
        return build_checkpoint(get_checkpoint(DESED))


def reference_value(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that the reference data's rule gives a name; tables are no matrices there."""
    value = rule_value(name, shape)
    return 0.1 * math.sqrt(math.prod(shape[1:])) * value if name.endswith(TABLES) else value


@lru_cache(maxsize=1)
def pure_rule() -> SEDModel:
    """Rule-made weights, batch-norm statistics included."""
    model = build()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    names = published_names(model, "")
    state = {name: reference_value(names[name], shape) for name, shape in shapes.items()}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False)


@lru_cache(maxsize=1)
def reference_model(folder: Path | None) -> SEDModel:
    """The same with the reference data's batch-norm statistics, those in GOLDEN without it."""
    model = pure_rule()
    kept = arrays(folder / "atst_sed.bn.npz") if folder else arrays(GOLDEN)
    statistics = {f"backbone.{k}": v for k, v in kept.items() if "running_" in k}
    assert len(statistics) == 14
    state = {k: statistics.get(k, v) for k, v in model.state_dict().items()}
    with torch.device("meta"):
        model = build_checkpoint(get_checkpoint(DESED))
    model.load_state_dict(state, assign=True)  # the weights are those of the pure rule's model
    return model.requires_grad_(False)


def floored_over_batch(spec: Tensor) -> Tensor:
    """The spec as the original has it: the transformer's floor is that of the loudest clip."""
    spec = spec.clone()
    atst = spec[:, :, :ATST_MELS]
    atst.copy_(torch.maximum(atst, atst.max() - FLOOR))
    return spec


def pack(atst: Tensor, crnn: Tensor) -> Tensor:
    """Stored inputs of one clip, (64, 1001) and (128, 626) -> spec (1, 1, 192, 1001)."""
    spec = torch.zeros(1, 1, ATST_MELS + CRNN_MELS, atst.shape[1])
    for part, value in zip(split(spec), (atst, crnn), strict=True):
        part.copy_(value)
    return spec


def small(n_blocks: int = 1, **options: object) -> SEDModel:
    """The network with the transformer's first blocks, rule-made weights and three classes."""
    with torch.device("meta"):
        model = build_model("atst_sed", head="token_attention", labels=("a", "b", "c"), **options)
        transformer = model.backbone.atst_frame["atst"]
        transformer.blocks = transformer.blocks[:n_blocks]
    return fill(model).requires_grad_(False)


def formula_spec() -> Tensor:
    """Two specs (2, 1, 192, 1001) made of moving bands, no recording."""
    band, time = torch.arange(128.0)[:, None], torch.arange(1001.0)
    one = (band / 7 + (time / 40).sin() * 3).sin() * (time / 11 - band / 30).cos()
    two = (band * time / 900).sin() - (time / 200).cos() * (band / 64)
    parts = [(x[:64], x[:, :626].clamp(-1, 1) / 2 + 0.5) for x in (0.6 * one, 0.4 * two)]
    return torch.cat([pack(*part) for part in parts])


def golden_outputs() -> dict[str, Tensor]:
    """What is kept of the network's outputs for `formula_spec`."""
    model = reference_model(None)
    tokens = model.backbone(formula_spec())
    scores, weak = model.head(tokens), model.head.clip(tokens)
    return {"tokens": tokens[:, ::5, ::8], "strong": scores[:, ::3], "weak": weak}


def make_golden(folder: Path) -> None:
    """Write GOLDEN: the reference data's statistics, and what this code gives with them."""
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    kept = {k: v.numpy() for k, v in arrays(folder / "atst_sed.bn.npz").items()}
    np.savez_compressed(GOLDEN, **kept)
    kept |= {k: v.numpy() for k, v in golden_outputs().items()}
    np.savez_compressed(GOLDEN, **kept)


if __name__ == "__main__":
    make_golden(Path(sys.argv[1]) / "parity_efficient")
