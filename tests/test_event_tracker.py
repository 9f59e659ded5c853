"""The event tracker: `scores_to_events`' events, whatever the parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hear_pretrainedsed.event_tracker import EventTracker
from hear_pretrainedsed.events import scores_to_events

LABELS = ("b", "a", "c")


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 40),
    st.sampled_from([None, 1, 2, 3, 4, 5, 8, 11, 60, 90.0]),
    st.sampled_from([None, 0.0, 0.08, 0.36]),
    st.sampled_from([0.5, (0.2, 0.5, 0.9)]),
    st.integers(0, 10**6),
)
def test_equals_offline_decoding(n, median, shortest_s, threshold, seed) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random((n, 3)).astype(np.float32)
    scores = np.where(rng.random((n, 3)) < 0.7, np.roll(scores, 1, axis=0), scores)  # longer runs
    duration_s = max(0.0, n * 0.04 - rng.choice([0, 0.01]))
    tracker = EventTracker(LABELS, threshold, median, shortest_s)
    found, at = [], 0
    while at < n:
        size = int(rng.integers(0, 7))
        found += tracker.feed(scores[at : at + size])
        at += size
    found += tracker.close(duration_s)
    decoding = dict(threshold=threshold, median_frames=median and int(median))
    wanted = scores_to_events(
        scores, LABELS, min_duration_s=shortest_s, duration_s=duration_s, **decoding
    )
    assert [event[:3] for event in sorted(found)] == [event[:3] for event in sorted(wanted)]
    for a, b in zip(sorted(found), sorted(wanted), strict=True):
        assert a.score == pytest.approx(b.score, rel=1e-12)
    assert all(type(x) is float for event in found for x in (event.onset_s, event.score))


def test_an_event_comes_with_the_frame_that_ends_it() -> None:
    tracker = EventTracker(("a",))
    parts = [tracker.feed(np.full((1, 1), x, np.float32)) for x in (0.2, 0.9, 0.7, 0.1, 0.1)]
    assert [len(part) for part in parts] == [0, 0, 0, 1, 0]
    assert parts[3][0] == (0.04, 0.12, "a", pytest.approx(0.8))


def test_events_of_one_end_are_in_the_order_of_onsets_and_labels() -> None:
    tracker = EventTracker(LABELS)
    tracker.feed(np.float32([[0, 0, 1], [1, 1, 1]]))
    found = tracker.feed(np.float32([[0, 0, 0]]))
    assert [(event.onset_s, event.label) for event in found] == [(0, "c"), (0.04, "a"), (0.04, "b")]


@pytest.mark.parametrize(("median", "ahead"), [(None, 0), (1, 0), (2, 0), (3, 1), (4, 1), (7, 3)])
def test_the_filter_waits_half_its_length(median, ahead) -> None:
    """A run of 10 frames ends at frame 20: the frame that decides so is `ahead` frames later."""
    tracker = EventTracker(("a",), median_frames=median)
    assert tracker.ahead_frames == ahead
    scores = np.zeros((40, 1), np.float32)
    scores[10:20] = 1
    found = [i for i in range(40) if tracker.feed(scores[i : i + 1])]
    shift = 1 if median in (2, 4) else 0  # an even window sees one more frame before than after
    assert found == [20 + ahead + shift]


def test_a_threshold_is_compared_in_float32_and_strictly() -> None:
    tracker = EventTracker(("a",), 0.1)
    assert tracker.feed(np.float32([[0.1], [0.0]])) == []
    assert len(tracker.feed(np.float32([[0.1000001], [0.0]]))) == 1


def test_nan_is_named() -> None:
    tracker = EventTracker(("a", "b"), median_frames=5)
    tracker.feed(np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="NaN in the scores at frame 4, class 1"):
        tracker.feed(np.float32([[0, 0], [0, np.nan]]))


def test_wrong_labels() -> None:
    with pytest.raises(ValueError, match="given twice"):
        EventTracker(("a", "a"))
