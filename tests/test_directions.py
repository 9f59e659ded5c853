"""Imports point one way: downstream and pretraining stand on hear_pretrainedsed, not on each other.

Pre-training validates with the metrics of downstream, and takes nothing else from there.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "hear_pretrainedsed": ("hear_pretrainedsed",),
    "downstream": ("downstream", "hear_pretrainedsed"),
    "pretraining": ("pretraining", "hear_pretrainedsed", "downstream.metrics"),
}


def imported(path: Path) -> set[str]:
    """Modules of the project that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name for name in names if name.split(".")[0] in ALLOWED}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_what_it_may(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in imported(path)
        if not any(f"{name}.".startswith(f"{allowed}.") for allowed in ALLOWED[package])
    }
    assert not wrong
