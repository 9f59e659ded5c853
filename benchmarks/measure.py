"""What every benchmark needs: the machine in words, its matrix-product peak, interleaved rounds."""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from rich.table import Table

SIZE = 2048


def machine() -> str:
    """CPU, instruction set torch uses, threads, torch version."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = re.search(r"model name\s*: (.+)", text)
    cpu = found[1] if found else platform.processor()
    flags = [f for f in ("avx512_bf16", "amx_bf16") if re.search(rf"\b{f}\b", text)]
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{cpu}, {capability}{' + ' if flags else ''}{' + '.join(flags)}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def seconds(function: Callable[[], object]) -> float:
    """One timed call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_gflops(dtype: torch.dtype) -> float:
    """Best of three products of 2048 x 2048 matrices, in GFLOP/s."""
    a, b = (torch.ones(SIZE, SIZE, dtype=dtype) for _ in range(2))
    return 2 * SIZE**3 / min(seconds(lambda: a @ b) for _ in range(3)) / 1e9


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every function in `rounds` rounds, each taken in turn after one warm-up."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return times


def spread(values: list[float], digits: int = 2) -> str:
    """Median and range, as "1.23 (1.10-1.40)"."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Rows as a table, numbers to the right."""
    shown = Table(*columns, title=title)
    shown.columns[0].no_wrap = True
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in rows:
        shown.add_row(*row)
    return shown
