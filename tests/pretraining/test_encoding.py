"""Targets of frames: the references, and the fast counts against the slow obvious ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hear_pretrainedsed.events import events_to_frames, merge_events
from hear_pretrainedsed.registry import read_labels
from pretraining.clip_index import ClipIndex, Labelled
from pretraining.encoding import active_frames, active_seconds, encode, encode_weak, frame_edges

times = st.one_of(
    st.floats(-1, 12), st.integers(0, 300).map(lambda i: i * 0.04), st.integers(0, 120).map(float)
)
some_events = st.lists(st.tuples(times, times, st.integers(0, 3)), max_size=12)


def indexed(rows: list, labels: tuple[str, ...]) -> list[tuple[float, float, int]]:
    """(label, onset, offset) of the references as events here, others left out."""
    return [(a, b, labels.index(label)) for label, a, b in rows if label in labels]


def test_encoding_is_the_reference(shared: Path) -> None:
    facts = json.loads((shared / "parity" / "training.json").read_text())["encode"]
    arrays = np.load(shared / "parity" / "training.npz")
    labels = tuple(facts["labels"])
    for name, rows in facts["cases"].items():
        found = encode(indexed(rows, labels), len(labels))
        np.testing.assert_array_equal(found.T, arrays[f"encode.{name}"], err_msg=name)


def test_frames_of_times_are_the_reference(shared: Path) -> None:
    arrays = np.load(shared / "parity" / "training.npz")
    first, end = frame_edges(arrays["encode.times"], arrays["encode.times"])
    np.testing.assert_array_equal(first, arrays["encode.times_onset_frame"])
    np.testing.assert_array_equal(end, arrays["encode.times_offset_frame"])


def test_the_other_rounding_is_told() -> None:
    """EfficientSED's formula in float64 against ours, over all whole milliseconds of a clip."""
    times_s = np.arange(10_001) / 1000
    first, end = frame_edges(times_s, times_s)
    onset, offset = np.floor(times_s / 0.04), np.ceil(times_s / 0.04)
    assert np.abs(first - onset).max() == np.abs(end - offset).max() == 1
    n_apart = int(((first != onset) | (end != offset)).sum())
    at = times_s.tolist().index
    assert (onset[at(1.16)], first[at(1.16)], offset[at(0.28)], end[at(0.28)]) == (28, 29, 8, 7)
    page = (Path(__file__).resolve().parents[2] / "docs" / "pretraining.md").read_text("utf-8")
    assert f"{n_apart} of the 10 001 whole ms" in page and "frame 28 there, 29 here" in page


def test_audioset_strong_labels_are_the_reference(shared: Path) -> None:
    facts = json.loads((shared / "parity" / "training.json").read_text())["label_transform"]
    arrays = np.load(shared / "parity" / "training.npz")
    labels = read_labels("audioset_strong_train")
    found = encode(indexed(facts["events"], labels), len(labels))
    np.testing.assert_array_equal(found.T, arrays["label_transform.strong"])
    index = ClipIndex.of([Labelled("a", tuple(indexed(facts["events"], labels)), ())])
    counts = active_frames(index, len(labels))
    wanted = arrays["label_transform.event_count"]
    np.testing.assert_array_equal(counts.label, np.flatnonzero(wanted))
    np.testing.assert_array_equal(counts.amount, wanted[wanted > 0])


def test_labels_of_the_efficient_ones_are_the_reference(shared: Path) -> None:
    cases = json.loads((shared / "parity_efficient" / "eff_training.cases.json").read_text())
    case = cases["label_encoding"]
    labels = tuple(case["active"])
    wanted = np.zeros((case["n_frames"], len(labels)), np.float32)
    for label, runs in case["active"].items():
        for first, end in runs:
            wanted[first:end, labels.index(label)] = 1
    found = encode(indexed(case["events"], labels), len(labels), case["n_frames"])
    np.testing.assert_array_equal(found, wanted)
    merged = cases["merge_overlapping_events"]
    events = merge_events((a, b, label) for label, a, b in merged["in"])
    assert sorted([e.label, e.onset_s, e.offset_s] for e in events) == sorted(merged["out"])


@given(some_events)
def test_the_union_of_frames_is_that_of_merged_events(events: list) -> None:
    labels = tuple("abcd")
    found = encode(events, 4)
    slow = events_to_frames([(a, b, labels[c]) for a, b, c in events], labels, 250)
    np.testing.assert_array_equal(found, slow)
    forward = [(a, b, labels[c]) for a, b, c in events if a < b]
    merged = events_to_frames(merge_events(forward), labels, 250)
    np.testing.assert_array_equal(encode([e for e in events if e[0] < e[1]], 4), merged)


@given(st.lists(some_events, max_size=6))
def test_counts_of_many_clips_are_those_of_their_targets(clips: list) -> None:
    index = ClipIndex.of(Labelled(f"{i}", tuple(rows), ()) for i, rows in enumerate(clips))
    counts = active_frames(index, 4)
    found = np.zeros((len(clips), 4))
    found[counts.clip, counts.label] = counts.amount
    wanted = [encode(rows, 4).sum(axis=0) for rows in clips]
    np.testing.assert_array_equal(found, np.array(wanted).reshape(-1, 4))


def test_frames_of_long_clips_are_counted() -> None:
    index = ClipIndex.of([Labelled("a", ((9.0, 20.0, 0),), ())])
    assert active_frames(index, 1).amount.tolist() == [25]
    object.__setattr__(index, "duration_s", np.array([15.0]))
    assert active_frames(index, 1).amount.tolist() == [150]


def test_seconds_that_two_events_share_count_once() -> None:
    rows = ((0.0, 1.5, 0), (1.0, 2.0, 0), (0.2, 0.3, 0), (3.0, 3.25, 0), (0.0, 1.0, 1))
    counts = active_seconds(ClipIndex.of([Labelled("a", rows, ()), Labelled("b", None, ())]), 2)
    assert counts.clip.tolist() == [0, 0] and counts.label.tolist() == [0, 1]
    np.testing.assert_allclose(counts.amount, [2.25, 1.0], rtol=1e-12)


def test_clip_labels_are_ones_at_their_classes() -> None:
    assert encode_weak((2, 0), 4).tolist() == [1, 0, 1, 0]
    assert encode_weak((), 2).tolist() == [0, 0]
