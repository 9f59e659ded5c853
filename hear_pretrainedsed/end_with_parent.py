"""Worker processes that do not outlive the process they work for."""

from __future__ import annotations

import os
import threading
import time

_POLL_S = 0.5


def end_with_parent(parent: int) -> None:
    """In a worker: end it soon after the process that started it does, even by kill -9.

    parent: that process's id, taken by itself: it may be gone before this is called. The sentinel
    of `multiprocessing.parent_process` would not do: a forked worker's siblings hold it open.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
