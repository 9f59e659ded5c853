"""What a training will take, before it is begun."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.options import PRECISIONS
from hear_pretrainedsed.training.pieces import GRID
from hear_pretrainedsed.training.plan import Place, Plan
from hear_pretrainedsed.training.stream import head_output, spec_of

_FLOAT = 4


@dataclass(frozen=True)
class Memory:
    """Bytes on the training device, of one process.

    weights: with their gradients, AdamW's two moments, and the average if there is one. batch:
    audio, spec and targets of a whole batch. activations: what the backward pass of the pieces in
    memory at a time needs. Work space of single operations comes on top.
    """

    weights: int
    batch: int
    activations: int

    @property
    def total(self) -> int:
        """Of all three."""
        return self.weights + self.batch + self.activations


def memory(
    model: SEDModel, plan: Plan, place: Place, clip_samples: int = GRID.window_samples
) -> Memory:
    """The memory of a training; one piece goes through the model to see what is kept of it.

    clip_samples: length of the pieces, 10 s but where whole clips are learned from.
    """
    n_copies = 4 + (plan.ema_decay is not None)
    weights = n_copies * _FLOAT * sum(p.numel() for p in model.parameters() if p.requires_grad)
    piece = torch.zeros(1, clip_samples, device=model.device)
    spec = spec_of(model, piece)
    n_classes = len(model.labels or ())
    values = piece.numel() + spec.numel() + GRID.n_frames(clip_samples) * n_classes
    processes = place.n_devices * place.n_nodes
    at_once = min(place.micro, -(-plan.batch_pieces // processes))
    kept = activation_bytes(model, spec, plan.precision)
    return Memory(weights, plan.batch_pieces * values * _FLOAT, at_once * kept)


def activation_bytes(model: SEDModel, spec: Tensor, precision: str = "fp32") -> int:
    """Bytes that the backward pass of a spec needs, parameters not counted, each storage once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, Tensor] = {}  # held, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    half = precision != "fp32"
    with (
        torch.enable_grad(),
        torch.autocast(spec.device.type, PRECISIONS[precision], enabled=half),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        logits = head_output(model, spec).float()
        nn.functional.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
    return sum(t.untyped_storage().nbytes() for key, t in seen.items() if key not in own)
