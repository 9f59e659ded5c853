"""Segment AUROC against sed_scores_eval's, and against scikit-learn's partial area."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from downstream.metrics import Score, StreamedSegmentAUROC, segment_auroc
from downstream.metrics.segment_roc import partial_area
from tests.downstream.metric_oracles import EventDict, approx, joined

LABELS = ["a", "b", "c"]


class Case:
    """Scores of clips of any length, some shorter and some longer than their scores."""

    def __init__(self, seed: int, *, frame_s: float = 0.04, levels: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.frame_s = frame_s
        self.scores: dict[str, np.ndarray] = {}
        self.durations: dict[str, float] = {}
        self.reference: EventDict = {}
        for clip in range(12):
            n = int(rng.integers(5, 150))
            score = 2 * rng.standard_normal((n, len(LABELS)))
            events = []
            for i in range(int(rng.integers(0, 5)) if clip > 2 else 1):
                label = int(rng.integers(len(LABELS))) if clip > 2 else clip
                onset = round(float(rng.random()) * n * frame_s, int(rng.integers(0, 4)))
                offset = onset + round(2 * float(rng.random()), int(rng.integers(0, 4)))
                score[int(onset / frame_s) : int(offset / frame_s) + 1, label] += 1.5
                events.append((onset, offset if i else offset + 0.3, LABELS[label]))
            name = f"{clip}.wav"
            self.scores[name] = np.round(score * levels) / levels if levels else score
            more = rng.choice([0.0, -0.01, 0.01, 1.0, 2.5])
            self.durations[name] = float(max(n * frame_s + more, 0.1))
            self.reference[name] = events
        self.reference = joined(self.reference)

    def sides(self) -> tuple[Any, ...]:
        return (self.scores, self.frame_s, LABELS, self.reference, self.durations)

    def plain(self, segment_s: float, max_fpr: float | None) -> dict[str, float]:
        from sed_scores_eval import segment_based
        from sed_scores_eval.base_modules.scores import create_score_dataframe

        tables = {
            name: create_score_dataframe(s, np.arange(len(s) + 1) * self.frame_s, LABELS)
            for name, s in self.scores.items()
        }
        values, _ = segment_based.auroc(
            tables, self.reference, self.durations, segment_length=segment_s, max_fpr=max_fpr
        )
        return values


@pytest.mark.parametrize("max_fpr", [0.1, 0.37, None])
@pytest.mark.parametrize(
    ("frame_s", "segment_s"), [(0.04, 1.0), (0.064, 1.0), (0.3, 0.7), (1.0, 0.25)]
)
@pytest.mark.parametrize("levels", [0, 1])
def test_equal_to_sed_scores_eval(
    levels: int, frame_s: float, segment_s: float, max_fpr: float | None
) -> None:
    pytest.importorskip("sed_scores_eval")
    for seed in range(4):
        case = Case(seed, frame_s=frame_s, levels=levels)
        wanted = case.plain(segment_s, max_fpr)
        found = segment_auroc(*case.sides(), segment_s=segment_s, max_fpr=max_fpr)
        assert found.macro == approx(wanted.pop("mean"))
        assert found.per_class == approx(wanted)
        assert 0.05 < found.macro < 0.95


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=60),
    max_fpr=st.sampled_from([None, 0.05, 0.1, 0.5, 1.0]),
)
def test_mcclish_is_scikit_learns(rows: list[tuple[int, bool]], max_fpr: float | None) -> None:
    scores = np.array([score for score, _ in rows], np.float64)
    active = np.array([one for _, one in rows])
    found = partial_area(scores, active, max_fpr, mcclish=True)
    if active.all() or not active.any():
        assert math.isnan(found)
    else:
        assert found == approx(roc_auc_score(active, scores, max_fpr=max_fpr))


def test_a_known_answer() -> None:
    """Ten silent segments, two active: one above all of them, one below the highest."""
    scores = np.array([9.0, 5.0, 7.0, *range(-9, 0)])
    active = np.array([True, True, *[False] * 10])
    assert partial_area(scores, active, 0.1) == approx(0.5)
    assert partial_area(scores, active, 0.15) == approx((0.5 * 0.1 + 1.0 * 0.05) / 0.15)
    assert partial_area(scores, active, None) == approx(0.95)
    assert partial_area(scores, active, 1.0) == approx(0.95)
    tied = np.where(scores == 5, 7.0, scores)  # a staircase counts a tie as a miss
    assert partial_area(tied, active, 0.1) == approx(0.5)
    assert partial_area(tied, active, None, mcclish=True) == approx(0.975)


def test_segments_without_frames_score_zero_as_in_sed_scores_eval() -> None:
    scores = {"f": np.array([[-1.0], [-2.0]])}
    reference = {"f": [(2.5, 2.7, "a")]}
    sides = (scores, 1.0, ["a"], reference)
    assert segment_auroc(*sides, {"f": 3.0}, max_fpr=None).macro == 1.0
    scores["f"] += 5
    assert segment_auroc(*sides, {"f": 3.0}, max_fpr=None).macro == 0.0


def test_classes_that_are_nowhere_or_everywhere_are_nan() -> None:
    case = Case(0)
    expected = segment_auroc(*case.sides())
    labels = [*LABELS, "never", "always"]
    scores = {f: np.pad(s, ((0, 0), (0, 2))) for f, s in case.scores.items()}
    always = {f: [(0.0, d + 1, "always")] for f, d in case.durations.items()}
    reference = {f: [*rows, *always[f]] for f, rows in case.reference.items()}
    found = segment_auroc(scores, case.frame_s, labels, reference, case.durations)
    assert math.isnan(found.per_class.pop("never"))
    assert math.isnan(found.per_class.pop("always"))
    assert found.per_class == expected.per_class
    assert found.macro == expected.macro


def test_micro_pools_all_segments() -> None:
    case = Case(1)
    pooled = segment_auroc(*case.sides())
    scores, reference, durations = {}, {}, {}
    for f, score in case.scores.items():
        for i, label in enumerate(LABELS):
            scores[f"{f} {label}"] = score[:, [i]]
            durations[f"{f} {label}"] = case.durations[f]
            events = [(a, b, "any") for a, b, c in case.reference[f] if c == label]
            reference[f"{f} {label}"] = events
    again = segment_auroc(scores, case.frame_s, ["any"], reference, durations)
    assert again.macro == pooled.micro == again.micro


def test_overlapping_events_are_one_activity() -> None:
    case = Case(2)
    expected = segment_auroc(*case.sides())
    case.reference = {f: [e for e in rows for _ in "ab"] for f, rows in case.reference.items()}
    assert segment_auroc(*case.sides()) == expected


def streamed(case: Case, files: list[str], skipped: list[str] = ()) -> Score:  # type: ignore[assignment]
    stream = StreamedSegmentAUROC(case.frame_s, LABELS, case.reference, case.durations)
    for file in skipped:
        stream.skip(file)
    for file in files:
        stream.add(file, case.scores[file])
    return stream.result()


def test_streamed_in_any_order_and_precision() -> None:
    case = Case(3, levels=4)
    expected = segment_auroc(*case.sides())
    for i, file in enumerate(case.scores):
        case.scores[file] = case.scores[file].astype(("f2", "f4", "f8")[i % 3])
    assert streamed(case, list(case.scores)) == expected
    assert streamed(case, list(case.scores)[::-1]) == expected


def test_skipped_clips_are_no_part_of_the_set() -> None:
    case = Case(4)
    files = list(case.scores)
    found = streamed(case, files[::2], files[1::2])
    for file in files[1::2]:
        del case.scores[file], case.reference[file]
    assert found == segment_auroc(*case.sides())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": {"g": []}}, "no scores of 'g'"),
        ({"reference": {"f": [(0.0, 1.0, "x")]}}, "no class 'x' among the 1"),
        ({"scores": {"f": np.zeros((3, 2))}}, r"'f': scores \(3, 2\), wanted \(frames, 1\)"),
        ({"scores": {"f": np.array([[0.1], [np.nan]])}}, "'f': NaN in the scores"),
        ({"scores": {}, "reference": {}}, "no clips"),
        ({"durations_s": {}}, "no duration of 'f'"),
        ({"frame_s": -1.0}, "frame_s is a time above 0 seconds, got -1.0"),
        ({"segment_s": 0.0}, "segment_s is a time above 0 seconds, got 0.0"),
        ({"max_fpr": 0.0}, "max_fpr is None or above 0 and at most 1, got 0.0"),
        ({"max_fpr": 1.5}, "max_fpr is None or above 0 and at most 1, got 1.5"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "scores": {"f": np.zeros((3, 1))},
        "frame_s": 1.0,
        "labels": ["a"],
        "reference": {"f": [(0.0, 1.0, "a")]},
        "durations_s": {"f": 3.0},
    }
    segment_auroc(**good)
    with pytest.raises(ValueError, match=message):
        segment_auroc(**(good | changes))
