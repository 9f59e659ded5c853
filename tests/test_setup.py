"""What setup.py and constraints.txt list, the targets of make, continuous integration."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def load_builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_env", ROOT / "tools" / "make_env.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- setup.py and constraints.txt


def test_extras_are_the_documented_ones() -> None:
    listed = load_builder().read_requirements(ROOT)
    extras = {"downstream", "pretraining", "hear", "export", "ray", "dev"}
    assert set(listed) == extras | {"core", "without_dependencies"}


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    builder = load_builder()
    pins = builder.read_pins(ROOT)
    for group, lines in builder.read_requirements(ROOT).items():
        for line in lines:
            requirement = Requirement(line)
            name = builder.normalise(requirement.name)
            assert name in pins, f"{group}: {line} is not in constraints.txt"
            assert requirement.specifier.contains(pins[name]), f"{line}: pinned to {pins[name]}"
    build = {"setuptools", "wheel", "cython", "numpy"}  # of the sdists
    assert build <= set(pins) and pins["torch"] == "2.13.0"


def test_every_dependency_has_its_reason() -> None:
    text = (ROOT / "setup.py").read_text()
    lines = text.splitlines()
    strings = [
        node
        for statement in ast.parse(text).body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.List | ast.Dict)
        for items in ast.walk(statement.value)
        if isinstance(items, ast.List)
        for node in items.elts
    ]
    assert len(strings) > 40
    for node in strings:
        line = lines[node.lineno - 1]
        assert re.search(r'",  # \w.{8,}', line), f"no reason beside {line.strip()}"


def test_pretraining_has_its_default_logger_and_its_score() -> None:
    """TensorBoard's curves, and PSDS1 by sed_scores_eval, which comes without what it needs."""
    builder = load_builder()
    brought = {builder.normalise(line) for line in builder.read_requirements(ROOT)["pretraining"]}
    assert {"tensorboardx", "pandas", "sed-eval", "lazy-dataset"} <= brought


def test_version_is_read_without_importing() -> None:
    command = [sys.executable, "-W", "ignore", "setup.py", "--name", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    name, version = done.stdout.split()[-2:]
    assert name == "hear-pretrainedsed"
    assert f'__version__ = "{version}"' in (ROOT / "hear_pretrainedsed/__init__.py").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_import_needs_torch_numpy_and_soundfile_only() -> None:
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
import torch, numpy, soundfile
BLOCKED = set(sys.argv[1:]) - set(sys.modules)
sys.meta_path.insert(0, Missing())
import hear_pretrainedsed
print(hear_pretrainedsed.__version__)
"""
    listed = load_builder().read_requirements(ROOT)
    names = {
        Requirement(line).name.replace("-", "_") for lines in listed.values() for line in lines
    }
    names |= {"sklearn", "slugify", "tensorflow", "tensorflow_datasets", "requests", "tqdm"}
    blocked = sorted(names - {"torch", "numpy", "soundfile", "setuptools"})
    done = subprocess.run(
        [sys.executable, "-c", code, *blocked], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# ---- make and continuous integration


def run_make(*arguments: str) -> subprocess.CompletedProcess:
    """Run make as if from a shell, even when this suite was started by make."""
    ours = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "PYTEST_ARGS")
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_make_without_a_target_lists_the_targets() -> None:
    done = run_make("-s")
    for target in ("demo", "test", "quick", "lint", "bench", "hear", "clean"):
        assert re.search(rf"^make {target} ", done.stdout, re.MULTILINE)
        assert run_make("-n", target).returncode == 0


def test_make_passes_what_the_user_gives() -> None:
    dry = run_make("-n", "hear", "CHECKPOINTS=a.ssl b.weak", "TASKS=folder").stdout
    assert "tools/hear.py --checkpoints a.ssl b.weak --tasks folder" in dry
    dry = run_make("-n", "quick", "PYTEST_ARGS=-k name").stdout
    assert '-m "not slow and not hear" -k name' in dry


@pytest.fixture
def ci(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a copy of .ci/run with a stand-in for make that prints and exits as told."""
    script = tmp_path / "repo" / ".ci" / "run"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", script)
    (tmp_path / "shared" / "parity").mkdir(parents=True)

    def run(prints: str, status: int) -> subprocess.CompletedProcess:
        fake = tmp_path / "bin" / "make"
        fake.parent.mkdir(exist_ok=True)
        fake.write_text(f"#!/bin/sh\necho called make $*\necho '{prints}'\nexit {status}\n")
        fake.chmod(0o755)
        path = f"{fake.parent}:{os.environ['PATH']}"
        environment = {**os.environ, "CI": "true", "PATH": path}
        return subprocess.run(["bash", script], env=environment, capture_output=True, text=True)

    return run


def test_ci_passes_with_pytests_closing_line(
    ci: Callable[..., subprocess.CompletedProcess],
) -> None:
    closing = "===== 3 passed, 1 skipped in 0.12s ====="
    done = ci(closing, 0)
    assert done.returncode == 0
    assert "called make test" in done.stdout and done.stdout.splitlines()[-1] == closing


@pytest.mark.parametrize(
    ("prints", "status"),
    [
        ("=== 1 failed, 3 passed in 0.12s ===", 2),
        ("=== no tests ran in 0.01s ===", 2),
        ("=== no tests ran in 0.01s ===", 0),
        ("=== 4 skipped in 0.01s ===", 0),
        ("nothing at all", 0),
    ],
)
def test_ci_fails_without_a_passed_suite(
    ci: Callable[..., subprocess.CompletedProcess], prints: str, status: int
) -> None:
    assert ci(prints, status).returncode != 0


def test_ci_fails_without_reference_data(
    ci: Callable[..., subprocess.CompletedProcess], tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "shared")
    done = ci("=== 3 passed in 0.12s ===", 0)
    assert done.returncode == 1 and "../shared" in done.stderr
    assert "called make" not in done.stdout


# ---- what is committed


def test_nothing_committed_names_a_machine() -> None:
    git = ["git", "-c", "core.quotePath=false", "ls-files", "-z"]
    done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    # Split, so that this file does not name them either.
    hosts = ("pypi" + r"\.org", "python" + "hosted", r"download\.pytorch" + r"\.org")
    options = ("extra-" + "index-url", "find-" + "links", "trusted-" + "host")
    folders = r"(?<![\w.~}])/(?:root|home|work|opt|Users)/[\w.]"
    pattern = re.compile("|".join((*hosts, *options, folders)))
    found = []
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" in content[:4096]:
            continue
        text = content.decode("utf-8", errors="replace")
        found += [f"{name}: {match.group()}" for match in pattern.finditer(text)]
    assert not found
