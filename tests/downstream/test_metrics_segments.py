from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from downstream.metrics import segment_accuracy, segment_error_rate, segment_f1
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


@settings(max_examples=150, deadline=None)
@given(EVENTS, EVENTS, st.sampled_from((1.0, 0.1, 0.3, 7.0)), st.booleans())
@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_equal_to_sed_eval_on_any_events(
    reference: EventDict, estimated: EventDict, resolution_s: float, zero: bool
) -> None:
    assume(share_a_file(reference, estimated))
    metric = sound_event().SegmentBasedMetrics(list(LABELS), time_resolution=resolution_s)
    metric.empty_system_output_handling = "zero_score" if zero else None
    results = sed_eval_results(metric, reference, estimated)
    sides = (reference, estimated, resolution_s)
    f1 = segment_f1(*sides, labels=LABELS, zero_if_silent=zero)
    assert_score(f1, results, "f_measure", "f_measure")
    assert_score(segment_error_rate(*sides, labels=LABELS), results, "error_rate", "error_rate")
    assert_score(segment_accuracy(*sides, labels=LABELS), results, "accuracy", "accuracy")


def test_an_event_fills_every_segment_it_touches() -> None:
    reference = {"f": [(0.9, 2.1, "a")]}
    assert segment_f1(reference, {"f": [(0.0, 3.0, "a")]}).micro == 1
    assert segment_f1(reference, {"f": [(1.0, 2.0, "a")]}).micro == approx(0.5)


def test_events_without_length_are_active_within_a_segment_but_not_on_its_edge() -> None:
    inside, edge = {"f": [(1.5, 1.5, "a")]}, {"f": [(1.0, 1.0, "a")]}
    assert segment_f1(inside, inside).micro == 1
    assert math.isnan(segment_f1(edge, edge).micro)
    assert segment_error_rate(edge, edge).micro == 0


def test_overlapping_events_of_a_class_are_active_once() -> None:
    twice = {"f": [(0.0, 2.0, "a"), (1.0, 3.0, "a")]}
    once = {"f": [(0.0, 3.0, "a")]}
    assert segment_error_rate(once, twice).micro == 0
    assert segment_f1(twice, once).micro == 1


def test_substitutions_are_within_a_segment() -> None:
    reference = {"f": [(0.0, 1.0, "a"), (0.0, 1.0, "b")]}
    assert segment_error_rate(reference, {"f": [(0.0, 1.0, "c")]}).micro == approx(1.0)
    assert segment_error_rate(reference, {"f": [(1.0, 2.0, "c")]}).micro == approx(1.5)


def test_files_do_not_reach_into_each_other() -> None:
    reference = {"f": [(0.0, 1.0, "a")], "g": [(0.0, 1.0, "b")]}
    estimated = {"f": [(1.0, 2.0, "b")], "g": [(0.0, 1.0, "b")]}
    assert segment_error_rate(reference, estimated).micro == approx(1.0)


@pytest.mark.hear
def test_equal_to_heareval() -> None:
    score = pytest.importorskip("heareval.score")
    rng = np.random.default_rng(4)
    reference = {
        name: [(a, a + 0.5, "a") for a in (rng.random(20) * 60).tolist()] for name in ("f", "g")
    }
    estimated = {name: near_misses(rng, events) for name, events in reference.items()}
    sides = [
        {
            name: [{"start": a * 1000, "end": b * 1000, "label": c} for a, b, c in rows]
            for name, rows in events.items()
        }
        for events in (estimated, reference)
    ]
    function = score.available_scores["segment_1s_er"](label_to_idx={"a": 0, "b": 1, "c": 2})
    assert segment_error_rate(reference, estimated).micro == approx(function(*sides)[0][1])
