"""The table of a weak run: the best is chosen on validation clips alone."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from pretraining.ensembling import ensemble
from pretraining.weak_metrics import weak_metrics
from pretraining.weak_results import Row, WeakResults, write_csv

TARGETS = {
    "validation": np.array([[1, 0], [0, 1], [1, 1], [0, 0]]),
    "evaluation": np.array([[0, 1], [1, 0], [1, 1], [0, 0]]),
}


def scores(seed: int) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    return {split: chance.random((4, 2)) for split in TARGETS}


def good_on(split: str, other: str) -> dict[str, np.ndarray]:
    good, bad = TARGETS[split] * 0.8 + 0.1, 0.9 - TARGETS[other] * 0.8
    return {split: good, other: bad}


def test_the_best_is_that_of_the_validation_clips() -> None:
    results = WeakResults(TARGETS)
    results.add_checkpoint("epoch 1", good_on("evaluation", "validation"))
    results.add_checkpoint("epoch 2", good_on("validation", "evaluation"))
    assert results.best == "epoch 2"
    best = results.rows()[:2]
    assert {row.system for row in best} == {"best single (epoch 2)"}
    by_split = {row.split: row.map for row in best}
    assert by_split["validation"] == 1 and by_split["evaluation"] < 1


def test_of_two_equal_ones_the_first_is_kept() -> None:
    results = WeakResults(TARGETS)
    for name in ("epoch 1", "epoch 2"):
        results.add_checkpoint(name, scores(0))
    assert results.best == "epoch 1"


def test_every_line_is_the_metrics_of_its_system() -> None:
    results, everyone = WeakResults(TARGETS), [scores(seed) for seed in range(3)]
    for number, one in enumerate(everyone, start=1):
        results.add_checkpoint(f"epoch {number}", one)
    averaged, seeds = scores(7), scores(8)
    results.add("averaged weights", averaged)
    results.add("ensemble of other seeds", seeds, n_models=4)
    for split in TARGETS:
        whole = ensemble(one[split] for one in everyone)
        wanted = [
            ("ensemble of one run", 3, whole),
            ("averaged weights", 1, averaged[split]),
            ("ensemble of other seeds", 4, seeds[split]),
        ]
        rows = [row for row in results.rows() if row.split == split][1:]
        for row, (system, n_models, values) in zip(rows, wanted, strict=True):
            found = weak_metrics(values, TARGETS[split])
            assert row == Row(system, split, n_models, found.mean_ap, found.mean_auc, found.d_prime)
    so_far = [row for row in results.epochs if row.system == "ensemble up to epoch 2"]
    two = ensemble([everyone[0]["validation"], everyone[1]["validation"]])
    assert so_far[0].n_models == 2
    assert so_far[0].map == weak_metrics(two, TARGETS["validation"]).mean_ap
    assert len(results.epochs) == 12


def test_the_table_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_csv(path, [Row("one, best", "validation", 1, 1 / 3, math.nan, math.inf)])
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {
            "system": "one, best",
            "split": "validation",
            "n_models": "1",
            "map": "0.333333",
            "auc": "",
            "d_prime": "inf",
        }
    ]
    with pytest.raises(AttributeError):
        write_csv(path, [None])
    assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]


def test_a_run_without_checkpoints_has_what_was_added() -> None:
    results = WeakResults(TARGETS)
    assert results.rows() == []
    results.add("averaged weights", scores(0))
    assert [row.system for row in results.rows()] == ["averaged weights"] * 2


def test_refuses() -> None:
    with pytest.raises(ValueError, match="the best is chosen on 'validation'"):
        WeakResults({"evaluation": TARGETS["evaluation"]})
    with pytest.raises(ValueError, match=r"epoch 1 has scores for \['validation'\]"):
        WeakResults(TARGETS).add_checkpoint("epoch 1", {"validation": np.zeros((4, 2))})
