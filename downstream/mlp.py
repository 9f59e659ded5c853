"""HEAR's prediction head: an MLP over frames, several of them trained side by side.

heareval 2021.1.3 (`FullyConnectedPrediction`): per hidden layer linear, batch norm, dropout, ReLU;
then a linear layer, binary cross-entropy over all classes, Adam. Heads that are trained together
see the same batches and the same dropout masks, each with its own weights: a mask is drawn once for
all of them, and each product is large enough to run at the processor's peak by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

INITS = {
    "xavier_uniform_": torch.nn.init.xavier_uniform_,
    "xavier_normal_": torch.nn.init.xavier_normal_,
}
_BN_EPS, _BN_MOMENTUM = 1e-5, 0.1  # torch.nn.BatchNorm1d's
_MASK_BITS = 16


@dataclass(frozen=True)
class Shape:
    """What heads that are trained together share."""

    hidden_layers: int
    hidden_dim: int
    dropout: float
    batch_size: int


@dataclass
class Head:
    """One MLP: parameters by layer, running statistics of its batch norms, its optimizer.

    weights: of the hidden layers, then of the projection, (out, in) each. norms: weight and bias of
    each hidden layer's batch norm; running: its mean and variance.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    norms: list[tuple[Tensor, Tensor]]
    running: list[tuple[Tensor, Tensor]]
    lr: float
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        for parameter in self.parameters():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=self.lr, fused=True)

    def parameters(self) -> list[Tensor]:
        """All that is trained."""
        return [*self.weights, *self.biases, *(one for pair in self.norms for one in pair)]

    def state(self) -> list[Tensor]:
        """Copies of all tensors that predictions depend on."""
        kept = [*self.parameters(), *(one for pair in self.running for one in pair)]
        return [one.detach().clone() for one in kept]

    def load(self, state: Sequence[Tensor]) -> None:
        """Put back what `state` gave."""
        here = [*self.parameters(), *(one for pair in self.running for one in pair)]
        with torch.no_grad():
            for one, value in zip(here, state, strict=True):
                one.copy_(value)


def new_head(
    sizes: tuple[int, int],
    shape: Shape,
    lr: float,
    init: str,
    generator: torch.Generator,
    device: str = "cpu",
) -> Head:
    """A head of (dim, classes) as heareval makes it: Xavier weights, gain sqrt 2 after a ReLU."""
    dims = [sizes[0], *[shape.hidden_dim] * shape.hidden_layers, sizes[1]]
    weights, biases = [], []
    for i, (a, b) in enumerate(zip(dims, dims[1:], strict=False)):
        weight = torch.empty(b, a)
        INITS[init](weight, gain=math.sqrt(2) if i else 1.0, generator=generator)
        weights.append(weight)
        bound = 1 / math.sqrt(a)  # torch.nn.Linear's
        biases.append(torch.empty(b).uniform_(-bound, bound, generator=generator))
    ones = [torch.ones(n, device=device) for n in dims[1:-1]]
    norms = [(one.clone(), torch.zeros_like(one)) for one in ones]
    running = [(torch.zeros_like(one), one) for one in ones]
    weights, biases = ([one.to(device) for one in part] for part in (weights, biases))
    return Head(weights, biases, norms, running, lr)


class _ReluDropout(torch.autograd.Function):
    """relu(x) * kept, in place: one pass back instead of two, and nothing held but y."""

    @staticmethod
    def forward(ctx: object, x: Tensor, kept: Tensor) -> Tensor:
        y = x.relu_().mul_(kept)
        ctx.save_for_backward(y)
        ctx.mark_dirty(x)
        return y

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, y, 0), None


def train_logits(head: Head, x: Tensor, masks: Sequence[Tensor], dropout: float) -> Tensor:
    """Batch (rows, in) and a mask (rows, hidden) a hidden layer -> logits (rows, classes).

    Masks hold 1 where a value is kept and 0 where it is dropped; what dropout divides the values by
    is divided out of the next layer's weights instead. Products are in the precision of `x`.
    """
    scale = 1.0
    for i, mask in enumerate(masks):
        x = F.linear(x, _weight(head, i, scale, x), head.biases[i].to(x.dtype))
        mean, variance = head.running[i]
        x = F.batch_norm(x, mean, variance, *head.norms[i], True, _BN_MOMENTUM, _BN_EPS)
        x = _ReluDropout.apply(x, mask)
        scale = 1 / (1 - dropout)
    return F.linear(x, _weight(head, -1, scale, x), head.biases[-1].to(x.dtype)).float()


def _weight(head: Head, i: int, scale: float, x: Tensor) -> Tensor:
    weight = head.weights[i]
    return (weight if scale == 1 else weight * scale).to(x.dtype)


def train_step(head: Head, x: Tensor, y: Tensor, masks: Sequence[Tensor], dropout: float) -> Tensor:
    """One step of Adam on a batch; returns its loss before it, without waiting for it."""
    head.optimizer.zero_grad(set_to_none=True)
    loss = F.binary_cross_entropy_with_logits(train_logits(head, x, masks, dropout), y)
    loss.backward()
    head.optimizer.step()
    return loss.detach()


@torch.no_grad()
def logits(head: Head, x: Tensor, rows_at_once: int = 4096) -> Tensor:
    """Frames (rows, in) -> logits (rows, classes), batch norms folded into the layers."""
    layers = []
    for i, ((gain, shift), (mean, variance)) in enumerate(
        zip(head.norms, head.running, strict=True)
    ):
        factor = gain / (variance + _BN_EPS).sqrt()
        weight = (head.weights[i] * factor[:, None]).to(x.dtype)
        layers.append((weight, ((head.biases[i] - mean) * factor + shift).to(x.dtype)))
    last = (head.weights[-1].to(x.dtype), head.biases[-1].to(x.dtype))
    out = []
    for part in x.split(rows_at_once):
        for weight, bias in layers:
            part = F.linear(part, weight, bias).relu_()
        out.append(F.linear(part, *last).float())
    return torch.cat(out)


class Masks:
    """Dropout masks by a seed, from a generator several times cheaper than torch's.

    A value is dropped where 16 random bits are below `dropout` of their range.
    """

    def __init__(self, seed: int, dropout: float, dtype: torch.dtype, device: str) -> None:
        self._bits = np.random.SFC64(seed)
        self._dropped = np.uint16(round(dropout * (1 << _MASK_BITS)))
        self._dtype, self._device = dtype, device
        one = torch.ones((), dtype=dtype)
        self._one = one.view(torch.int16).numpy() if dtype == torch.bfloat16 else one.numpy()

    def __call__(self, rows: int, n: int) -> Tensor:
        """A mask (rows, n) of 0 and 1."""
        draws = self._bits.random_raw(-(-rows * n // 4)).view(np.uint16)[: rows * n]
        kept = torch.from_numpy(
            np.multiply(draws >= self._dropped, self._one, dtype=self._one.dtype)
        )
        return kept.view(self._dtype).view(rows, n).to(self._device)


def epoch(
    heads: Sequence[Head],
    x: Tensor,
    y: Tensor,
    shape: Shape,
    masks: Callable[[int, int], Tensor],
) -> list[list[Tensor]]:
    """Train heads on all rows once, in order; losses of each head by batch.

    A last batch of one row is left out: a batch norm cannot be trained on it, and heareval fails.
    """
    losses: list[list[Tensor]] = [[] for _ in heads]
    for rows in _batches(len(x), shape.batch_size):
        part, wanted = x[rows], y[rows]
        drawn = [masks(len(part), shape.hidden_dim) for _ in range(shape.hidden_layers)]
        for head, kept in zip(heads, losses, strict=True):
            kept.append(train_step(head, part, wanted, drawn, shape.dropout))
    return losses


def _batches(n: int, size: int) -> Iterator[slice]:
    for first in range(0, n, size):
        end = min(first + size, n)
        if end - first > 1:
            yield slice(first, end)
