"""Protocols: how a downstream number is obtained; one file and one line of `PROTOCOLS` each.

Mode `finetune` of those that have it is in `downstream.finetune`.
"""

from __future__ import annotations

from dataclasses import replace

from downstream.embeddings import FrameSource
from downstream.protocols import best, hear, paper
from downstream.protocols.base import Found, Protocol, Settings
from downstream.tasks.task import Task

__all__ = ["PROTOCOLS", "Found", "Protocol", "Settings"]

# What fine-tuning depends on; heareval has no such mode. Batch norms of `paper` are not frozen, and
# take their statistics from what is in memory at a time.
_FINE_TUNED = {
    "paper": ("steps_scale", "max_steps", "batch_size"),
    "best": ("steps_scale", "max_steps"),
}


def _with_finetune(protocol: Protocol) -> Protocol:
    if protocol.name not in _FINE_TUNED:
        return protocol

    def finetune(task: Task, source: FrameSource, settings: Settings, seed: int) -> Found:
        from downstream.finetune import mode  # Lightning takes seconds to import

        return mode(protocol.name, task, source, settings, seed)

    reads = {**protocol.reads, "finetune": _FINE_TUNED[protocol.name]}
    return replace(protocol, modes={**protocol.modes, "finetune": finetune}, reads=reads)


PROTOCOLS: dict[str, Protocol] = {
    one.name: _with_finetune(one) for one in (hear.PROTOCOL, paper.PROTOCOL, best.PROTOCOL)
}
