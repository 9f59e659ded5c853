from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from downstream.metrics import PSDS1, PSDS2, Score, psds, psds_from_events
from hear_pretrainedsed.events import scores_to_events
from tests.downstream.metric_oracles import EventDict, approx, joined

pytest.importorskip("sed_scores_eval")

FRAME_S = 0.04
SETTINGS: dict[str, dict[str, Any]] = {
    "psds1": PSDS1,
    "psds2": PSDS2,
    "no penalty": {"dtc": 0.5, "gtc": 0.5},
    "short curve": {"dtc": 0.1, "gtc": 0.1, "max_efpr": 1200.0, "alpha_st": 0.5},
    "long curve": {"dtc": 0.5, "gtc": 0.5, "max_efpr": 100_000.0, "alpha_st": 1.0},
}


class Case:
    """Scores of noise in which events stand out a little, and what they are scores of."""

    def __init__(self, seed: int, n_clips: int = 25, levels: int = 0, kind: str = "f4") -> None:
        rng = np.random.default_rng(seed)
        self.labels = [f"class {i}" for i in range(5)]
        self.scores: dict[str, np.ndarray] = {}
        self.reference: EventDict = {}
        for clip in range(n_clips):
            n = int(rng.integers(20, 60))
            score = rng.random((n, 5))
            score = (score + np.roll(score, 1, axis=0) + np.roll(score, 2, axis=0)) / 3
            events = []
            for _ in range(rng.integers(0, 4) if clip > 4 else 1):
                label = int(rng.integers(5)) if clip > 4 else clip
                first = int(rng.integers(0, n - 2))
                end = first + int(rng.integers(1, 15))
                score[first:end, label] += 0.6 * rng.random()
                onset = first * FRAME_S + 0.01 * rng.integers(0, 3)
                events.append((onset, end * FRAME_S + 0.01, self.labels[label]))
            score = np.round(score * levels) / levels if levels else score
            self.scores[f"{clip}.wav"] = score.astype(kind)
            self.reference[f"{clip}.wav"] = [e for e in events if e[1] > e[0]]
        self.reference = joined(self.reference)
        self.durations = {name: len(s) * FRAME_S for name, s in self.scores.items()}

    def ours(self, setting: Mapping[str, Any], **more: Any) -> Score:
        sides = (self.scores, FRAME_S, self.labels, self.reference, self.durations)
        return psds(*sides, **setting, **more)

    def plain(self, setting: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
        """sed_scores_eval alone, all clips in tables."""
        from sed_scores_eval.base_modules.scores import create_score_dataframe
        from sed_scores_eval.intersection_based import psds as theirs

        tables = {
            name: create_score_dataframe(s, np.arange(len(s) + 1) * FRAME_S, self.labels)
            for name, s in self.scores.items()
        }
        names = {key: f"{key}_threshold" for key in ("dtc", "gtc", "cttc")}
        setting = {names.get(key, key): value for key, value in setting.items()}
        value, per_class, *_ = theirs(tables, self.reference, self.durations, **setting)
        return value, per_class

    def check(self, setting: Mapping[str, Any], **more: Any) -> Score:
        value, per_class = self.plain(setting)
        score = self.ours(setting, **more)
        assert score.micro == approx(value)
        assert score.per_class == approx(per_class)
        assert score.macro == approx(np.mean([*per_class.values()]))
        return score


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("levels", "kind"), [(0, "f4"), (10, "f8"), (30, "f2")])
def test_equal_to_sed_scores_eval(name: str, levels: int, kind: str) -> None:
    for seed in range(3):
        Case(seed, 15 + 10 * seed, levels, kind).check(SETTINGS[name])


def test_cases_are_not_trivial() -> None:
    values = [Case(seed).check(SETTINGS["short curve"]).macro for seed in range(3)]
    assert all(0.05 < value < 0.95 for value in values)
    n_false = int(1200 * sum(Case(0).durations.values()) / 3600)
    assert n_false + 2 < len(Case(0).scores)  # so that changes are indeed left out


@pytest.mark.parametrize("name", ["psds1", "psds2", "short curve"])
def test_equal_in_worker_processes(name: str) -> None:
    case = Case(1)
    assert case.ours(SETTINGS[name], jobs=2) == case.ours(SETTINGS[name], jobs=1)


def test_a_file_is_asked_for_once() -> None:
    case = Case(3)

    class Lazy(Mapping[str, np.ndarray]):
        def __init__(self) -> None:
            self.asked: Counter[str] = Counter()

        def __getitem__(self, name: str) -> np.ndarray:
            self.asked[name] += 1
            return case.scores[name]

        def __iter__(self) -> Iterator[str]:
            return iter(case.scores)

        def __len__(self) -> int:
            return len(case.scores)

    lazy = Lazy()
    expected = case.ours(PSDS1)
    assert psds(lazy, FRAME_S, case.labels, case.reference, case.durations, **PSDS1) == expected
    assert set(lazy.asked.values()) == {1}


def test_scores_of_minus_infinity_are_never_detected() -> None:
    case = Case(4)
    for score in case.scores.values():
        score[score < 0.5] = -np.inf
    for name in ("short curve", "long curve"):
        assert case.check(SETTINGS[name]).macro > 0
    for score in case.scores.values():
        score[:] = -np.inf
    score = case.ours(PSDS1)
    assert (score.micro, score.macro) == (0, 0)


def test_only_the_order_of_scores_matters() -> None:
    case = Case(5, kind="f8")
    expected = case.ours(SETTINGS["short curve"])
    case.scores = {name: 10 * score - 5 for name, score in case.scores.items()}
    assert case.ours(SETTINGS["short curve"]) == expected


def test_equal_to_psds_from_events_at_all_thresholds() -> None:
    case = Case(6, n_clips=12, levels=12, kind="f8")
    case.reference = {
        name: [(round(a / 0.04) * 0.04, (round(b / 0.04) + 1) * 0.04, c) for a, b, c in rows]
        for name, rows in case.reference.items()
    }
    case.reference = joined(case.reference)
    thresholds = np.unique(np.concatenate([s.ravel() for s in case.scores.values()])) - 1e-9
    points = [
        {
            name: [e[:3] for e in scores_to_events(s, case.labels, threshold=float(t))]
            for name, s in case.scores.items()
        }
        for t in thresholds
    ]
    for dtc, alpha in ((0.333, 0.0), (0.123, 0.5)):
        setting = {"dtc": dtc, "gtc": 0.277, "max_efpr": 5000.0}
        setting |= {"cttc": 0.177, "alpha_ct": alpha} if alpha else {}
        score = case.ours(setting)
        again = psds_from_events(points, case.reference, case.durations, **setting)
        assert score.macro > 0.05
        assert again.micro == approx(score.micro)
        assert again.per_class == approx(score.per_class)


def test_classes_without_reference_events_count_nowhere() -> None:
    for setting in (PSDS1, PSDS2, SETTINGS["short curve"]):
        case = Case(7)
        expected = case.ours(setting)
        rng = np.random.default_rng(0)
        case.labels.insert(2, "never")
        case.scores = {
            name: np.insert(score, 2, rng.random(len(score)), axis=1)
            for name, score in case.scores.items()
        }
        score = case.ours(setting)
        assert math.isnan(score.per_class.pop("never"))
        assert score == expected


def test_labels_of_any_text() -> None:
    case = Case(8)
    expected = case.ours(SETTINGS["short curve"])
    names = dict(zip(case.labels, ["onset", "offset", "a\\b", "", "Ä, ö"], strict=True))
    case.labels = list(names.values())
    case.reference = {
        file: [(a, b, names[label]) for a, b, label in row] for file, row in case.reference.items()
    }
    score = case.ours(SETTINGS["short curve"])
    assert [*score.per_class.values()] == [*expected.per_class.values()]


def test_silent_clips_need_no_entry_and_durations_may_be_more() -> None:
    case = Case(9)
    expected = case.ours(PSDS1 | {"max_efpr": 3000.0})
    case.reference = {name: rows for name, rows in case.reference.items() if rows}
    case.durations["other.wav"] = 1e6
    assert case.ours(PSDS1 | {"max_efpr": 3000.0}) == expected


def test_reference_events_without_length_are_left_out() -> None:
    case = Case(10)
    expected = case.ours(SETTINGS["short curve"])
    case.reference["7.wav"] = [*case.reference["7.wav"], (0.0, 0.0, "class 0")]
    assert case.ours(SETTINGS["short curve"]) == expected


def test_a_known_answer() -> None:
    """A hit at the highest threshold, then a false positive in 72 s of sound: 50 an hour."""
    scores = {"f": np.zeros((900, 1)), "g": np.zeros((900, 1))}
    scores["f"][100:200] = 0.9
    scores["f"][500:600] = 0.5
    scores["g"][0:10] = 0.8
    reference = {"f": [(4.0, 8.0, "a"), (20.0, 24.0, "a")]}
    durations = {"f": 36.0, "g": 36.0}
    score = psds(scores, FRAME_S, ["a"], reference, durations, 0.7, 0.7)
    assert score.micro == approx((50 * 0.5 + 50 * 1.0) / 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": {"g": []}}, "no scores of 'g'"),
        ({"reference": {"f": []}}, "no reference events"),
        ({"reference": {"f": [(0.0, 1.0, "x")]}}, "reference, 'f': no class 'x' among the 1"),
        ({"reference": {"f": [(2.0, 1.0, "a")]}}, "0 <= onset <= offset"),
        (
            {"reference": {"f": [(0.0, 1.0, "a"), (1.0, 2.0, "a")]}},
            "overlap or touch: 'a at 1 s in f'; .*merge_events",
        ),
        ({"scores": {"f": np.zeros((3, 2))}}, r"'f': scores \(3, 2\), wanted \(frames, 1\)"),
        ({"scores": {"f": np.zeros((0, 1))}}, r"'f': scores \(0, 1\)"),
        ({"scores": {"f": np.zeros((3, 1), int)}}, "'f': scores are floating point, got int64"),
        ({"scores": {"f": np.array([[0.1], [np.nan]])}}, "'f': NaN in the scores"),
        ({"scores": {}}, "no scores of 'f'"),
        ({"durations_s": {}}, "no duration of 'f'"),
        ({"durations_s": {"f": -1.0}}, "the duration of 'f' is -1.0"),
        ({"frame_s": 0.0}, "frame_s is a time above 0 seconds, got 0.0"),
        ({"jobs": 0}, "jobs is a number from 1, got 0"),
        ({"gtc": -0.1}, "gtc is from 0 to 1, got -0.1"),
        ({"alpha_ct": 0.5}, "alpha_ct = 0.5 needs a cttc"),
        ({"alpha_ct": 0.5, "cttc": 2.0}, "cttc is from 0 to 1"),
        ({"max_efpr": float("inf")}, "max_efpr is finite"),
        ({"labels": ["a", "a"]}, "labels given twice: 'a'"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "scores": {"f": np.zeros((3, 1))},
        "frame_s": 1.0,
        "labels": ["a"],
        "reference": {"f": [(0.0, 1.0, "a")]},
        "durations_s": {"f": 3.0},
        "dtc": 0.5,
        "gtc": 0.5,
    }
    psds(**good)
    with pytest.raises(ValueError, match=message):
        psds(**(good | changes))


def test_an_error_in_a_worker_is_the_same_error() -> None:
    case = Case(11)
    case.scores["20.wav"][3, 2] = np.nan
    with pytest.raises(ValueError, match="'20.wav': NaN in the scores"):
        case.ours(PSDS1, jobs=2)
