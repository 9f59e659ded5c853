"""Memory of this process, as the kernel counts it."""

from __future__ import annotations

import os
import resource
from pathlib import Path


def held_gb() -> float:
    """What it holds now, GiB; where nothing tells, the most it ever held."""
    path = Path("/proc/self/statm")
    if not path.exists():
        return peak_gb()
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30


def peak_gb() -> float:
    """The most it held since `forget_peak`, or since it began, GiB.

    Not `getrusage`: there a new process begins with the peak of the one that started it.
    """
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    kilobytes = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    if kilobytes:
        return int(kilobytes[0]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def forget_peak() -> None:
    """Begin to measure the peak anew, where the kernel lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
