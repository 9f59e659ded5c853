"""`hear-pretrainedsed compare`: the paired bootstrap of two checkpoints from stored cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from downstream.cells import Cell
from downstream.compare import pair, pairs_table, select
from downstream.intervals import compare, holm
from hear_pretrainedsed import cli
from tests.downstream.example_results import example_cell, grid, write

A, B = "beats.strong", "m2d.strong"


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return grid((A, B, "atst_f.ssl"), ("office_like", "domestic_like"), ("hear", "best"), seeds=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cells: list[Cell]) -> Path:
    return write(tmp_path_factory.mktemp("compared") / "r", cells)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in arguments])
    return stop.value.code


def test_one_seed_each_is_compared_as_intervals_do() -> None:
    one, other = example_cell(A), example_cell(B)
    (found,) = pair([one, other], A, B, None)
    a, b = (cell.metrics[cell.main_metric] for cell in (one, other))
    draws = (np.float64(a.draws), np.float64(b.draws))
    wanted = compare(a.value, draws[0], b.value, draws[1], one.sampling)
    assert found.comparison == wanted and found.p == wanted.p
    (turned,) = pair([one, other], B, A, None)
    assert turned.comparison.difference == -found.comparison.difference
    assert turned.p == pytest.approx(found.p)
    ends = turned.comparison.interval
    assert (-ends[1], -ends[0]) == pytest.approx(found.comparison.interval, abs=0.02)


def test_every_pair_and_holm_over_them(cells: list[Cell]) -> None:
    chosen = select(cells, A, B, {})
    assert {cell.checkpoint for cell in chosen} == {A, B}
    pairs = pair(chosen, A, B, None)
    assert len(pairs) == 2 * 4  # tasks x (hear probe and knn, best probe and finetune)
    for one in pairs:
        a, b = one.first, one.second
        assert (a.checkpoint, b.checkpoint) == (A, B)
        assert (a.task, a.protocol, a.mode) == (b.task, b.protocol, b.mode)
        assert one.comparison.difference == pytest.approx(a.value - b.value)
        assert one.comparison.interval[0] < one.comparison.difference < one.comparison.interval[1]
    assert [one.p for one in pairs] == holm([one.comparison.p for one in pairs])


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", A, B, "--results", folder, "--task", "office_like", "--protocol", "hear"]
    assert run(*words, "--mode", "probe") == 0
    shown = capsys.readouterr().out
    assert f"A: {A}, B: {B}" in shown and "office_like, hear, probe" in shown
    assert "domestic_like" not in shown and "knn" not in shown and "Holm" not in shown
    assert "Paired bootstrap over 14 scenes and seeds." in shown
    assert run(*words, "--metric", "segment_1s_er") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "less is better" in shown and "Holm's correction over 2 lines" in shown
    assert "office_like, hear, knn" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([A, "m2d.strnog"], "unknown checkpoint 'm2d.strnog'; did you mean 'm2d.strong'?"),
        ([A, A], "both checkpoints are 'beats.strong'"),
        ([A, B, "--task", "ofice_like"], "unknown task 'ofice_like'; did you mean 'office_like'?"),
        ([A, B, "--task", "office_like,x"], "unknown task 'x'"),
        ([A, B, "--protocol", "papr"], "unknown protocol 'papr'"),
        ([A, B, "--mode", "prob"], "unknown mode 'prob'; did you mean 'probe'?"),
        ([A, B, "--mode", "knn", "--protocol", "best"], f"no cell of {A} with protocol best, mode"),
        ([A, B, "--metric", "psds3"], "unknown metric 'psds3'; did you mean 'psds"),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run("compare", *words, "--results", folder) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line


def test_what_may_not_be_compared_is_refused() -> None:
    a = example_cell(A)
    for other, message in (
        (example_cell(B, version="0.0.9"), "differ in version: 0.1.0 and 0.0.9"),
        (example_cell(B, task_digest="ab" * 32), "differ in task_digest: .* and abababab"),
        (example_cell(B, config={"grid": "fast"}), "other settings: grid default and fast"),
        (example_cell(B, mode="knn"), "no task, protocol and mode in common"),
        (example_cell(B, task="piano_like"), "no task, protocol and mode in common"),
    ):
        with pytest.raises(ValueError, match=message):
            pair([a, other], A, B, None)
    facts = (("event_onset_200ms_fms",), 20, "scene", 3)
    with pytest.raises(ValueError, match="not measured on the same test units"):
        pair([a, example_cell(B, facts=facts)], A, B, None)


def test_too_few_units_have_no_interval() -> None:
    facts = (("event_onset_200ms_fms",), 5, "scene", 3)
    cells = [example_cell(name, facts=facts) for name in (A, B)]
    (found,) = pair(cells, A, B, None)
    assert found.comparison.interval is None and found.p is None
    assert str(pairs_table([found]).caption) == "5 scenes: no interval, too few units."


@pytest.mark.parametrize(
    ("draws", "value", "why"),
    [
        (np.zeros(0), 0.5, ", metric without resampling"),
        (np.full(300, np.nan), 0.5, ", not defined for many resampled units"),
        (np.full(300, np.nan), np.nan, ""),
    ],
)
def test_why_there_is_no_interval(draws: np.ndarray, value: float, why: str) -> None:
    def without(cell: Cell) -> Cell:
        one = replace(cell.metrics[cell.main_metric], value=value, draws=draws.astype(np.float32))
        return replace(cell, metrics=cell.metrics | {cell.main_metric: one})

    pairs = pair([without(example_cell(A)), example_cell(B)], A, B, None)
    assert str(pairs_table(pairs).caption) == f"14 scenes: no interval{why}."
    tasks = [example_cell(name, task="domestic_like") for name in (A, B)]
    pairs = pair([without(example_cell(A)), example_cell(B), *tasks], A, B, None)
    why = why.replace(", ", "; no interval: ")
    wanted = f"Paired bootstrap over 14 scenes, 60 clips and seeds{why}."
    assert str(pairs_table(pairs).caption) == wanted


def test_two_files_of_weights_are_told_apart() -> None:
    cells = [example_cell(A), example_cell(A, weights_sha256="cd" * 32), example_cell(B)]
    pairs = pair(cells, A, B, None)
    assert len(pairs) == 2
    lines = [str(cell) for cell in pairs_table(pairs).columns[0].cells]
    assert all("weights " in line for line in lines) and len(set(lines)) == 2
