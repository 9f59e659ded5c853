"""What is done when memory runs out, of a GPU or of the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from hear_pretrainedsed.model import SEDModel

Result = TypeVar("Result")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says so. Also of what torch raises on a CPU: a plain RuntimeError."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    is_torchs = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return isinstance(error, kinds) or is_torchs


def in_smaller_batches(model: SEDModel, n_windows: int, compute: Callable[[], Result]) -> Result:
    """What `compute()` gives; when memory runs out, with half as many windows at a time.

    The model keeps the smaller batch size. `n_windows`: so many are computed. Raises `MemoryError`
    when a single one is too much.
    """
    while True:
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # outside of `except`, which keeps the tensors alive
        if (size := min(model.batch_size, n_windows)) == 1:
            raise MemoryError("not enough memory, even window by window")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        model.options = replace(model.options, batch_size=size // 2)
