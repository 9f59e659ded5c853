"""README.md says what is true: table, first example, options, commands."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from hear_pretrainedsed.options import Options
from hear_pretrainedsed.registry import CHECKPOINTS
from tools.readme import README, with_table

TEXT = README.read_text("utf-8")


def test_the_checkpoint_table_is_the_registrys() -> None:
    assert with_table(TEXT) == TEXT, "run: .venv/bin/python tools/readme.py"
    networks = {name.split(".")[0] for name in CHECKPOINTS}
    assert networks == set(re.findall(r"^\| `(\w+)\.<stage>", TEXT, flags=re.MULTILINE))


def test_the_first_example_prints_its_shape(
    own_cache: Path, release_file: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    example = re.search(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)[1]
    checkpoint = re.search(r'checkpoint="(.*?)"', example)[1]
    file = release_file(checkpoint)
    (own_cache / file.name).write_bytes(file.read_bytes())
    assert len([line for line in example.splitlines() if line.strip()]) <= 6
    with pytest.warns(UserWarning, match="sha256"):  # the first load says what it recorded
        exec(example, {})
    assert capsys.readouterr().out.strip() == re.search(r"print.*# (.*)", example)[1]


def test_every_option_is_in_the_table() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \| [^|]+\|[^|]+\|$", TEXT, flags=re.MULTILINE))
    assert rows >= {f.name for f in fields(Options)} - {"vocabulary"}


def test_named_files_exist() -> None:
    for name in re.findall(r"`((?:tests|tools|hear_pretrainedsed)/[\w/]+\.?\w*)`", TEXT):
        assert (README.parent / name).exists(), name


def test_named_modules_and_make_targets_exist() -> None:
    modules = {c.module for c in CHECKPOINTS.values()}
    for module in re.findall(r"hear_pretrainedsed\.([a-z0-9_]+_(?:ssl|weak|strong)\w*)", TEXT):
        assert module in modules, module
    makefile = (README.parent / "Makefile").read_text("utf-8")
    for target in re.findall(r"(?:^|`)make (\w+)", TEXT, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
