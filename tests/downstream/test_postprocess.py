"""Median, runs and change points against slow and obvious versions; events against heareval's."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from downstream.postprocess import Segments, boxes, change_points, median_filter, runs, to_events

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 4))
SCORES = arrays.arrays(
    np.float32, SHAPES, elements=st.integers(0, 8).map(lambda i: np.float32(i / 8))
)


@settings(max_examples=60, deadline=None)
@given(values=SCORES, sizes=st.lists(st.integers(0, 60), min_size=4, max_size=4))
def test_median_filter_is_scipys_column_by_column(values: np.ndarray, sizes: list[int]) -> None:
    sizes = sizes[: values.shape[1]]
    found = median_filter(values, sizes)
    for i, size in enumerate(sizes):
        if size > 2 * len(values):  # see test_median_network.py: SciPy errs
            continue
        wanted = ndimage.median_filter(values, size=(max(size, 1), 1))[:, i]
        np.testing.assert_array_equal(found[:, i], wanted)
    same = median_filter(values, 5)
    np.testing.assert_array_equal(same, ndimage.median_filter(values, size=(5, 1)))
    assert found is not values


def slow_runs(values: np.ndarray, limits: np.ndarray) -> list[tuple[int, int, int, float]]:
    found = []
    for column in range(values.shape[1]):
        first = None
        for i in range(len(values) + 1):
            on = i < len(values) and values[i, column] > limits[column]
            if on and first is None:
                first = i
            if not on and first is not None:
                found.append((column, first, i, float(values[first:i, column].mean())))
                first = None
    return found


@settings(max_examples=60, deadline=None)
@given(values=SCORES, limit=st.integers(0, 8), step=st.integers(0, 3))
def test_runs_are_what_a_loop_finds(values: np.ndarray, limit: int, step: int) -> None:
    limits = (limit + step * np.arange(values.shape[1])) / 8
    wanted = slow_runs(values, limits.astype(np.float32))
    found = list(zip(*(field.tolist() for field in runs(values, limits)), strict=True))
    assert [row[:3] for row in found] == [row[:3] for row in wanted]
    assert [row[3] for row in found] == pytest.approx([row[3] for row in wanted], abs=1e-6)


def slow_change_points(column: np.ndarray, width: int, merge: float) -> list[list[int]]:
    """[first, end] of segments of one column."""
    padded = np.concatenate([np.zeros(width), column.astype(np.float64), np.zeros(width)])
    jumps = [
        padded[t + width : t + 2 * width].mean() - padded[t : t + width].mean()
        for t in range(len(column) + 1)
    ]
    best: list[tuple[float, int]] = []
    for t, jump in enumerate(jumps):
        if abs(jump) < 1e-12:
            continue
        if not best or (jump > 0) != (best[-1][0] > 0):
            best.append((jump, t))
        elif abs(jump) > abs(best[-1][0]) + 1e-12:
            best[-1] = (jump, t)
    found = [[a[1], b[1]] for a, b in zip(best[::2], best[1::2], strict=True)]
    while True:
        kept: list[list[int]] = []
        for i, (first, end) in enumerate(found):
            if i:
                last = found[i - 1]
                gap = column[last[1] : first].mean() if first > last[1] else 0.0
                lower = min(column[slice(*last)].mean(), column[first:end].mean())
                if gap > merge * lower:
                    kept[-1][1] = end
                    continue
            kept.append([first, end])
        if len(kept) == len(found):
            return kept
        found = kept


@settings(max_examples=100, deadline=None)
@given(values=SCORES, width=st.integers(1, 12), merge=st.sampled_from([0.0, 0.4, 0.8, 2.0]))
def test_change_points_are_what_a_loop_finds(values: np.ndarray, width: int, merge: float) -> None:
    found = change_points(values, width, merge)
    for i in range(values.shape[1]):
        mine = found.take(found.column == i)
        wanted = slow_change_points(values[:, i], width, merge)
        assert [list(x) for x in zip(mine.first, mine.end, strict=True)] == wanted
    assert (found.end > found.first).all()


def test_change_points_find_the_edges_of_a_box_and_close_a_dip() -> None:
    values = np.zeros((100, 2))
    values[20:50, 0] = 0.9
    values[33:36, 0] = 0.8
    values[0:10, 1] = 0.6  # from the clip's first frame ...
    values[90:100, 1] = 0.7  # ... and to its last
    found = change_points(values, 5, merge_above=0.8)
    assert list(zip(*(field.tolist() for field in found[:3]), strict=True)) == [
        (0, 20, 50),
        (1, 0, 10),
        (1, 90, 100),
    ]
    assert found.value == pytest.approx([0.89, 0.6, 0.7])
    apart = change_points(values, 2, merge_above=0.95)
    assert apart.take(apart.column == 0).first.tolist() == [20, 36]


@settings(max_examples=40, deadline=None)
@given(values=SCORES, width=st.integers(1, 12), merge=st.sampled_from([0.4, 0.9]))
def test_boxes_are_segments_at_their_means(values: np.ndarray, width: int, merge: float) -> None:
    wanted = np.zeros_like(values)
    for column, first, end, _ in zip(*change_points(values, width, merge), strict=True):
        wanted[first:end, column] = values[first:end, column].mean()
    found = boxes(values, width, merge)
    assert found.dtype == values.dtype
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_change_points_of_a_constant_are_one_segment_and_of_silence_none() -> None:
    values = np.stack([np.full(50_000, 0.3), np.zeros(50_000)], axis=1)
    found = change_points(values, 10, 0.5)
    assert (found.column.tolist(), found.first.tolist(), found.end.tolist()) == ([0], [0], [50_000])


def test_change_points_refuse() -> None:
    with pytest.raises(ValueError, match="width_frames"):
        change_points(np.zeros((3, 1)), 0, 0.1)
    with pytest.raises(ValueError, match="from 0 on; got -1.0"):
        change_points(-np.ones((3, 1)), 2, 0.1)


def test_events_are_the_references(shared: Path) -> None:
    case = json.loads((shared / "parity" / "training.json").read_text())["score"]
    logits = np.load(shared / "parity" / "training.npz")["score.predictions"]
    labels = sorted(case["label_to_idx"], key=case["label_to_idx"].get)
    both = (
        (6, 0.125, "predicted_events"),
        (4, 0.06, "predicted_events_default_postprocessing"),
    )
    for width, shortest, name in both:
        for file, values in zip(case["files"], logits, strict=True):
            segments = runs(median_filter(values, width), 0.5)
            found = to_events(segments, labels, min_duration_s=shortest)
            wanted = [(e["start"] / 1000, e["end"] / 1000, e["label"]) for e in case[name][file]]
            assert sorted(found) == sorted(wanted)
            assert [event[0] for event in found] == sorted(event[0] for event in wanted)


def test_spans_and_shortest_events() -> None:
    segments = Segments(*(np.array(x) for x in ([0, 1], [4, 2], [5, 6], [0.7, 0.8])))
    assert to_events(segments, ["a", "b"]) == [(0.1, 0.22, "b"), (0.18, 0.18, "a")]
    edges = to_events(segments, ["a", "b"], spans="edges")
    assert edges == [(0.08, 0.24, "b"), (0.16, 0.2, "a")]
    assert to_events(segments, ["a", "b"], min_duration_s=0.12) == [(0.1, 0.22, "b")]
    assert to_events(segments, ["a", "b"], min_duration_s=0.121) == []
