"""The ladder picture: which rows are its rungs, what stands between them."""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from downstream.protocols.base import Settings
from downstream.results import Store, table
from tests.downstream.test_results import a_cell, a_run, a_task

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
tool = importlib.import_module("ladder")


def rows(*protocols: str, **other: object) -> list:
    noise = dict(zip(("hear", "paper", "best"), (3.0, 2.0, 1.0), strict=True))
    task = a_task()
    return table(
        [
            a_cell(task, noise[p.removesuffix("-scaled")], protocol=p, seed=seed, **other)
            for p in protocols
            for seed in range(2)
        ]
    )


def test_rungs_are_the_protocols_in_their_order_with_the_main_metric() -> None:
    found = tool.ladder(rows("best", "hear", "paper"), "beats.strong", "small")
    assert [row.protocol for row in found] == ["hear", "paper", "best"]
    assert {row.metric for row in found} == {"event_onset_200ms_fms"}
    assert "linear layer" in tool.cause(*found[:2]) and "prototypes" in tool.cause(*found[1:])


def test_a_rung_may_be_missing() -> None:
    found = tool.ladder(rows("best", "hear"), "beats.strong", "small")
    assert [row.protocol for row in found] == ["hear", "best"]
    assert "docs/protocols.md" in tool.cause(*found)


@pytest.mark.parametrize(
    ("protocols", "asked", "message"),
    [
        (("hear",), ("beats.strong", "small"), "two protocols at least, and there is hear"),
        (("hear", "best"), ("beats.weak", "small"), "unknown checkpoint 'beats.weak'"),
        (("hear", "best"), ("beats.strong", "smal"), "did you mean 'small'"),
        (("hear", "best"), ("beats.strong", "small", "knn"), "unknown mode 'knn'"),
    ],
)
def test_refuses(protocols: tuple[str, ...], asked: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tool.ladder(rows(*protocols), *asked)


def test_refuses_one_protocol_under_two_settings() -> None:
    task = a_task()
    cells = [a_cell(task, protocol="best")]
    cells += [
        a_run(task, settings=Settings(precision=p), protocol="hear")[0] for p in ("fp32", "bf16")
    ]
    with pytest.raises(ValueError, match="several results of one protocol.*bf16"):
        tool.ladder(table(cells), "beats.strong", "small")


def test_draws_every_rung_and_step() -> None:
    found = tool.ladder(rows("hear", "paper", "best"), "beats.strong", "small")
    (axes,) = tool.draw(found).axes
    texts = [text.get_text() for text in axes.texts]
    for row in found:
        assert f"{100 * row.value:.1f}" in texts
    steps = np.diff([100 * row.value for row in found])
    for step in steps:
        assert any(text.startswith(f"{step:+.1f}\n") for text in texts)


def test_a_protocol_that_found_no_event_is_at_the_foot() -> None:
    found = tool.ladder(rows("hear", "best"), "beats.strong", "small")
    silent = [replace(found[0], value=math.nan, interval=None), found[1]]
    (axes,) = tool.draw(silent).axes
    texts = [text.get_text() for text in axes.texts]
    assert "no event" in texts
    assert any(text.startswith(f"{100 * found[1].value:+.1f}") for text in texts)


def test_the_command_writes_a_file_and_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "results")
    for protocol in ("hear", "paper"):
        store.append(*a_run(a_task(), protocol=protocol))
    given = [str(tmp_path / "results"), "--checkpoint", "beats.strong"]
    tool.main([*given, "--task", "small", "-o", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(SystemExit) as stop:
        tool.main([*given, "--task", "other"])
    assert stop.value.code == 2
    assert "unknown task 'other'" in capsys.readouterr().err
