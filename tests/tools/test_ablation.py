"""The ablation: what it varies, how it scores and what it writes."""

from __future__ import annotations

import importlib
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from downstream.protocols.base import Settings
from downstream.protocols.best import RECIPE, Kit, Recipe
from tests.downstream.probe_task import made_up_task
from tests.downstream.test_best import CHECKPOINT, source

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
tool = importlib.import_module("ablation")
SMALL = replace(RECIPE, steps_from_to=(20, 20), n_checks=2, lrs=(1e-2,))


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    torch.set_num_threads(1)


def changed(one: Recipe, two: Recipe) -> set[str]:
    return {f.name for f in fields(Recipe) if getattr(one, f.name) != getattr(two, f.name)}


def test_each_variant_differs_in_one_part_from_what_its_gain_is_counted_from() -> None:
    found = tool.variants(SMALL)
    by_name = {variant.name: variant for variant in found}
    assert len(by_name) == len(found)
    parts = [changed(v.recipe, by_name[v.beside].recipe) for v in found[1:]]
    assert all(len(part) == 1 for part in parts)
    varied = {"layer_sum", "n_dropped", "n_prototypes", "windowing", "concat_mel", "calibrated"}
    assert set.union(*parts) == varied | {"change_points"}
    assert {v.recipe.steps_from_to for v in found} == {(20, 20)}


def test_the_recipe_is_one_of_the_variants() -> None:
    assert RECIPE in [variant.recipe for variant in tool.variants(RECIPE)]


def test_each_half_is_decoded_by_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = made_up_task()
    kit = Kit.of(task, source(task, tmp_path), replace(SMALL, layer_sum=False), Settings(), 0)
    clips = task.clips("valid")
    scores = {clip.file: np.zeros((500, 3), np.float32) for clip in clips}
    seen: list[tuple[list[str], list[str]]] = []

    def decoding(self: Kit, known: list, on_known: dict) -> list[str]:
        assert [clip.file for clip in known] == list(on_known)
        return list(on_known)

    def decode(self: Kit, on_mine: dict, chosen: list[str]) -> tuple[dict, dict]:
        seen.append((list(on_mine), chosen))
        return on_mine, {file: [] for file in on_mine}

    monkeypatch.setattr(Kit, "decoding", decoding)
    monkeypatch.setattr(Kit, "decode", decode)
    tool.crossed(kit, clips, scores)
    files = [clip.file for clip in clips]
    assert seen == [(files[::2], files[1::2]), (files[1::2], files[::2])]


def test_table_has_means_over_seeds_and_gains() -> None:
    variants = tool.variants(SMALL)[:2]
    names = [variant.name for variant in variants]
    done = {
        (names[0], "a", "t", 0): {"score": 0.1, "frame_map": 0.5},
        (names[0], "a", "t", 1): {"score": 0.3, "frame_map": 0.5},
        (names[1], "a", "t", 0): {"score": 0.25, "frame_map": 0.4},
        (names[0], "b", "t", 0): {"score": 0.4, "frame_map": 0.5},
    }
    lines = tool.table(variants, done, "A note.").splitlines()
    assert lines[0] == tool.MARKS[0] and lines[-1] == tool.MARKS[1] and "A note." in lines
    assert f"| {names[0]} | 20.0 (50.0) | 40.0 (50.0) |  |" in lines
    assert f"| {names[1]} | 25.0 (40.0) | - | +5.0 (-10.0) |" in lines


def test_the_page_has_room_for_the_table() -> None:
    text = tool.PAGE.read_text(encoding="utf-8")
    assert text.count(tool.MARKS[0]) == text.count(tool.MARKS[1]) == 1
    for variant in tool.variants(RECIPE):
        assert f"| {variant.name} |" in text


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no table")
    with pytest.raises(ValueError, match="no <!-- ablation"):
        tool.write_page(page, "text")


@pytest.mark.slow
def test_runs_from_the_command_line_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = made_up_task(n_clips=2)
    monkeypatch.setattr(tool, "open_task", lambda folder: task)
    monkeypatch.setattr(tool, "find_weights", lambda name: None)
    frames = source(task, tmp_path / "frames")
    monkeypatch.setattr(tool, "FrameSource", lambda *_: frames)
    monkeypatch.setattr(tool, "RECIPE", SMALL)
    whole = tool.variants
    monkeypatch.setattr(tool, "variants", lambda base: whole(base)[:3])
    page = tmp_path / "page.md"
    page.write_text(f"before {tool.MARKS[0]} OLD {tool.MARKS[1]} after")
    given = ["--checkpoints", CHECKPOINT, "--tasks", "x", "--results", str(tmp_path), "--seeds"]
    given += ["1", "--page", str(page)]
    tool.main(given)
    first = page.read_text()
    assert first.startswith("before ") and first.endswith(" after") and "OLD" not in first
    assert len(capsys.readouterr().out.splitlines()) == 3
    tool.main(given)
    assert page.read_text() == first and capsys.readouterr().out == ""
