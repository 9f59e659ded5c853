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
_ALLOCATED = 1.4
"""Of a process's memory to its tensors': 0.9 to 1.35 were measured on a CPU, of small CNNs most.

The tensors of a step are as estimated, to 4 %: the rest is work space of single operations and
what the allocator holds back.
"""


@dataclass(frozen=True)
class Memory:
    """Bytes on the training device, of one process.

    weights: with their gradients, AdamW's two moments, and the average if there is one. batch:
    audio, spec and targets of a whole batch. activations: what the backward pass of the pieces in
    memory at a time needs. teacher: weights of a frozen one. Work space of single operations and
    what the allocator holds back come on top, see `at_most`.
    """

    weights: int
    batch: int
    activations: int
    teacher: int = 0

    @property
    def total(self) -> int:
        """Of all tensors."""
        return self.weights + self.batch + self.activations + self.teacher

    @property
    def at_most(self) -> int:
        """What the process may take for these, `_ALLOCATED` times as much."""
        return round(_ALLOCATED * self.total)

    def __str__(self) -> str:
        parts = {
            "weights and optimiser": self.weights,
            "batch": self.batch,
            "activations": self.activations,
            "the teacher": self.teacher,
        }
        told = ", ".join(f"{name} {_gigabytes(part)}" for name, part in parts.items() if part)
        return (
            f"about {_gigabytes(self.total)} of tensors a process ({told}); with work space and "
            f"what the allocator holds back up to {_gigabytes(self.at_most)}"
        )


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"


def memory(
    model: SEDModel,
    plan: Plan,
    place: Place,
    clip_samples: int = GRID.window_samples,
    teacher: SEDModel | None = None,
) -> Memory:
    """The memory of a training; one piece goes through the model to see what is kept of it.

    clip_samples: length of the pieces, 10 s but where whole clips are learned from. teacher: scores
    the same pieces, from a spec of its own; what its forward pass takes is free again before the
    model's begins, which keeps more.
    """
    n_copies = 4 + (plan.ema_decay is not None)
    weights = n_copies * _FLOAT * sum(p.numel() for p in model.parameters() if p.requires_grad)
    piece = torch.zeros(1, clip_samples, device=model.device)
    spec = spec_of(model, piece)
    n_classes = len(model.labels or ())
    values = piece.numel() + spec.numel() + GRID.n_frames(clip_samples) * n_classes
    held = 0
    if teacher is not None:
        values += teacher.frontend(piece).numel()
        held = _FLOAT * sum(t.numel() for t in (*teacher.parameters(), *teacher.buffers()))
    processes = place.n_devices * place.n_nodes
    at_once = min(place.micro, -(-plan.batch_pieces // processes))
    kept = activation_bytes(model, spec, plan.precision)
    return Memory(weights, plan.batch_pieces * values * _FLOAT, at_once * kept, held)


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
