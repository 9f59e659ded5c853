"""Makes or renews the project's `.venv`: `python3.11 tools/make_env.py core` or `... hear`.

Two levels in one environment: `core` (wheels only: the library and the test runner) and `hear`
(TensorFlow, the stock HEAR tools and the test oracles on top; needs a C compiler). It is built
aside as `.venv.new` and swapped in when complete, so that an interruption never leaves half of
one, and made again when a pin, setup.py, this file or the Python changes. Standard library only.
"""

import ast
import ctypes
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEVELS = ("core", "hear")
CORE_TOOLS = ("pytest", "pytest-xdist", "hypothesis", "ruff")  # the small part of `dev`
HEAR_EXTRAS = ("downstream", "pretraining", "hear", "export", "ray", "dev")
STAMP = "make_env.json"
PYTHON_NEEDED = (3, 11)
LIBC = ctypes.CDLL(None, use_errno=True)


class SetupError(Exception):
    """Something the user has to put right, in one line."""


def normalise(requirement: str) -> str:
    """The name in a requirement, as package indexes compare names: `dcase_util>=1` → dcase-util."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", name.group()).lower() if name else ""


def read_pins(root: Path) -> dict[str, str]:
    """Normalised name → version, from constraints.txt."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line.strip() and not line.startswith("#"))
    return {normalise(name): version.strip() for name, version in pairs}


def read_requirements(root: Path) -> dict[str, list[str]]:
    """What setup.py lists: `core`, `without_dependencies` and each extra by its name."""
    tree = ast.parse((root / "setup.py").read_text(encoding="utf-8"))
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.List | ast.Dict)
    }
    return {
        "core": values["CORE"],
        "without_dependencies": values["WITHOUT_DEPENDENCIES"],
        **values["EXTRAS"],
    }


def environment_key(root: Path) -> str:
    """Hash of all that the environment is made from; its path counts, since scripts hold it."""
    digest = hashlib.sha256()
    for part in (sys.version, sys.base_prefix, str(root)):
        digest.update(part.encode() + b"\0")
    for name in ("constraints.txt", "setup.py", "tools/make_env.py"):
        digest.update((root / name).read_bytes() + b"\0")
    package = root / "hear_pretrainedsed" / "__init__.py"
    if package.is_file():  # the version is in the installed metadata
        version = re.search(rb"^__version__ = .*$", package.read_bytes(), re.MULTILINE)
        digest.update(version.group() if version else b"")
    return digest.hexdigest()


def is_ready(root: Path, level: str) -> bool:
    """Whether `.venv` was completed from the present inputs and has the level or a higher one."""
    env = root / ".venv"
    try:
        stamp = json.loads((env / STAMP).read_text(encoding="utf-8"))
        high_enough = LEVELS.index(stamp["level"]) >= LEVELS.index(level)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    works = os.access(env / "bin" / "python", os.X_OK)  # false once its interpreter is uninstalled
    return works and high_enough and stamp.get("key") == environment_key(root)


# ---- what the machine must have, checked before anything is downloaded


def check_machine(level: str) -> None:
    """Raise SetupError, naming what to install, unless the level can be made here."""
    machine = f"{platform.system()} {platform.machine()}"
    if machine != "Linux x86_64":
        raise SetupError(f"this set-up is for Linux x86_64, and this machine is {machine}")
    if sys.version_info[:2] != PYTHON_NEEDED:
        raise SetupError(f"Python 3.11 is needed, and this is {platform.python_version()}")
    for module in ("venv", "ensurepip", "ssl"):
        run = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True)
        if run.returncode:
            raise SetupError(
                f"this Python has no {module} module: install it (Debian, Ubuntu: apt-get install "
                f"python3.11-venv), or give another Python 3.11 as PYTHON=..."
            )
    if level == "hear":
        check_compiler()


def check_compiler() -> None:
    """Compile three lines against Python.h: finds a missing compiler, C library or headers."""
    configured = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    command = shlex.split(configured)
    if shutil.which(command[0]) is None:
        found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        if found is None:
            raise SetupError(
                "a C compiler is missing (the stock HEAR tools are built with it): install one "
                "(Debian, Ubuntu: apt-get install build-essential)"
            )
        command = [found]
        os.environ["CC"] = found  # the one this Python was built with is not here
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").is_file():
        raise SetupError(
            f"Python.h is not in {include}: install Python's headers "
            f"(Debian, Ubuntu: apt-get install python3.11-dev)"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <Python.h>\n#include <math.h>\nint probe(void) {return 0;}\n")
        flags = ["-shared", "-fPIC", f"-I{include}", str(source), "-o", f"{folder}/probe.so"]
        if subprocess.run([*command, *flags], capture_output=True).returncode:
            raise SetupError(
                f"the C compiler ({command[0]}) fails on a three-line program: install the C "
                f"library's headers (Debian, Ubuntu: apt-get install build-essential)"
            )


# ---- building


def child_environment(root: Path, level: str) -> dict[str, str]:
    """The user's own environment, pip settings included, less what points at other packages."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {k: v for k, v in os.environ.items() if k not in dropped}
    environment.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    environment["PIP_USER"] = "0"  # a `user = true` of theirs has no meaning in an environment
    if level == "hear":
        # Reaches the isolated builds of sdists. pip from 25.3 on reads the second, older ones the
        # first; both split at spaces, hence the URL, in which a space is %20.
        ours = (root / "constraints.txt").as_uri()
        for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"):
            environment[name] = f"{ours} {environment.get(name, '')}".strip()
    return environment


def die_with_parent() -> None:
    """Runs in the child: a killed set-up takes its pip along (PR_SET_PDEATHSIG)."""
    LIBC.prctl(1, signal.SIGKILL)


def run(command: list[str], what: str, root: Path, level: str) -> None:
    """Run a step of the build; raise SetupError when it fails."""
    environment = child_environment(root, level)
    done = subprocess.run(
        command, env=environment, cwd=root, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent
    )
    if done.returncode:
        raise SetupError(
            f"{what} failed (exit {done.returncode}, see above); .venv is as it was: "
            f"put it right and run the same command again"
        )


def pip_install(env: Path, root: Path, level: str, what: str, arguments: list[str]) -> None:
    """One pip step, after which torch must still be the pinned one."""
    print(f"environment: installing {what}", flush=True)
    quiet = [] if sys.stdout.isatty() else ["-qq"]
    python = str(env / "bin" / "python")
    constraints = ["-c", str(root / "constraints.txt")]
    command = [python, "-m", "pip", "install", *quiet, *constraints, *arguments]
    run(command, f"installing {what}", root, level)
    code = "import importlib.metadata as m; print(m.version('torch'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()
    wanted = read_pins(root)["torch"]
    if found.split("+")[0] != wanted:
        raise SetupError(f"after installing {what} torch is {found or 'gone'}, not {wanted}")


def install_core(env: Path, root: Path) -> None:
    """Create the environment and install what the library and the test runner need: wheels only."""
    create = [sys.executable, "-m", "venv", "--prompt", ".venv", str(env)]
    run(create, "making a virtual environment", root, "core")
    wheels = ["--only-binary", ":all:"]
    pip_install(env, root, "core", "torch", [*wheels, "torch", "setuptools"])
    core = [*read_requirements(root)["core"], *CORE_TOOLS]
    pip_install(env, root, "core", "the core level", [*wheels, *core])
    this = ["--no-deps", "--no-build-isolation", "--editable", "."]
    pip_install(env, root, "core", "this project", this)


def install_hear(env: Path, root: Path) -> None:
    """Add TensorFlow, the stock HEAR tools and the test oracles; some are sdists."""
    listed = read_requirements(root)
    wanted = sorted({line for extra in HEAR_EXTRAS for line in listed[extra]})
    pip_install(env, root, "hear", "the HEAR level", wanted)
    alone = ["--no-deps", *listed["without_dependencies"]]
    pip_install(env, root, "hear", "the stock HEAR tools", alone)
    drop_torchaudio_extension(env)


def drop_torchaudio_extension(env: Path) -> None:
    """Put torchaudio into its own "no extension" state next to a CPU torch.

    Its wheels link CUDA libraries, which a CPU torch does not bring: importing it would fail.
    """
    command = [str(env / "bin" / "python"), "-c", "import torch; print(torch.version.cuda)"]
    if subprocess.run(command, capture_output=True, text=True).stdout.strip() != "None":
        return
    for library in env.glob("lib/python3.*/site-packages/torchaudio/lib/_torchaudio*.so"):
        library.unlink()


def link_copy(source: Path, target: Path) -> None:
    """Copy an environment by hard links, in a second; scripts are copied, for they get edited."""

    def link(old: str, new: str) -> None:
        if Path(old).parent == source / "bin":
            shutil.copy2(old, new)
            return
        try:
            os.link(old, new)
        except OSError:  # a file system without hard links
            shutil.copy2(old, new)

    shutil.copytree(source, target, symlinks=True, copy_function=link)


def build(root: Path, level: str) -> None:
    """Make one level aside, then put it in the place of what is there."""
    new = root / ".venv.new"
    key = environment_key(root)  # first: an edit made meanwhile is for the next build
    remove(new)
    if level == "hear" and is_ready(root, "core"):
        link_copy(root / ".venv", new)
    else:
        install_core(new, root)
    if level == "hear":
        install_hear(new, root)
    relocate_scripts(new, root / ".venv")
    stamp = {"level": level, "key": key}
    (new / STAMP).write_text(json.dumps(stamp) + "\n", encoding="utf-8")
    move_into_place(root)


# ---- moving


def shebang(python: Path) -> bytes:
    """The first line or lines of a script; the kernel takes neither a space nor a long path."""
    path = os.fsencode(python)
    if b" " not in path and len(path) < 125:
        return b"#!" + path + b"\n"
    # sh runs the second line; to Python it is a string
    return b"#!/bin/sh\n'''exec' \"" + path + b'" "$0" "$@"\n\' \'\'\'\n'


SHEBANG = re.compile(
    rb"#!(?:/bin/sh\n'''exec' \"?)?[^\n\"]*/\.venv(?:\.new)?/bin/(python[0-9.]*)"
    rb"(?:\"? \"\$0\" \"\$@\"\n' ''')?[^\n]*\n"
)


def relocate_scripts(env: Path, final: Path) -> None:
    """Make the scripts in `env` name `final`, where it is about to be moved."""
    for path in [*sorted((env / "bin").iterdir()), env / "pyvenv.cfg"]:
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" in content[:1024]:
            continue  # a program, not a script
        changed = content
        head = SHEBANG.match(content)
        if head:
            python = final / "bin" / os.fsdecode(head.group(1))
            changed = shebang(python) + content[head.end() :]
        changed = changed.replace(os.fsencode(env), os.fsencode(final))
        if changed != content:
            aside = path.with_name(path.name + ".part")
            aside.write_bytes(changed)
            shutil.copymode(path, aside)
            os.replace(aside, path)


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step (renameat2, RENAME_EXCHANGE); False where that cannot be."""
    here = -100  # AT_FDCWD
    try:
        return LIBC.renameat2(here, os.fsencode(one), here, os.fsencode(other), 2) == 0
    except AttributeError:  # a C library from before 2018
        return False


def move_into_place(root: Path) -> None:
    """`.venv.new` becomes `.venv`; an environment that is not ours is kept under another name."""
    new, final, old = root / ".venv.new", root / ".venv", root / ".venv.old"
    if not os.path.lexists(final):
        os.rename(new, final)
        return
    ours = (final / STAMP).is_file()
    if not exchange(new, final):
        os.rename(final, old)
        os.rename(new, final)
        os.rename(old, new)
    if ours:
        remove(new)
        return
    kept = root / f".venv.found-{time.time_ns()}"
    os.rename(new, kept)
    print(f"environment: the .venv that was there is not ours; it is kept as {kept.name}")


def remove(path: Path) -> None:
    """Delete a folder or a link, if it is there."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def recover(root: Path) -> None:
    """Undo an interruption between the renames of `move_into_place`."""
    old, final = root / ".venv.old", root / ".venv"
    if os.path.lexists(old) and not os.path.lexists(final):
        os.rename(old, final)
    remove(old)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """One build at a time; the kernel gives the lock back however the process ends."""
    with open(root / ".venv.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("environment: another build is running here; waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def make(root: Path, level: str) -> None:
    """Have `.venv` at the level: at once when it is there, else check the machine and build."""
    if is_ready(root, level):
        return
    check_machine(level)
    with locked(root):
        recover(root)
        if is_ready(root, level):
            return
        started = time.monotonic()
        if level == "hear" and not (root / ".venv").exists():
            build(root, "core")  # kept if the second level is interrupted
        build(root, level)
        seconds = time.monotonic() - started
        print(f"environment: {seconds:.0f} s (downloads and installation, level {level})")


def main() -> int:
    """Exit status: 0 made or there, 1 with one line of what to do, 2 wrong usage."""
    if len(sys.argv) != 2 or sys.argv[1] not in LEVELS:
        print("usage: make_env.py core|hear", file=sys.stderr)
        return 2
    try:
        make(ROOT, sys.argv[1])
    except SetupError as error:
        print(f"environment: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("environment: interrupted; run the same command again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
