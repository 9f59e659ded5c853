"""Whether an error says that memory ran out, of a GPU or of the machine."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Also of what torch raises on a CPU: a plain RuntimeError."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    is_torchs = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return isinstance(error, kinds) or is_torchs
