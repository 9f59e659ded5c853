from __future__ import annotations

import math
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from downstream.metrics import PSDS1, PSDS2, intersection_f1, psds_from_events
from tests.downstream.metric_oracles import (
    EVENTS,
    FILES,
    EventDict,
    approx,
    joined,
    near_misses,
)

DURATIONS = {"x.wav": 10.0, "y.wav": 7.5, "z.wav": 3.0}
CRITERIA = ((0.5, 0.5, 0.3), (0.7, 0.7, 0.3), (0.1, 0.1, 0.3), (0.0, 1.0, 0.0), (1.0, 0.0, 1.0))


def psds_eval(reference: EventDict, criteria: tuple[float, float, float]) -> Any:
    pd = pytest.importorskip("pandas")
    module = pytest.importorskip("psds_eval")
    durations = {"filename": list(DURATIONS), "duration": list(DURATIONS.values())}
    dtc, gtc, cttc = criteria
    return module.PSDSEval(
        ground_truth=table(reference),
        metadata=pd.DataFrame(durations),
        dtc_threshold=dtc,
        gtc_threshold=gtc,
        cttc_threshold=cttc,
    )


def table(events: EventDict) -> Any:
    pd = pytest.importorskip("pandas")
    rows = [(name, *event) for name, row in events.items() for event in row]
    return pd.DataFrame(rows, columns=["filename", "onset", "offset", "event_label"])


def lasting(events: EventDict) -> EventDict:
    """Joined events with a length: psds_eval stumbles over a zero-length one inside another."""
    return joined({n: [e for e in row if e[1] > e[0]] for n, row in events.items()})


@settings(max_examples=60, deadline=None)
@given(EVENTS, EVENTS, st.sampled_from(CRITERIA))
def test_f1_equal_to_psds_eval(
    reference: EventDict, estimated: EventDict, criteria: tuple[float, float, float]
) -> None:
    reference, estimated = lasting(reference), lasting(estimated)
    assume(any(reference.values()) and any(estimated.values()))
    reference = dict.fromkeys(FILES, []) | reference
    oracle = psds_eval(reference, criteria)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        expected, _ = oracle.compute_macro_f_score(table(estimated))
        counts, *_ = oracle._evaluate_detections(oracle._init_det_table(table(estimated)))
    score = intersection_f1(reference, estimated, *criteria[:2], durations_s=DURATIONS)
    n_ref = Counter(event[2] for row in reference.values() for event in row)
    names = sorted(n_ref)
    if all(counts[i, i] for i in range(len(names))):  # its F1 divides by the hits
        assert score.macro == approx(expected)
    for i, label in enumerate(names):
        f1 = 2 * counts[i, i] / (n_ref[label] + counts[i, i] + counts[i, -1])
        assert score.per_class[label] == approx(f1)
    for label in score.per_class.keys() - set(names):
        assert math.isnan(score.per_class[label])


@settings(max_examples=30, deadline=None)
@given(EVENTS, st.integers(0, 1000), st.sampled_from(CRITERIA), st.sampled_from((0.0, 0.5, 1.0)))
def test_psds_equal_to_psds_eval(
    reference: EventDict, seed: int, criteria: tuple[float, float, float], alpha: float
) -> None:
    pytest.importorskip("sed_scores_eval")
    reference = dict.fromkeys(FILES, []) | lasting(reference)
    assume(len({e[2] for row in reference.values() for e in row}) >= 2)
    rng = np.random.default_rng(seed)
    points = [
        lasting({name: near_misses(rng, row) for name, row in reference.items()}) for _ in range(4)
    ]
    assume(all(any(point.values()) for point in points))
    oracle = psds_eval(reference, criteria)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for point in points:
            oracle.add_operating_point(table(point))
        expected = oracle.psds(alpha_ct=alpha, alpha_st=1 - alpha, max_efpr=10_000).value
    dtc, gtc, cttc = criteria
    score = psds_from_events(
        points,
        reference,
        DURATIONS,
        dtc,
        gtc,
        cttc=cttc,
        alpha_ct=alpha,
        alpha_st=1 - alpha,
        max_efpr=10_000,
    )
    assert score.micro == approx(expected)


def test_the_hour_is_the_unit_and_clips_without_events_count() -> None:
    pytest.importorskip("sed_scores_eval")
    reference = {"f": [(0.0, 1.0, "a")]}
    point = {"f": [(0.0, 1.0, "a"), (2.0, 3.0, "a")]}
    durations = {"f": 60.0, "silent": 60.0}  # one false positive in 120 s: 30 an hour
    score = psds_from_events([point], reference, durations, 0.5, 0.5)
    assert score.micro == approx(0.7)
    assert score.per_class == approx({"a": 0.7})


def test_events_that_are_in_parts_count_together() -> None:
    reference = {"f": [(0.0, 4.0, "a"), (5.0, 6.0, "a")]}
    parts = {"f": [(0.0, 1.5, "a"), (2.0, 3.5, "a"), (5.0, 6.0, "a")]}
    assert intersection_f1(reference, parts, 0.5, 0.7).micro == 1
    assert intersection_f1(reference, {"f": [(0.0, 6.0, "a")]}, 0.8, 0.7).micro == 1
    assert intersection_f1(reference, {"f": [(0.0, 6.0, "a")]}, 0.9, 0.7).micro == 0


def test_micro_leaves_out_classes_without_reference_events() -> None:
    reference = {"f": [(0.0, 1.0, "a"), (2.0, 3.0, "b")]}
    estimated = {"f": [(0.0, 1.0, "a"), (5.0, 6.0, "c")]}
    score = intersection_f1(reference, estimated)
    assert score.per_class == approx({"a": 1.0, "b": 0.0, "c": math.nan})
    assert score.macro == 0.5
    assert score.micro == approx(2 / 3)


@pytest.mark.parametrize("side", ["reference", "estimated"])
def test_overlapping_events_are_refused(side: str) -> None:
    good = {"f.wav": [(0.0, 1.0, "dog"), (1.0, 2.0, "dog"), (1.5, 3.0, "cat")]}
    bad = {"f.wav": [(4.0, 5.0, "cat"), (0.0, 1.5, "dog"), (1.0, 2.0, "dog")]}
    sides = {"reference": good, "estimated": good} | {side: bad}
    with pytest.raises(ValueError, match=f"{side}: .* overlap: 'dog at 1 s in f.wav'; .*merge_ev"):
        intersection_f1(**sides)
    assert intersection_f1(good, good).micro == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operating_points": []}, "no operating points"),
        ({"durations_s": {}}, "no duration of 'f'"),
        ({"durations_s": {"f": 0.0}}, "the duration of 'f' is 0.0"),
        ({"durations_s": {"f": float("nan")}}, "the duration of 'f' is nan"),
        ({"operating_points": [{"f": [], "g": []}]}, "no duration of 'g'"),
        ({"reference": {"f": []}}, "no reference events"),
        ({"dtc": 1.1}, "dtc is from 0 to 1, got 1.1"),
        ({"alpha_ct": 0.5}, "alpha_ct = 0.5 needs a cttc"),
        ({"alpha_st": -1.0}, "alpha_st is finite and not negative"),
        ({"max_efpr": 0.0}, "max_efpr not 0"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "operating_points": [{"f": [(0.0, 1.0, "a")]}],
        "reference": {"f": [(0.0, 1.0, "a")]},
        "durations_s": {"f": 10.0},
        "dtc": 0.5,
        "gtc": 0.5,
    }
    with pytest.raises(ValueError, match=message):
        psds_from_events(**(good | changes))


@pytest.mark.parametrize("preset", [PSDS1, PSDS2])
def test_perfect_detections_have_a_psds_of_1(preset: dict[str, float]) -> None:
    pytest.importorskip("sed_scores_eval")
    reference = {"f": [(0.0, 1.0, "a"), (2.0, 3.0, "b")], "g": []}
    score = psds_from_events([reference], reference, {"f": 10.0, "g": 10.0}, **preset)
    assert (score.micro, score.macro) == approx((1.0, 1.0))
