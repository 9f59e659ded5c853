"""Whether worker processes end with the process they work for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path


def survivors_of_a_kill(program: Path, *arguments: str) -> tuple[list[int], list[int]]:
    """Start a Python program, kill -9 it at work: its children's ids, and of those that go on."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    run = subprocess.Popen([sys.executable, str(program), *arguments], env=environment)
    limit = time.monotonic() + 60
    while not children_of(run.pid) and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(3)  # until the workers work
    children = children_of(run.pid)
    run.kill()
    run.wait()
    while any(map(_is_there, children)) and time.monotonic() < limit:
        time.sleep(0.05)
    return children, [pid for pid in children if _is_there(pid)]


def children_of(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def _is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
