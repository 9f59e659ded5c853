from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from downstream.metrics import (
    event_error_rate,
    event_f1,
    intersection_f1,
    segment_accuracy,
    segment_error_rate,
    segment_f1,
)
from hear_pretrainedsed.events import Event

METRICS = (
    event_f1,
    event_error_rate,
    segment_f1,
    segment_error_rate,
    segment_accuracy,
    intersection_f1,
)
GOOD = {"f.wav": [(0.0, 1.0, "dog")]}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("event", "message"),
    [
        ((-0.1, 1.0, "dog"), r"0 <= onset <= offset, got \('f.wav', -0.1, 1.0, 'dog'\)"),
        ((2.0, 1.0, "dog"), r"got \('f.wav', 2.0, 1.0, 'dog'\)"),
        ((float("nan"), 1.0, "dog"), r"got \('f.wav', nan"),
        ((0.0, float("inf"), "dog"), r"got \('f.wav', 0.0, inf"),
        ((0.0, 1.0, "dogs"), "'f.wav': no class 'dogs' among the 2 classes; the nearest is 'dog'"),
        ((0.0, 1.0, 60), "labels are text, got 60 in 'f.wav'"),
        ((0.0, 1.0), r"an event is \(onset_s, offset_s, label\), got \(0.0, 1.0\)"),
        (("begin", 1.0, "dog"), "'f.wav': 'begin' is no time in seconds"),
        ((None, 1.0, "dog"), "None is no time|got .*None"),
    ],
)
@pytest.mark.parametrize("side", ["reference", "estimated"])
def test_a_bad_event_is_named(
    metric: Callable[..., Any], event: tuple[Any, ...], message: str, side: str
) -> None:
    sides = {"reference": dict(GOOD), "estimated": dict(GOOD)}
    sides[side] = {"f.wav": [*GOOD["f.wav"], event]}
    with pytest.raises(ValueError, match=message) as caught:
        metric(**sides, labels=["dog", "cat"])
    assert str(caught.value).startswith(side)
    assert "\n" not in str(caught.value)


def test_the_first_offenders_are_named_and_the_rest_counted() -> None:
    bad = {"f.wav": [(float(i), 0.0, "dog") for i in range(1, 6)]}
    with pytest.raises(ValueError, match=r"1\.0, .* 2\.0, .* 3\.0, .* and 2 more") as caught:
        event_f1(GOOD, bad)
    assert "4.0" not in str(caught.value)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("estimated", "message"),
    [
        ({"g.wav": []}, "no file in common: reference has 'f.wav', estimated has 'g.wav'"),
        ({"f": []}, "one file under two names: 'f.wav' and 'f'"),
        ({"f.wav": [], "f.flac": []}, "one file under two names: 'f.wav' and 'f.flac'"),
        ([("f.wav", [])], "estimated is a dict of events by file, got list"),
        ({3: []}, "files are named by text, got 3"),
    ],
)
def test_bad_files(metric: Callable[..., Any], estimated: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric(GOOD, estimated)


def test_names_that_only_look_alike_are_two_files() -> None:
    """AudioSet's names end in times, not in a file type."""
    names = ("Yabc_30.000_40.000", "Yabc_30.000_40.500", "dir/a.wav", "a.wav")
    assert event_f1({name: GOOD["f.wav"] for name in names}, {names[0]: []}).micro != 1


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("labels", "message"),
    [(["dog", "cat", "dog"], "labels given twice: 'dog'"), ("dog", "a sequence of names")],
)
def test_bad_labels(metric: Callable[..., Any], labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric(GOOD, GOOD, labels=labels)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_bad_collars_and_resolutions(value: float) -> None:
    with pytest.raises(ValueError, match="collar_s is a time above 0"):
        event_f1(GOOD, GOOD, value)
    with pytest.raises(ValueError, match="collar_s is a time above 0"):
        event_error_rate(GOOD, GOOD, value)
    with pytest.raises(ValueError, match="resolution_s is a time above 0"):
        segment_f1(GOOD, GOOD, value)


@pytest.mark.parametrize("value", [-0.1, 20, float("nan")])
def test_bad_fractions(value: float) -> None:
    with pytest.raises(ValueError, match="offset_fraction is None or from 0 to 1"):
        event_f1(GOOD, GOOD, 0.2, value)
    with pytest.raises(ValueError, match="gtc is from 0 to 1"):
        intersection_f1(GOOD, GOOD, 0.5, value)


@pytest.mark.parametrize("metric", METRICS)
def test_events_may_have_more_fields_and_numbers_of_any_kind(metric: Callable[..., Any]) -> None:
    plain = metric(GOOD, GOOD)
    assert metric({"f.wav": [Event(0.0, 1.0, "dog", 0.3)]}, GOOD) == plain
    assert metric(GOOD, {"f.wav": [(np.float32(0), np.int64(1), "dog")]}) == plain
    assert metric(GOOD, {"f.wav": ((0, 1, "dog"),)}) == plain
    assert plain.per_class.keys() == {"dog"}


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_at_all(metric: Callable[..., Any]) -> None:
    score = metric({}, {})
    assert score.per_class == {}
    assert np.isnan(score.macro)
    assert metric({"f": []}, {"f": []}, labels=["a"]).per_class.keys() == {"a"}
