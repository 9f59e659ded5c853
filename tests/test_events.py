"""events.py: against PretrainedSED's own decoding and encoding, and against slow obvious code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import median_filter

from hear_pretrainedsed import events as ev
from hear_pretrainedsed.events import Event, events_to_frames, merge_events, scores_to_events

LABELS = ["Alarm", "Bark", "Bell", "Clapping", "Engine", "Knock", "Speech", "Wind"]


@pytest.fixture
def reference(shared: Path) -> tuple[dict, dict]:
    """PretrainedSED's training-side facts: the parameters and the arrays."""
    folder = shared / "parity"
    with np.load(folder / "training.npz") as arrays:
        return json.loads((folder / "training.json").read_text()), dict(arrays)


def slow_events(scores, labels, threshold=0.5, median_frames=None, duration_s=None):
    """Filter with SciPy, then walk through the frames."""
    filtered = scores if median_frames is None else median_filter(scores, (median_frames, 1))
    found = []
    for number, label in enumerate(labels):
        start = None
        for frame in range(len(scores) + 1):
            on = frame < len(scores) and filtered[frame, number] > threshold
            if on and start is None:
                start = frame
            elif not on and start is not None:
                score = scores[start:frame, number].astype(np.float64).mean()
                times = [start * 4 / 100, frame * 4 / 100]
                if duration_s is not None:
                    times = [min(time, duration_s) for time in times]
                if times[0] < times[1]:
                    found.append(Event(*times, label, score))
                start = None
    return sorted(found, key=lambda event: (event.onset_s, event.label))


def same_events(given, expected) -> None:
    assert [event[:3] for event in given] == [event[:3] for event in expected]
    assert [event.score for event in given] == pytest.approx([e.score for e in expected])


# ---- scores -> events


@pytest.mark.parametrize("name", ["decode_mf9", "decode_mfNone", "decode_mf1", "decode_mf4"])
def test_decode_equals_reference(reference, name) -> None:
    facts, arrays = reference
    labels, clips = facts["decode"]["labels"], facts["decode"]["clips"]
    size = None if name.endswith("None") else int(name[len("decode_mf") :])
    for threshold, expected in facts[name].items():
        for clip, scores in zip(clips, arrays["decode.scores"], strict=True):
            found = scores_to_events(
                scores.T, labels, threshold=float(threshold), median_frames=size, duration_s=10
            )
            rows = sorted(tuple(row[1:]) for row in expected if row[0] == f"{clip}.wav")
            assert sorted((e.label, e.onset_s, e.offset_s) for e in found) == rows


def test_decode_long_equals_reference_but_for_padding(reference) -> None:
    facts, arrays = reference
    duration_s = facts["decode_long"]["audio_len"]
    for threshold, expected in facts["decode_long"]["events"].items():
        found = scores_to_events(
            arrays["decode.long_post"].T,
            facts["decode"]["labels"],
            threshold=float(threshold),
            duration_s=duration_s,
        )
        rows = sorted(tuple(row) for row in expected if row[1] < row[2])
        assert sorted((e.label, e.onset_s, e.offset_s) for e in found) == rows
        assert any(row[1] == row[2] == duration_s for row in expected)  # what is dropped here


@pytest.mark.parametrize("size", [1, 4, 9])
def test_scipys_median_is_the_reference(reference, size) -> None:
    """The oracle of the tests below filters as the reference does."""
    _, arrays = reference
    for scores, expected in zip(
        arrays["decode.scores"], arrays[f"decode.post_mf{size}"], strict=True
    ):
        assert np.array_equal(median_filter(scores.T, (size, 1)), expected.T)


SCORES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.integers(1, 4)),
    elements=st.sampled_from(np.float32([0, 0.1, 0.25, 0.5, 0.75, 1])),
)


@given(SCORES, st.sampled_from([0.0, 0.1, 0.25, 0.5]), st.none() | st.integers(1, 60), st.data())
@settings(max_examples=200, deadline=None)
def test_decode_equals_slow_code(scores, threshold, size, data) -> None:
    duration_s = data.draw(st.none() | st.floats(0, 2))
    if size is not None:
        size = min(size, 2 * len(scores))  # SciPy 1.17 does not reflect a second time correctly
    labels = LABELS[: scores.shape[1]]
    given_ = scores_to_events(
        scores, labels, threshold=threshold, median_frames=size, duration_s=duration_s
    )
    same_events(given_, slow_events(scores, labels, np.float32(threshold), size, duration_s))


def test_more_classes_than_are_decoded_at_once() -> None:
    scores = np.random.default_rng(3).random((300, 100), dtype=np.float32)
    labels = [f"class {i}" for i in range(100)]
    for size in (None, 5):
        same_events(
            scores_to_events(scores, labels, threshold=0.7, median_frames=size),
            slow_events(scores, labels, 0.7, size),
        )


def test_threshold_is_strict_and_in_the_scores_precision() -> None:
    scores = np.float32([[0.1], [0.5], [0.9]])
    assert scores_to_events(scores, ["a"], threshold=0.9) == []
    assert scores_to_events(scores, ["a"], threshold=0.1)[0][:2] == (0.04, 0.12)
    half = np.float16([[0.1], [0.2]])
    assert scores_to_events(half, ["a"], threshold=0.1)[0][:2] == (0.04, 0.08)


def test_one_threshold_a_class_and_tensors() -> None:
    scores = torch.tensor([[0.4, 0.4]]).bfloat16()
    (event,) = scores_to_events(scores, ["a", "b"], threshold=[0.5, 0.3])
    assert event.label == "b"
    assert event[:2] == (0.0, 0.04)
    assert event.score == pytest.approx(0.4, abs=2e-3)


def test_score_is_the_mean_of_the_raw_scores_across_a_bridged_gap() -> None:
    scores = np.float32([0, 0.8, 0.8, 0.1, 0.8, 0.8, 0])[:, None]
    (event,) = scores_to_events(scores, ["a"], median_frames=3)
    assert event == (0.04, 0.24, "a", pytest.approx(3.3 / 5))


def test_min_duration_counts_after_the_clip_ends() -> None:
    scores = np.float32([1, 0, 1, 1, 0, 1, 1, 1])[:, None]
    keep = [event.onset_s for event in scores_to_events(scores, ["a"], min_duration_s=0.08)]
    assert keep == [0.08, 0.2]
    late = np.float32([0] * 7 + [1, 1])[:, None]
    assert scores_to_events(late, ["a"], min_duration_s=0.08)  # 0.36 - 0.28 is 0.07999999999999996
    found = scores_to_events(scores, ["a"], min_duration_s=0.08, duration_s=0.27)
    assert [event.onset_s for event in found] == [0.08]
    assert scores_to_events(scores, ["a"], duration_s=0.27)[-1].offset_s == 0.27


def test_order_is_onset_then_label_and_no_frames_are_no_events() -> None:
    found = scores_to_events(np.ones((2, 3), np.float32), ["c", "a", "b"])
    assert [event.label for event in found] == ["a", "b", "c"]
    assert scores_to_events(np.zeros((0, 2), np.float32), ["a", "b"], median_frames=3) == []
    assert scores_to_events(np.zeros((5, 0), np.float32), [], median_frames=3) == []


@pytest.mark.parametrize(
    ("scores", "labels", "options", "message"),
    [
        (np.ones((2, 2), np.float32), ["a"], {}, "1 labels for scores of 2 classes"),
        (np.ones((2, 2), np.float32), ["a", "a"], {}, "'a' is given twice"),
        (np.ones((2, 2), int), ["a", "b"], {}, r"floating point.*\(frames, classes\).*int64"),
        (np.ones(2, np.float32), ["a"], {}, r"axes \(frames, classes\)"),
        (
            np.float32([[0, 0], [0, np.nan]]),
            ["a", "b"],
            {},
            "NaN in the scores at frame 1, class 1",
        ),
        (np.ones((2, 2), np.float32), ["a", "b"], {"threshold": [0.1]}, "one number or 2"),
        (np.ones((2, 2), np.float32), ["a", "b"], {"threshold": float("nan")}, "threshold is NaN"),
        (np.ones((2, 2), np.float32), ["a", "b"], {"median_frames": 0}, "whole number from 1"),
        (np.ones((2, 2), np.float32), ["a", "b"], {"median_frames": 2.5}, "whole number from 1"),
        (np.ones((2, 2), np.float32), ["a", "b"], {"median_frames": 10**30}, "from 1 to 90000"),
        (np.ones((2, 2), np.float32), ["a", "b"], {"duration_s": -1}, "duration_s is a time"),
        (np.ones((2, 2), np.float32), ["a", "b"], {"min_duration_s": np.nan}, "min_duration_s is"),
    ],
)
def test_wrong_scores_are_refused(scores, labels, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        scores_to_events(scores, labels, **options)


# ---- events -> frames


def test_encode_equals_reference(reference) -> None:
    facts, arrays = reference
    labels = facts["encode"]["labels"]
    for name, rows in facts["encode"]["cases"].items():
        targets = events_to_frames([(on, off, label) for label, on, off in rows], labels, 250)
        assert targets.dtype == np.float32
        assert np.array_equal(targets.T, arrays[f"encode.{name}"]), name
    rows = [Event(on, off, label, c) for label, on, off, c in facts["encode"]["confidence_case"]]
    assert np.array_equal(
        events_to_frames(rows, labels, 250, soft=True).T, arrays["encode.confidence"]
    )


def test_encoded_times_equal_reference(reference) -> None:
    _, arrays = reference
    times = arrays["encode.times"]
    onsets = arrays["encode.times_onset_frame"]
    offsets = arrays["encode.times_offset_frame"]
    for time, onset, offset in zip(times, onsets, offsets, strict=True):
        from_here = events_to_frames([(time, 20.0, "a")], ["a"], 260)[:, 0]
        assert np.array_equal(from_here, np.arange(260) >= onset), time
        until_here = events_to_frames([(0.0, time, "a")], ["a"], 260)[:, 0]
        assert np.array_equal(until_here, np.arange(260) < offset), time
    frames = np.arange(len(arrays["encode.frame_to_time"]))
    assert np.array_equal(ev.frame_times(frames, 10.0), arrays["encode.frame_to_time"])


def test_float_rounding_is_the_references() -> None:
    assert events_to_frames([(8.04, 9.0, "a")], ["a"], 250)[:, 0].argmax() == 200
    assert events_to_frames([(8.12, 9.0, "a")], ["a"], 250)[:, 0].argmax() == 202


def test_label_transform_equals_reference(reference, shared) -> None:
    facts, arrays = reference
    classes = json.loads((shared / "parity" / "audioset_strong_classes.json").read_text())
    labels = classes["as_strong_train_classes"]
    case = facts["label_transform"]
    events = [(on, off, label) for label, on, off in case["events"]]
    merged = merge_events(events)
    assert sorted(event[:3] for event in merged) == sorted(
        (on, off, label) for label, on, off in case["merged"]
    )
    targets = events_to_frames(merged, labels, 250, ignore_unknown=True)
    assert np.array_equal(targets.T, arrays["label_transform.strong"])
    assert np.array_equal(targets.sum(axis=0), arrays["label_transform.event_count"])
    with pytest.raises(ValueError, match="no class 'not a class of the list' among the 447"):
        events_to_frames(merged, labels, 250)


EVENTS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 20), st.sampled_from(LABELS)).map(
        lambda e: Event(e[0] * 4 / 100, (e[0] + e[1]) * 4 / 100, e[2])
    ),
    max_size=12,
)


@given(EVENTS)
@settings(max_examples=200, deadline=None)
def test_merging_changes_no_frame_and_leaves_nothing_to_merge(events) -> None:
    merged = merge_events(events)
    assert merge_events(reversed(merged)) == merged
    assert np.array_equal(
        events_to_frames(merged, LABELS, 80), events_to_frames(events, LABELS, 80)
    )
    for label in LABELS:
        row = [event for event in merged if event.label == label]
        assert all(a.offset_s < b.onset_s for a, b in zip(row, row[1:], strict=False))


@given(hnp.arrays(bool, st.tuples(st.integers(1, 700), st.integers(1, 5))))
@settings(max_examples=200, deadline=None)
def test_decoded_events_encode_to_the_same_frames(active) -> None:
    """Up to the reference's float rounding, which adds a frame at some onsets and offsets."""
    labels = LABELS[: active.shape[1]]
    found = scores_to_events(active.astype(np.float32), labels)
    back = events_to_frames(found, labels, len(active)) > 0.5
    assert back[active].all()
    frames = np.arange(len(active) + 1)
    position = frames * 4 / 100 * 16000 / 640
    early, late = position.astype(int) < frames, np.ceil(position) > frames
    for frame, number in np.argwhere(back & ~active):
        begins = frame + 1 < len(active) and active[frame + 1, number] and early[frame + 1]
        ends = frame > 0 and active[frame - 1, number] and late[frame]
        assert begins or ends


@pytest.mark.parametrize("n", [1, 7, 250])
def test_random_events_decode_to_themselves(n) -> None:
    rng = np.random.default_rng(n)
    targets = rng.random((n, 6)) < 0.5
    found = scores_to_events(targets.astype(np.float64), LABELS[:6])
    assert merge_events(found) == found
    assert {event.score for event in found} <= {1.0}


def test_wrong_events_are_refused() -> None:
    with pytest.raises(ValueError, match="no class 'alarn' among the 8 classes.*'Alarm'"):
        events_to_frames([(0, 1, "alarn")], LABELS, 5)
    with pytest.raises(ValueError, match="without finite times"):
        events_to_frames([(0, float("inf"), "Alarm")], LABELS, 5)
    with pytest.raises(ValueError, match="without finite times"):
        merge_events([(float("nan"), 1, "Alarm")])


def test_label_indices_keep_the_given_order() -> None:
    assert ev.label_indices(LABELS, ["Wind", "Alarm"]) == [7, 0]
    with pytest.raises(ValueError, match="nearest is 'Speech'"):
        ev.label_indices(LABELS, ["speach"])


# ---- files

NAMES = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=12)
FILES = st.dictionaries(
    NAMES,
    st.lists(
        st.builds(
            Event,
            st.integers(0, 10**7).map(lambda n: n / 16000),
            st.integers(0, 10**7).map(lambda n: n / 16000),
            NAMES | st.sampled_from(['a "b"', "tab\there", "line\nbreak", "Speech, female"]),
            st.floats(0, 1),
        ),
        max_size=4,
    ),
    max_size=4,
)


@given(FILES)
@settings(max_examples=100, deadline=None)
def test_tsv_round_trip(tmp_path_factory, files) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.tsv"
    ev.write_tsv(path, files)
    back = ev.read_tsv(path)
    assert list(back) == list(files)
    for name, rows in files.items():
        assert [event.label for event in back[name]] == [event.label for event in rows]
        for given_, expected in zip(back[name], rows, strict=True):
            assert given_[:2] + given_[3:] == pytest.approx(expected[:2] + expected[3:], abs=1e-6)


def test_tsv_is_readable_by_others(tmp_path) -> None:
    path = tmp_path / "events.tsv"
    ev.write_tsv(path, {"a.wav": [Event(0.0, 23.70006, "Bark", 0.123456789)], "b.wav": []})
    assert path.read_text() == (
        "filename\tonset\toffset\tevent_label\tscore\na.wav\t0.0\t23.70006\tBark\t0.123457\n"
        "b.wav\t\t\t\t\n"
    )
    path.write_text("filename\tonset\toffset\tevent_label\nx.wav\t1\t2\tBark\n")
    assert ev.read_tsv(path) == {"x.wav": [Event(1.0, 2.0, "Bark", 1.0)]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "no column 'filename'"),
        ("", "no column 'filename'"),
        ("filename\tonset\toffset\tevent_label\na.wav\tx\t2\tBark\n", "line 2 is no event"),
        ("filename\tonset\toffset\tevent_label\na.wav\t1\t\tBark\n", "line 2 is no event"),
        ("filename\tonset\toffset\tevent_label\na.wav\t1\t2\n", "line 2 is no event"),
        ("filename\tonset\toffset\tevent_label\na.wav\tnan\t2\tBark\n", "line 2 is no event"),
    ],
)
def test_wrong_tsv_is_refused(tmp_path, text, message) -> None:
    path = tmp_path / "events.tsv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"events.tsv: {message}"):
        ev.read_tsv(path)


def test_json_audacity_and_scores(tmp_path) -> None:
    events = [Event(0.04, 1.2, "Tür\tzu", 0.75)]
    ev.write_json(tmp_path / "a.json", events, filename="a.wav", duration_s=2.0)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {
        "filename": "a.wav",
        "duration_s": 2.0,
        "events": [{"onset_s": 0.04, "offset_s": 1.2, "label": "Tür\tzu", "score": 0.75}],
    }
    ev.write_audacity(tmp_path / "a.txt", events)
    assert (tmp_path / "a.txt").read_text("utf-8") == "0.040000\t1.200000\tTür zu\n"
    for scores in (np.float16([[0.5, 0.25]]), np.float32([[0.1, 0.2]]), torch.rand(3, 2)):
        ev.write_scores(tmp_path / "a.npz", scores, ["x", "y"])
        with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
            assert np.array_equal(file["scores"], np.asarray(scores))
            assert file["scores"].dtype == np.asarray(scores).dtype
            assert (file["labels"].tolist(), float(file["hop_s"])) == (["x", "y"], 0.04)
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.npz", "a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_writing_leaves_the_old_file(tmp_path, error) -> None:
    path = tmp_path / "events.tsv"
    path.write_text("old")

    def rows():
        yield Event(0.0, 1.0, "Bark")
        raise error

    with pytest.raises(error):
        ev.write_tsv(path, {"a.wav": rows()})
    with pytest.raises(error):
        ev.write_audacity(path, rows())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["events.tsv"]
