"""A copy of the set-up to try things on, with stand-ins for the downloads."""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("setup.py", "constraints.txt", "Makefile", "tools/make_env.py", "tools/make_env.sh")


def load_builder(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_env", root / "tools" / "make_env.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the builder reads, in a folder with a space in its name."""
    root = tmp_path / "a clone"
    for name in COPIED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    package = root / "hear_pretrainedsed"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "0.1.0"\n')
    return root


@pytest.fixture
def builder(tree: Path) -> ModuleType:
    return load_builder(tree)


@pytest.fixture
def fake_installs(builder: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces both install steps; the list is what was installed."""
    installed: list[str] = []

    def installer(level: str) -> Callable[[Path, Path], None]:
        def install(env: Path, root: Path) -> None:
            (env / "bin").mkdir(parents=True, exist_ok=True)
            (env / level).touch()
            if not (env / "bin" / "python").exists():
                (env / "bin" / "python").symlink_to(sys.executable)
            (env / "pyvenv.cfg").write_text("home = x\n")
            installed.append(level)

        return install

    monkeypatch.setattr(builder, "install_core", installer("core"))
    monkeypatch.setattr(builder, "install_hear", installer("hear"))
    monkeypatch.setattr(builder, "check_machine", lambda level: None)
    return installed
