"""Clips of a run that could not be decoded: noted in a file as they are found, told at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hear_pretrainedsed.events import disk_errors
from pretraining.sampling import ClipOrder

BROKEN = "broken.txt"


@dataclass
class BrokenClips:
    """Broken clips of all orders of a run, of all its processes, before and after a kill.

    path: a line a clip, its name, a tab and the reason. Every process of a run adds to it.
    """

    path: Path
    orders: Sequence[ClipOrder]
    _noted: set[str] = field(default_factory=set)

    def note(self) -> None:
        """Add what this process has found since the last time."""
        found = {name: why for order in self.orders for name, why in order.broken.items()}
        if not found.keys() - self._noted:
            return
        new = found.keys() - self._noted - self.read().keys()
        lines = [f"{name}\t{' '.join(found[name].split())}\n" for name in found if name in new]
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
        self._noted |= found.keys()

    def read(self) -> dict[str, str]:
        """All that was noted: reasons by name."""
        if not self.path.is_file():
            return {}
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return {name: why for name, tab, why in (line.partition("\t") for line in lines) if tab}

    def facts(self) -> dict[str, Any]:
        """What a run's card says of them."""
        names = sorted(self.read())
        return {"count": len(names), "names": names}
