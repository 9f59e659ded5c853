"""When `.venv` is built, built again or left alone; interruptions, and two builds at once."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

# Replaces the downloads: an environment of one file, made at once or slowly.
FAKE_INSTALL = """
import os, sys, time
sys.path.insert(0, {tools!r})
import make_env

def install(env, root):
    (env / "bin").mkdir(parents=True, exist_ok=True)
    if not (env / "bin" / "python").exists():
        os.symlink(sys.executable, env / "bin" / "python")
    (env / "pyvenv.cfg").write_text("home = x\\n")
    with open(root / "builds", "a") as log:
        log.write("build\\n")
    (root / "started").touch()
    {then}

make_env.install_core = make_env.install_hear = install
make_env.check_machine = lambda level: None
sys.exit(make_env.main())
"""


def start_fake_build(root: Path, then: str, level: str = "core") -> subprocess.Popen:
    code = FAKE_INSTALL.format(tools=str(root / "tools"), then=then)
    command = [sys.executable, "-c", code, level]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for 60 s"
        time.sleep(0.02)


def test_levels_build_on_each_other(
    builder: ModuleType, tree: Path, fake_installs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    builder.make(tree, "core")
    assert fake_installs == ["core"]
    assert re.search(r"environment: \d+ s \(downloads and installation", capsys.readouterr().out)
    builder.make(tree, "core")
    assert fake_installs == ["core"]
    assert capsys.readouterr().out == ""
    builder.make(tree, "hear")  # takes the first level over
    assert fake_installs == ["core", "hear"]
    assert (tree / ".venv" / "core").exists()
    builder.make(tree, "core")  # a higher level serves a lower one
    builder.make(tree, "hear")
    assert fake_installs == ["core", "hear"]
    assert sorted(p.name for p in tree.glob(".venv*")) == [".venv", ".venv.lock"]


def test_first_level_is_kept_when_the_second_fails(
    builder: ModuleType, tree: Path, fake_installs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(env: Path, root: Path) -> None:
        raise builder.SetupError("no network")

    with monkeypatch.context() as patched:
        patched.setattr(builder, "install_hear", fail)
        with pytest.raises(builder.SetupError, match="no network"):
            builder.make(tree, "hear")
    assert builder.is_ready(tree, "core")
    builder.make(tree, "hear")
    assert fake_installs == ["core", "hear"]


def change_pin(root: Path) -> None:
    path = root / "constraints.txt"
    path.write_text(path.read_text().replace("rich==", "rich==9"))


def change_setup(root: Path) -> None:
    with open(root / "setup.py", "a") as file:
        file.write("# changed\n")


def change_builder(root: Path) -> None:
    with open(root / "tools" / "make_env.py", "a") as file:
        file.write("# changed\n")


def change_version(root: Path) -> None:
    (root / "hear_pretrainedsed" / "__init__.py").write_text('__version__ = "0.2.0"\n')


def lose_interpreter(root: Path) -> None:
    (root / ".venv" / "bin" / "python").unlink()
    (root / ".venv" / "bin" / "python").symlink_to("python-that-was-uninstalled")


def tear_stamp(root: Path) -> None:
    (root / ".venv" / "make_env.json").write_text('{"level": "co')


@pytest.mark.parametrize(
    "change",
    [change_pin, change_setup, change_builder, change_version, lose_interpreter, tear_stamp],
)
def test_a_change_builds_again(
    builder: ModuleType, tree: Path, fake_installs: list[str], change: Callable[[Path], None]
) -> None:
    builder.make(tree, "core")
    change(tree)
    assert not builder.is_ready(tree, "core")
    builder.make(tree, "core")
    assert fake_installs == ["core", "core"]
    assert builder.is_ready(tree, "core")


def test_other_edits_of_the_package_do_not_build_again(
    builder: ModuleType, tree: Path, fake_installs: list[str]
) -> None:
    builder.make(tree, "core")
    with open(tree / "hear_pretrainedsed" / "__init__.py", "a") as file:
        file.write("x = 1\n")
    assert builder.is_ready(tree, "core")


def test_another_python_or_place_builds_again(
    builder: ModuleType, tree: Path, fake_installs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    builder.make(tree, "core")
    moved = tree.rename(tree.with_name("moved"))
    assert not builder.is_ready(moved, "core")  # its scripts name the old place
    moved.rename(tree)
    assert builder.is_ready(tree, "core")
    monkeypatch.setattr(builder.sys, "version", "3.11.99")
    assert not builder.is_ready(tree, "core")


def test_ready_environment_costs_nothing(tree: Path) -> None:
    assert start_fake_build(tree, "pass", "hear").wait() == 0
    builds = (tree / "builds").read_text()
    started = time.monotonic()
    again = start_fake_build(tree, "pass", "hear")
    output, _ = again.communicate()
    assert again.returncode == 0 and output == ""
    assert time.monotonic() - started < 2
    assert (tree / "builds").read_text() == builds


# ---- interruption, and two at once


def test_killed_build_leaves_the_old_environment_and_is_redone(tree: Path) -> None:
    assert start_fake_build(tree, "(env / 'old').touch()").wait() == 0
    change_pin(tree)
    (tree / "started").unlink()
    killed = start_fake_build(tree, "time.sleep(60)")
    wait_for((tree / "started").exists)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert (tree / ".venv" / "old").exists()  # usable as before
    assert (tree / ".venv.new").exists()
    assert start_fake_build(tree, "(env / 'new').touch()").wait() == 0
    assert (tree / ".venv" / "new").exists() and not (tree / ".venv" / "old").exists()
    assert not (tree / ".venv.new").exists()


def test_killed_build_takes_its_pip_along(tree: Path) -> None:
    step = "make_env.run(['sh', '-c', 'echo $$ > pid; sleep 60'], 'x', root, 'core')"
    killed = start_fake_build(tree, step)
    pid = tree / "pid"
    wait_for(lambda: pid.exists() and pid.read_text().strip().isdigit())
    killed.send_signal(signal.SIGKILL)
    killed.wait()

    def gone() -> bool:
        try:
            state = Path("/proc", pid.read_text().strip(), "stat").read_text().rsplit(")")[-1]
        except OSError:
            return True
        return state.split()[0] in "ZX"

    wait_for(gone)


def test_two_builds_at_once_build_once(tree: Path) -> None:
    slow = "while not (root / 'go').exists(): time.sleep(0.02)"
    first = start_fake_build(tree, slow)
    wait_for((tree / "started").exists)
    second = start_fake_build(tree, slow)
    assert "another build is running here" in second.stdout.readline()
    (tree / "go").touch()
    second.communicate()
    assert first.wait() == 0 and second.returncode == 0
    assert (tree / "builds").read_text() == "build\n"


@pytest.mark.parametrize("supported", [True, False])
def test_moving_into_place(
    builder: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    if not supported:
        monkeypatch.setattr(builder, "exchange", lambda one, other: False)
    for name in (".venv", ".venv.new"):
        (tree / name).mkdir()
        (tree / name / "make_env.json").write_text(json.dumps({"from": name}))
    builder.move_into_place(tree)
    assert json.loads((tree / ".venv" / "make_env.json").read_text()) == {"from": ".venv.new"}
    assert [p.name for p in tree.glob(".venv*")] == [".venv"]


def test_environment_of_the_user_is_kept(
    builder: ModuleType, tree: Path, fake_installs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / ".venv").mkdir()
    (tree / ".venv" / "theirs").touch()
    builder.make(tree, "core")
    (kept,) = tree.glob(".venv.found-*")
    assert (kept / "theirs").exists() and kept.name in capsys.readouterr().out
    assert builder.is_ready(tree, "core")


def test_interruption_between_the_renames_is_undone(builder: ModuleType, tree: Path) -> None:
    (tree / ".venv.old").mkdir()
    (tree / ".venv.old" / "mine").touch()
    builder.recover(tree)
    assert (tree / ".venv" / "mine").exists() and not (tree / ".venv.old").exists()
