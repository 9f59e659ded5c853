"""Parameters and multiply-accumulates of a network, by formula, without running it.

The networks are built on torch's "meta" device, where tensors have shapes and no numbers. Counted
are convolutions and products with weight matrices, and `mamba`'s scan in its single-chunk quadratic
form, for one 10 s window without the front end, as EfficientSED (arXiv 2503.11373) counts. The two
products inside attention (queries with keys, weights with values), which that count leaves out,
stand apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hear_pretrainedsed.model import SEDModel, build_checkpoint
from hear_pretrainedsed.registry import CHECKPOINTS, Checkpoint


@dataclass(frozen=True)
class Complexity:
    """Cost of a model for one 10 s window.

    parameters: trained numbers, each once, heads included.
    backbone, sequence_model, head: multiply-accumulates (MACs) of the parts.
    attention: MACs inside attention, of backbone and sequence model; in none of the other fields.
    """

    parameters: int
    backbone: int
    sequence_model: int
    head: int
    attention: int

    @property
    def macs(self) -> int:
        """MACs of all parts, those inside attention left out as in published counts."""
        return self.backbone + self.sequence_model + self.head

    @property
    def macs_with_attention(self) -> int:
        """MACs of everything."""
        return self.macs + self.attention


@dataclass
class _Counter(TorchFunctionMode):
    """Counts what modules compute while it is active."""

    macs: int = 0
    attention: int = 0
    seen: set[nn.Module] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func is F.scaled_dot_product_attention:
            q, k, v = args[:3]
            self.attention += q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        if func is torch.gru:  # "meta" would walk through it frame by frame
            x, state = args[:2]
            return x.new_empty(*x.shape[:2], (1 + args[7]) * state.shape[2]), state
        return func(*args, **(kwargs or {}))

    def after(self, module: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
        """Forward hook of every module; a head's part that is used twice counts once."""
        if module not in self.seen:
            self.seen.add(module)
            self.macs += module_macs(module, args[0], output) if args else 0


def module_macs(module: nn.Module, x: Tensor, output: object) -> int:
    """MACs of a module itself, its children not included, for the input `x`."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return output.numel() * module.weight[0].numel()
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, nn.GRU):
        weights = (p.numel() for name, p in module.named_parameters() if name.startswith("weight"))
        return x.shape[:-1].numel() * sum(weights)
    return module.macs(x) if hasattr(module, "macs") else 0


def count(model: SEDModel) -> Complexity:
    """Cost of a model whose parameters are on the "meta" device (`build_model` under it)."""
    counter = _Counter()
    hooks = [module.register_forward_hook(counter.after) for module in model.modules()]
    with torch.no_grad(), counter:
        spec = model.frontend(torch.zeros(1, model.grid.window_samples))
        tokens = model.backbone(spec.to("meta"))
        backbone = counter.macs
        frames = model.sequence_model(model.grid.to_frames(tokens))
        sequence_model = counter.macs - backbone
        if model.head is not None:  # first the clip, which published counts include
            pools_tokens = getattr(model.head, "pools", "frames") == "tokens"
            model.head.clip(tokens if pools_tokens else frames)
            model.head(frames)
    for hook in hooks:
        hook.remove()
    head = counter.macs - backbone - sequence_model
    return Complexity(model.n_parameters, backbone, sequence_model, head, counter.attention)


def compute(checkpoint: Checkpoint) -> Complexity:
    """Cost of a checkpoint's network, counted now (a fifth of a second)."""
    with torch.device("meta"):
        model = build_checkpoint(checkpoint)
    return count(model)


@cache
def complexity(checkpoint: Checkpoint) -> Complexity:
    """Cost of a checkpoint's network: from assets/complexity.json, else counted."""
    known = _facts().get(checkpoint.name)
    return Complexity(**known) if known else compute(checkpoint)


@cache
def _facts() -> dict[str, dict[str, int]]:
    path = files("hear_pretrainedsed").joinpath("assets", "complexity.json")
    return json.loads(path.read_text("utf-8"))


def facts_text() -> str:
    """What assets/complexity.json has to hold: the counts of published checkpoints, a line each."""
    lines = (
        f"{json.dumps(name)}: {json.dumps(asdict(compute(checkpoint)))}"
        for name, checkpoint in sorted(CHECKPOINTS.items())
        if not checkpoint.own
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"
