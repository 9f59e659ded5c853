from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from downstream.metrics import event_error_rate, event_f1
from downstream.metrics.event_table import event_pair
from downstream.metrics.matching import candidates, matched_references, ordered_matching
from tests.downstream.metric_oracles import (
    EVENTS,
    LABELS,
    EventDict,
    approx,
    assert_score,
    near_misses,
    sed_eval_results,
    share_a_file,
    sound_event,
)

SETTINGS = ((0.2, None), (0.05, None), (0.05, 0.2), (0.2, 0.2), (0.25, 0.5), (0.2, 0.0))


def compare(
    reference: EventDict, estimated: EventDict, collar_s: float, fraction: float | None, zero: bool
) -> None:
    metric = sound_event().EventBasedMetrics(
        list(LABELS),
        evaluate_offset=fraction is not None,
        t_collar=collar_s,
        percentage_of_length=0.5 if fraction is None else fraction,
        empty_system_output_handling="zero_score" if zero else None,
    )
    results = sed_eval_results(metric, reference, estimated)
    f1 = event_f1(reference, estimated, collar_s, fraction, labels=LABELS, zero_if_silent=zero)
    assert_score(f1, results, "f_measure", "f_measure")
    rate = event_error_rate(reference, estimated, collar_s, fraction, labels=LABELS)
    assert_score(rate, results, "error_rate", "error_rate")


@settings(max_examples=150, deadline=None)
@given(EVENTS, EVENTS, st.sampled_from(SETTINGS), st.booleans())
@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_equal_to_sed_eval_on_any_events(
    reference: EventDict, estimated: EventDict, setting: tuple[float, float | None], zero: bool
) -> None:
    assume(share_a_file(reference, estimated))
    compare(reference, estimated, *setting, zero)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_equal_to_sed_eval_on_crowded_events(
    seed: int, setting: tuple[float, float | None]
) -> None:
    """So many near each other that a first-come matching is often not a largest one."""
    rng = np.random.default_rng(seed)
    reference: EventDict = {}
    for name in ("one", "two"):
        onset = rng.integers(0, 60, 40) / 20
        label = rng.choice(["a", "b", "c"], 40, p=[0.7, 0.2, 0.1])
        length = rng.integers(0, 8, 40) / 20
        reference[name] = list(
            zip(onset.tolist(), (onset + length).tolist(), label.tolist(), strict=True)
        )
    estimated = {name: near_misses(rng, events) for name, events in reference.items()}
    compare(reference, estimated, *setting, False)


@settings(max_examples=300, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=60))
def test_the_same_matching_as_sed_eval_of_any_graph(edges: set[tuple[int, int]]) -> None:
    match = pytest.importorskip("sed_eval").util.bipartite_match
    graph: dict[int, list[int]] = {}
    for ref, est in sorted(edges):
        graph.setdefault(est, []).append(ref)
    pairs = np.array(sorted(edges), dtype=np.int64).reshape(-1, 2).T
    expected = match(graph)
    assert ordered_matching((pairs[0], pairs[1])) == expected
    assert len(matched_references((pairs[0], pairs[1]), 12, 12)) == len(expected)


def test_the_same_matching_as_sed_eval_of_sparse_graphs() -> None:
    """Their paths are long and have dead ends, off which the search must come back."""
    match = pytest.importorskip("sed_eval").util.bipartite_match
    for seed in range(300):
        edges = np.argwhere(np.random.default_rng(seed).random((40, 40)) < 0.06)
        graph: dict[int, list[int]] = {}
        for ref, est in edges.tolist():
            graph.setdefault(est, []).append(ref)
        assert ordered_matching((edges[:, 0], edges[:, 1])) == match(graph)


def test_a_long_chain_of_paths() -> None:
    """Each estimated event but the last takes the reference event that the one before it needs."""
    n = 5000
    ref = np.repeat(np.arange(n), 2)[1:]
    est = np.repeat(np.arange(n), 2)[:-1]
    assert len(ordered_matching((ref, est))) == n
    assert len(matched_references((ref, est), n, n)) == n


@settings(max_examples=100, deadline=None)
@given(EVENTS, EVENTS, st.sampled_from((0.05, 0.2, 1.0)), st.sampled_from((None, 0.0, 0.5)))
def test_candidates_are_all_pairs_within_the_collar(
    reference: EventDict, estimated: EventDict, collar_s: float, fraction: float | None
) -> None:
    assume(share_a_file(reference, estimated))
    pair = event_pair(reference, estimated, LABELS)
    ours, theirs = pair.reference, pair.estimated
    slow = [
        (i, j)
        for i in range(len(ours))
        for j in range(len(theirs))
        if ours.file[i] == theirs.file[j]
        and ours.label[i] == theirs.label[j]
        and abs(ours.onset_s[i] - theirs.onset_s[j]) <= collar_s
        and (
            fraction is None
            or abs(ours.offset_s[i] - theirs.offset_s[j])
            <= max(collar_s, fraction * (ours.offset_s[i] - ours.onset_s[i]))
        )
    ]
    fast = np.stack(candidates(ours, theirs, collar_s, fraction), axis=1).tolist()
    assert fast == [list(one) for one in slow]


def test_a_collar_is_the_same_in_every_file() -> None:
    """Onsets a collar apart, exact in float64, in many files: none is lost among the others."""
    reference = {f"{i}.wav": [(i % 7 / 4, 9.1, "a")] for i in range(500)}
    later = {name: [(row[0][0] + 0.25, 9.1, "a")] for name, row in reference.items()}
    reference["last.wav"] = later["last.wav"] = [(9.1, 9.1, "a")]
    assert event_f1(reference, later, 0.25).micro == 1
    assert event_f1(later, reference, 0.25).micro == 1


def test_the_vocabulary_decides_what_macro_is_the_mean_of() -> None:
    reference = {"f": [(0.0, 1.0, "a"), (2.0, 3.0, "b")]}
    estimated = {"f": [(0.1, 1.0, "a")]}
    score = event_f1(reference, estimated, labels=["b", "a", "c"])
    assert score.micro == approx(2 / 3)
    assert list(score.per_class) == ["b", "a", "c"]
    assert score.per_class == approx({"a": 1.0, "b": math.nan, "c": math.nan})
    assert score.macro == 1.0
    score = event_f1(reference, estimated, labels=["a", "b", "c"], zero_if_silent=True)
    assert score.per_class == approx({"a": 1.0, "b": 0.0, "c": math.nan})
    assert score.macro == 0.5
    assert list(event_f1(reference, estimated).per_class) == ["a", "b"]


def test_a_silent_system_is_undefined_as_in_heareval() -> None:
    reference = {"f": [(0.0, 1.0, "a")]}
    assert math.isnan(event_f1(reference, {"f": []}).micro)
    assert math.isnan(event_f1(reference, {}).micro)
    assert event_f1(reference, {}, zero_if_silent=True).micro == 0
    assert event_error_rate(reference, {}).micro == approx(1)
    assert math.isnan(event_f1({}, {}).micro)


def test_a_difference_equal_to_the_collar_is_inside_as_far_as_float64_goes() -> None:
    at = {"f": [(1.0, 2.0, "a")]}
    assert event_f1(at, {"f": [(1.25, 2.0, "a")]}, 0.25).micro == 1
    assert event_f1(at, {"f": [(1.2500001, 2.0, "a")]}, 0.25).micro == 0
    assert event_f1({"f": [(0.1, 1, "a")]}, {"f": [(0.3, 1, "a")]}, 0.2).micro == 1
    assert event_f1({"f": [(1.1, 2, "a")]}, {"f": [(0.9, 2, "a")]}, 0.2).micro == 0  # 0.2 + 2e-16


def test_offsets_count_relative_to_the_reference_events_length() -> None:
    reference = {"f": [(0.0, 10.0, "a")]}
    assert event_f1(reference, {"f": [(0.0, 12.0, "a")]}, 0.2, 0.2).micro == 1
    assert event_f1(reference, {"f": [(0.0, 12.1, "a")]}, 0.2, 0.2).micro == 0
    assert event_f1(reference, {"f": [(0.0, 99.0, "a")]}, 0.2).micro == 1


def test_one_label_taken_for_another_is_one_error_not_two() -> None:
    reference = {"f": [(0.0, 1.0, "a"), (5.0, 6.0, "a")]}
    estimated = {"f": [(0.0, 1.0, "b"), (9.0, 9.5, "b")]}
    assert event_error_rate(reference, estimated).micro == approx((1 + 1 + 1) / 2)
    assert event_error_rate(reference, estimated).per_class["a"] == 1


@pytest.mark.hear
@pytest.mark.parametrize(
    ("name", "collar_s", "fraction"),
    [
        ("event_onset_200ms_fms", 0.2, None),
        ("event_onset_50ms_fms", 0.05, None),
        ("event_onset_offset_50ms_20perc_fms", 0.05, 0.2),
    ],
)
def test_equal_to_heareval(name: str, collar_s: float, fraction: float | None) -> None:
    score = pytest.importorskip("heareval.score")
    rng = np.random.default_rng(3)
    reference = {
        f"{i}.wav": [
            (a, a + 0.7, str(rng.choice(["a", "b"]))) for a in (rng.random(30) * 60).tolist()
        ]
        for i in range(3)
    }
    estimated = {name: near_misses(rng, events) for name, events in reference.items()}

    def in_ms(events: EventDict) -> dict[str, list[dict[str, object]]]:
        return {
            name: [{"start": a * 1000, "end": b * 1000, "label": c} for a, b, c in rows]
            for name, rows in events.items()
        }

    def and_back(events: EventDict) -> EventDict:
        return {
            name: [(row["start"] / 1000, row["end"] / 1000, row["label"]) for row in rows]
            for name, rows in in_ms(events).items()
        }

    function = score.available_scores[name](label_to_idx={"a": 0, "b": 1, "c": 2})
    theirs = dict(function(in_ms(estimated), in_ms(reference)))["f_measure"]
    ours = event_f1(and_back(reference), and_back(estimated), collar_s, fraction)
    assert 0.1 < theirs < 0.95
    assert ours.micro == approx(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["office_like", "piano_like", "domestic_like"])
def test_equal_to_sed_eval_on_annotations_of_real_recordings(shared: Path, task: str) -> None:
    folder = shared / "data" / "tasks" / f"{task}-v1-small"
    split = "fold04.json" if task == "piano_like" else "test.json"
    events = json.loads((folder / split).read_text())
    reference = {
        name: [(e["start"] / 1000, e["end"] / 1000, str(e["label"])) for e in rows[:120]]
        for name, rows in sorted(events.items())[: 2 if task == "piano_like" else 8]
    }
    rng = np.random.default_rng(0)
    labels = sorted({label for rows in reference.values() for *_, label in rows} | set("abc"))
    estimated = {name: near_misses(rng, rows) for name, rows in reference.items()}
    for collar_s, fraction in SETTINGS[:3]:
        metric = sound_event().EventBasedMetrics(
            labels,
            evaluate_offset=fraction is not None,
            t_collar=collar_s,
            percentage_of_length=fraction or 0.5,
        )
        results = sed_eval_results(metric, reference, estimated)
        score = event_f1(reference, estimated, collar_s, fraction, labels=labels)
        assert 0.1 < score.micro < 0.99
        assert_score(score, results, "f_measure", "f_measure")
        rate = event_error_rate(reference, estimated, collar_s, fraction, labels=labels)
        assert_score(rate, results, "error_rate", "error_rate")
