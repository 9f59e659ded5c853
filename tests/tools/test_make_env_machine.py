"""What is missing on the machine is one line, at once, before anything is downloaded."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest


def run_script(
    root: Path, *arguments: str, **environment: str
) -> tuple[subprocess.CompletedProcess, float]:
    started = time.monotonic()
    done = subprocess.run(
        ["/bin/sh", "tools/make_env.sh", *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done, time.monotonic() - started


def check_one_line(done: subprocess.CompletedProcess, seconds: float, says: str) -> None:
    assert done.returncode == 1
    lines = (done.stdout + done.stderr).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("environment: ")
    assert re.search(says, lines[0])
    assert seconds < 2


def test_missing_interpreter_is_one_line(tree: Path, tmp_path: Path) -> None:
    done, seconds = run_script(tree, "core", PATH=str(tmp_path))
    check_one_line(done, seconds, r"Python 3\.11 is missing: install it .*python3\.11")


def test_interpreter_of_another_version_is_refused(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "python3.11"
    other.write_text("#!/bin/sh\necho 3.12\n")
    other.chmod(0o755)
    done, seconds = run_script(tree, "core", PATH=str(tmp_path))
    check_one_line(done, seconds, r"Python 3\.11 is missing")
    done, seconds = run_script(tree, "core", PATH=str(tmp_path), PYTHON=str(other))
    check_one_line(done, seconds, re.escape(f"PYTHON={other} is not"))


def test_python3_is_taken_when_it_is_a_311(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "python3").symlink_to(sys.executable)
    done, _ = run_script(tree, "no such level", PATH=str(tmp_path))
    assert done.stderr.startswith("usage: make_env.py")


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_missing_venv_module_is_one_line(tree: Path, tmp_path: Path, module: str) -> None:
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / f"{module}.py").write_text("raise ImportError\n")
    done, seconds = run_script(
        tree, "core", PYTHON=sys.executable, PYTHONPATH=str(tmp_path / "shadow")
    )
    check_one_line(done, seconds, rf"no {module} module: install it .*python3\.11-venv")
    assert not (tree / ".venv.new").exists()


def test_missing_compiler_is_one_line_at_the_hear_level_only(tree: Path, tmp_path: Path) -> None:
    done, seconds = run_script(tree, "hear", PYTHON=sys.executable, PATH=str(tmp_path))
    check_one_line(done, seconds, r"C compiler is missing .*install one .*build-essential")


def test_missing_compiler_does_not_hinder_the_core_level(
    builder: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    builder.check_machine("core")
    with pytest.raises(builder.SetupError, match="C compiler is missing"):
        builder.check_machine("hear")


def test_compiler_under_another_name_is_found(
    builder: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no compiler here")
    monkeypatch.setenv("CC", "a-compiler-that-is-not-here")
    builder.check_compiler()
    assert os.environ["CC"] == shutil.which("cc")


def test_missing_headers_are_one_line(
    builder: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", sys.executable)  # anything that is there
    monkeypatch.setattr(builder.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(builder.SetupError, match=r"Python\.h is not in .*python3\.11-dev"):
        builder.check_compiler()


def test_broken_compiler_is_one_line(
    builder: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(builder.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("CC", "false -flag")
    with pytest.raises(builder.SetupError, match=r"C compiler \(false\) fails"):
        builder.check_compiler()


def test_other_machines_are_refused(builder: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder.platform, "machine", lambda: "aarch64")
    with pytest.raises(builder.SetupError, match="for Linux x86_64, and this machine is .*aarch64"):
        builder.check_machine("core")
