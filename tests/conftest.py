"""Fixtures: reference data beside the checkout, and stand-in weights.

`../shared` (or $HEAR_PRETRAINEDSED_SHARED) holds the full reference data. Where it is missing, what
can be checked against tests/golden still is, the rest is skipped, and the closing lines say how
many checks had no reference data. In CI a missing folder is a failure.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

# The package reads the user's imported checkpoints when it is imported: here there are none.
os.environ["HEAR_PRETRAINEDSED_HOME"] = os.devnull

SHARED = Path(
    os.environ.get("HEAR_PRETRAINEDSED_SHARED", Path(__file__).resolve().parents[2] / "shared")
)
NO_REFERENCE = "no reference data"
N_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2  # as many workers as cores, or one


def pytest_configure(config: pytest.Config) -> None:
    """Refuse CI without the reference data; hear of Ctrl-C whatever has started the tests."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts jobs in background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("CI", "").lower() in ("true", "1") and not SHARED.is_dir():
        pytest.exit(f"CI needs the reference data, and {SHARED} is missing", returncode=1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly what was not checked."""
    skipped = terminalreporter.stats.get("skipped", [])
    names = [report.nodeid for report in skipped if NO_REFERENCE in str(report.longrepr)]
    if names:
        terminalreporter.write_line(
            f"{len(names)} checks had NO REFERENCE DATA ({SHARED.name}/ is not beside the "
            f"checkout), the first: {names[0]}",
            yellow=True,
        )


@pytest.fixture
def shared() -> Path:
    """The folder of reference data, or a skip that is counted."""
    if not SHARED.is_dir():
        pytest.skip(NO_REFERENCE)
    return SHARED


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own: nothing is read from or left in the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HEAR_PRETRAINEDSED_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    """Two threads, or one in each of several workers, whatever a test sets."""
    torch.set_num_threads(N_THREADS)
    yield
    torch.set_num_threads(N_THREADS)


@pytest.fixture(scope="session")
def release_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Rule-made weights of a checkpoint in its published layout and under its published name.

    Each is written once a session and all go at its end: a transformer's has 350 MB.
    """
    from hear_pretrainedsed.registry import get_checkpoint
    from hear_pretrainedsed.rule_weights import write_release_file

    folder = tmp_path_factory.mktemp("released")

    def write(checkpoint: str) -> Path:
        path = folder / get_checkpoint(checkpoint).file
        return path if path.exists() else write_release_file(checkpoint, path)

    yield write
    shutil.rmtree(folder)
