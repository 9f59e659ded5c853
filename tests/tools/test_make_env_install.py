"""The steps of the installation, and the scripts of an environment that is moved."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.mark.parametrize("kind", ["plain", "by sh", "plain with arguments", "already final"])
@pytest.mark.parametrize("folder", ["plain", "with a space", "long" * 40])
def test_scripts_run_after_the_move(
    builder: ModuleType, tmp_path: Path, kind: str, folder: str
) -> None:
    root = tmp_path / folder
    new, final = root / ".venv.new", root / ".venv"
    (new / "bin").mkdir(parents=True)
    (new / "bin" / "python").symlink_to(sys.executable)
    (new / "bin" / "program").write_bytes(b"\x7fELF\0" + os.fsencode(new))
    (new / "pyvenv.cfg").write_text(f"command = python -m venv {new}\n")
    head = {
        "plain": f"#!{new}/bin/python\n",
        "by sh": f"#!/bin/sh\n'''exec' \"{new}/bin/python\" \"$0\" \"$@\"\n' '''\n",
        "plain with arguments": f"#!{new}/bin/python -s\n",
        "already final": builder.shebang(final / "bin" / "python").decode(),
    }[kind]
    script = new / "bin" / "tool"
    script.write_text(head + f"import sys\nprint(sys.argv[1:], {str(new)!r})\n")
    script.chmod(0o755)
    builder.relocate_scripts(new, final)
    new.rename(final)
    output = subprocess.run([final / "bin" / "tool", "a b"], capture_output=True, text=True)
    assert output.stdout == f"{['a b']} {final}\n"
    assert (final / "bin" / "program").read_bytes().endswith(b".venv.new")
    assert ".venv.new" not in (final / "pyvenv.cfg").read_text()


def test_editing_a_linked_copy_leaves_the_first_alone(builder: ModuleType, tmp_path: Path) -> None:
    source, target = tmp_path / ".venv", tmp_path / ".venv.new"
    (source / "bin").mkdir(parents=True)
    (source / "lib").mkdir()
    (source / "bin" / "tool").write_text("old")
    (source / "lib" / "big").write_text("same")
    (source / "bin" / "python").symlink_to(sys.executable)
    builder.link_copy(source, target)
    (target / "bin" / "tool").write_text("new")
    assert (source / "bin" / "tool").read_text() == "old"
    assert (source / "lib" / "big").samefile(target / "lib" / "big")
    assert (target / "bin" / "python").is_symlink()


# ---- pip


def test_pip_settings_of_the_user_stay(
    builder: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CACHE_DIR", "theirs")
    monkeypatch.setenv("PIP_CONSTRAINT", "their.txt")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    environment = builder.child_environment(tree, "hear")
    url = (tree / "constraints.txt").as_uri()
    assert "%20" in url  # pip splits this variable at spaces
    assert environment["PIP_CONSTRAINT"].split() == [url, "their.txt"]
    assert environment["PIP_BUILD_CONSTRAINT"] == url
    assert environment["PIP_CACHE_DIR"] == "theirs"
    assert "PYTHONPATH" not in environment
    assert builder.child_environment(tree, "core")["PIP_CONSTRAINT"] == "their.txt"


def fake_python(env: Path, body: str) -> None:
    (env / "bin").mkdir(parents=True)
    (env / "bin" / "python").write_text(f"#!/bin/sh\n{body}\n")
    (env / "bin" / "python").chmod(0o755)


@pytest.mark.parametrize(("version", "accepted"), [("{}", 1), ("{}+cpu", 1), ("9.9", 0), ("", 0)])
def test_torch_is_checked_after_each_step(
    builder: ModuleType, tree: Path, version: str, accepted: int
) -> None:
    version = version.format(builder.read_pins(tree)["torch"])
    fake_python(tree / "env", f'[ "$1" = -m ] && echo "$@" >> log || echo "{version}"')
    if accepted:
        builder.pip_install(tree / "env", tree, "core", "a thing", ["thing"])
        assert "pip install" in (tree / "log").read_text()
    else:
        with pytest.raises(builder.SetupError, match="after installing a thing torch is"):
            builder.pip_install(tree / "env", tree, "core", "a thing", ["thing"])


def test_failed_pip_says_what_to_do(builder: ModuleType, tree: Path) -> None:
    fake_python(tree / "env", "exit 3")
    with pytest.raises(builder.SetupError, match=r"a thing failed \(exit 3.*same command again"):
        builder.pip_install(tree / "env", tree, "core", "a thing", ["thing"])


def recorded_pip(
    builder: ModuleType, monkeypatch: pytest.MonkeyPatch, root: Path
) -> list[list[str]]:
    steps: list[list[str]] = []
    monkeypatch.setattr(builder, "run", lambda *arguments: None)
    monkeypatch.setattr(builder, "drop_torchaudio_extension", lambda env: None)
    monkeypatch.setattr(
        builder, "pip_install", lambda env, root, level, what, arguments: steps.append(arguments)
    )
    builder.install_core(root / "env", root)
    builder.install_hear(root / "env", root)
    return steps


def test_steps_of_the_installation(
    builder: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch, core, project, hear, alone = recorded_pip(builder, monkeypatch, tree)
    assert torch == ["--only-binary", ":all:", "torch", "setuptools"]
    assert core[:2] == ["--only-binary", ":all:"]  # no compiler at this level
    assert {"torch", "soundfile", "pytest", "hypothesis", "ruff"} <= set(core)
    assert not any("tensorflow" in line for line in core)
    assert {"--no-deps", "--no-build-isolation", "--editable"} <= set(project)
    assert {"tensorflow-cpu", "onnx", "onnxscript", "onnxruntime"} <= set(hear)
    assert "xares" not in hear
    assert alone[0] == "--no-deps" and {"heareval", "hearvalidator", "sed_scores_eval"} < set(alone)


@pytest.mark.parametrize(("cuda", "left"), [("None", ["other.so"]), ("13.0", None)])
def test_torchaudio_extension_goes_next_to_a_cpu_torch_only(
    builder: ModuleType, tmp_path: Path, cuda: str, left: list[str] | None
) -> None:
    env = tmp_path / ".venv.new"
    fake_python(env, f"echo {cuda}")
    folder = env / "lib" / "python3.11" / "site-packages" / "torchaudio" / "lib"
    folder.mkdir(parents=True)
    names = ["_torchaudio.abi3.so", "_torchaudio.so", "other.so"]
    for name in names:
        (folder / name).touch()
    builder.drop_torchaudio_extension(env)
    assert sorted(p.name for p in folder.iterdir()) == (left or names)
