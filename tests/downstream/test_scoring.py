from __future__ import annotations

import csv
import gzip
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings

from downstream.metrics import (
    PSDS1,
    event_f1,
    intersection_f1,
    psds,
    segment_error_rate,
    segment_f1,
)
from downstream.resampled import psds_draws
from downstream.scoring import METRICS, Sample, get_metric, main_score, score_task
from downstream.tasks.task import Clip, Task
from hear_pretrainedsed.events import merge_events
from tests.downstream.metric_oracles import (
    EVENTS,
    GOLDEN,
    LABELS,
    EventDict,
    approx,
    from_table,
    share_a_file,
)
from tests.downstream.small_task import small_task, some_found

HEAR = (
    "event_onset_200ms_fms",
    "event_onset_50ms_fms",
    "event_onset_offset_50ms_20perc_fms",
    "segment_1s_er",
)
BY_EVENTS = {
    "event_onset_200ms_fms": lambda a, b: event_f1(a, b, 0.2, labels=LABELS),
    "event_onset_50ms_fms": lambda a, b: event_f1(a, b, 0.05, labels=LABELS),
    "event_onset_offset_50ms_20perc_fms": lambda a, b: event_f1(a, b, 0.05, 0.2, labels=LABELS),
    "segment_1s_er": lambda a, b: segment_error_rate(a, b, labels=LABELS),
    "segment_1s_f1": lambda a, b: segment_f1(a, b, labels=LABELS),
    "collar_f1": lambda a, b: event_f1(a, b, 0.2, 0.2, labels=LABELS, zero_if_silent=True),
    "intersection_f1": lambda a, b: intersection_f1(joined(a), joined(b), labels=LABELS),
}


def joined(events: EventDict) -> EventDict:
    """Files in which events of a class overlap, as events that don't."""
    out = {}
    for file, rows in events.items():
        lasting = sorted((c, a, b) for a, b, c in rows if b > a)
        overlap = any(x[0] == y[0] and x[2] > y[1] for x, y in itertools.pairwise(lasting))
        out[file] = [event[:3] for event in merge_events(rows)] if overlap else rows
    return out


@pytest.mark.parametrize("name", BY_EVENTS)
@given(EVENTS, EVENTS)
@settings(max_examples=30, deadline=None)
def test_values_are_those_of_the_metrics(name: str, a: EventDict, b: EventDict) -> None:
    assume(share_a_file(a, b))
    score, wanted = METRICS[name].score(Sample(LABELS, a, b)), BY_EVENTS[name](a, b)
    assert (score.micro, score.macro) == (approx(wanted.micro), approx(wanted.macro))
    assert score.per_class == approx(wanted.per_class)


def test_desed_scores_are_the_published_ones(shared: Path) -> None:
    folder = shared / "data" / "metrics" / "desed_task_example"
    reference = from_table((folder / "validation.tsv").read_text())
    text = gzip.decompress((folder / "student_predictions_th0.5.csv.gz").read_bytes()).decode()
    lines = (folder / "validation_durations.tsv").read_text().splitlines()
    rows = csv.reader(lines[1:], delimiter="\t")
    durations = {name: float(seconds) for name, seconds in rows}
    labels = sorted({event[2] for row in reference.values() for event in row})
    expected = json.loads((GOLDEN / "expected.json").read_text())["desed_task_example"]
    sample = Sample(labels, reference, from_table(text, ","), {}, durations)
    recomputed = expected["recomputed"]["student"]
    assert METRICS["intersection_f1"].value(sample) == approx(
        recomputed["intersection macro F1 (.5/.5/.3)"]
    )
    assert METRICS["collar_f1"].value(sample) == approx(
        recomputed["onset+offset 200 ms/20 %"]["event_f1_macro"]
    )
    assert METRICS["collar_f1"].value(sample) == pytest.approx(
        expected["published"]["student"]["event_f1_macro"], abs=1e-3
    )


def test_every_metric_has_one_way_to_be_better_and_a_headline() -> None:
    assert [name for name, m in METRICS.items() if not m.maximize] == ["segment_1s_er"]
    macro = {"intersection_f1", "collar_f1", "segment_auroc", "frame_map"}
    assert {name for name, m in METRICS.items() if m.headline == "macro"} == macro
    assert {name for name, m in METRICS.items() if m.needs == "scores"} == {
        "psds1",
        "psds1_macro",
        "psds2",
        "segment_auroc",
        "frame_map",
    }


def repeated(sample: Sample, times: np.ndarray) -> Sample:
    """File i as often as `times[i]` under names of its own."""
    rows = zip(sample.reference, times, strict=True)
    names = {f"{j}/{file}": file for file, n in rows for j in range(n)}
    parts = (sample.reference, sample.events, sample.scores, sample.durations_s)
    return Sample(sample.labels, *({new: p[old] for new, old in names.items()} for p in parts))


def sample_of(task: Task, found: Any) -> Sample:
    return Sample.of(task, task.clips(task.splits), found.scores, found.events)


@pytest.mark.parametrize("n_levels", [None, 30])
@pytest.mark.parametrize("name", [name for name in METRICS if name != "segment_auroc"])
def test_draws_are_values_of_repeated_files(name: str, n_levels: int | None) -> None:
    rng = np.random.default_rng(5)
    task = small_task(rng, (name,), n_clips=7, n_labels=4, n_events=3)
    sample = sample_of(task, some_found(rng, task, 0.7, n_levels))
    # Of a length at which PSDS counts some false positives: 100 an hour.
    sample = replace(sample, durations_s={file: 60.0 + int(file[2]) for file in sample.events})
    weights = rng.multinomial(7, np.full(7, 1 / 7), size=12)
    score, draws = METRICS[name].measure(sample, weights)
    assert score == METRICS[name].score(sample) and len(draws) == len(weights)
    wanted = [METRICS[name].value(repeated(sample, row)) for row in weights]
    assert draws == pytest.approx(wanted, abs=1e-9, nan_ok=True)
    assert len({round(value, 6) for value in wanted}) > 6


@pytest.mark.parametrize(
    "setting",
    [
        {"dtc": 0.3, "gtc": 0.3, "alpha_st": 0.0, "max_efpr": 200.0},
        {"dtc": 0.3, "gtc": 0.3, "alpha_st": 0.5, "max_efpr": 600.0},
        {"dtc": 0.5, "gtc": 0.2, "cttc": 0.1, "alpha_ct": 1.0, "alpha_st": 0.3, "max_efpr": 900.0},
    ],
)
def test_psds_draws_of_poor_scores(setting: dict[str, float]) -> None:
    rng = np.random.default_rng(2)
    task = small_task(rng, ("psds1",), n_clips=25, n_events=2, duration_s=10.0)
    sample = sample_of(task, some_found(rng, task, 0.9, 200))
    weights = np.vstack((np.ones(25, int), rng.multinomial(25, np.full(25, 1 / 25), size=12)))

    def facts(part: Sample) -> tuple[Any, ...]:
        return part.scores, 0.04, part.labels, part.reference, part.durations_s

    draws = psds_draws(*facts(sample), weights, **setting)
    wanted = [psds(*facts(repeated(sample, row)), **setting).micro for row in weights]
    assert 0.05 < min(wanted) and max(wanted) < 0.98
    assert draws == pytest.approx(wanted, abs=1e-9)


def test_psds_draws_up_to_the_last_false_positive_that_counts() -> None:
    """One peak a clip, so that each clip without the class adds one false positive at most."""
    rng = np.random.default_rng(0)
    peak = 1 - np.abs(np.arange(250) - 50) / 250
    scores = {str(i): (h * peak)[:, None] for i, h in enumerate(rng.uniform(0.2, 0.9, 40))}
    events = {name: [(0.0, 10.0, "a")] if int(name) % 2 else [] for name in scores}
    durations = dict.fromkeys(scores, 10.0)
    weights = rng.multinomial(40, np.full(40, 1 / 40), size=20)
    setting = {"dtc": 0.1, "gtc": 0.01, "max_efpr": 75.0}  # 8 in 400 s
    draws = psds_draws(scores, 0.04, ["a"], events, durations, weights, **setting)
    sample = Sample(["a"], events, dict.fromkeys(scores, ()), scores, durations)
    for row, draw in zip(weights, draws, strict=True):
        part = repeated(sample, row)
        facts = (part.scores, 0.04, ["a"], part.reference, part.durations_s)
        assert draw == pytest.approx(psds(*facts, **setting).micro, abs=1e-9)
    assert 0.05 < min(draws) < max(draws) < 0.95


def test_a_draw_without_reference_events_has_no_value() -> None:
    rng = np.random.default_rng(0)
    task = small_task(rng, ("psds1",), n_clips=2)
    first, second = task.splits["fold0"]
    task = replace(task, splits={"fold0": (first, replace(second, events=()))})
    sample = sample_of(task, some_found(rng, task))
    for name in ("psds1", "psds2", "frame_map", "collar_f1"):
        _, draws = METRICS[name].measure(sample, np.array([[0, 2], [2, 0]]))
        assert np.isnan(draws).tolist() == [True, False], name


def test_a_task_is_the_mean_over_rotations() -> None:
    rng = np.random.default_rng(1)
    task = small_task(rng, ("psds1", "segment_1s_er", "collar_f1"), n_folds=3, n_labels=30)
    found = some_found(rng, task, 0.3)
    scored = score_task(task, found)
    assert list(scored) == list(task.metrics)
    for name, result in scored.items():
        parts = []
        for rotation in task.rotations:
            clips = task.clips(rotation.test)
            sample = Sample.of(task, clips, found.scores, found.events)
            parts.append(METRICS[name].score(sample))
        assert result.micro == approx(np.mean([part.micro for part in parts]))
        assert result.macro == approx(np.mean([part.macro for part in parts]))
        assert result.value == getattr(result, METRICS[name].headline)
        for label in task.labels:
            known = [p.per_class[label] for p in parts if not np.isnan(p.per_class[label])]
            assert result.per_class[label] == approx(np.mean(known) if known else np.nan)
    assert not np.isnan(result.macro) and np.isnan(list(result.per_class.values())).any()
    assert result.sampling.n_units == 18 and result.sampling.n_strata == 3
    assert abs(scored["psds1"].draws.mean() - scored["psds1"].value) < 0.1


def test_equal_units_have_equal_draws_whoever_is_scored() -> None:
    rng = np.random.default_rng(1)
    task = small_task(rng, ("event_onset_200ms_fms",), n_clips=12, clips_a_unit=3)
    one, other = (score_task(task, some_found(rng, task, noise)) for noise in (0.5, 2.0))
    same = score_task(task, some_found(np.random.default_rng(9), task, 0.5))
    again = score_task(task, some_found(np.random.default_rng(9), task, 0.5))
    name = task.metrics[0]
    assert np.array_equal(same[name].draws, again[name].draws)
    assert one[name].sampling == other[name].sampling and one[name].sampling.n_units == 4
    assert len(set(one[name].draws.tolist())) <= 35  # multisets of 4 out of 4 scenes


def test_main_score_is_the_headline_of_the_first_metric() -> None:
    rng = np.random.default_rng(1)
    task = small_task(rng, ("collar_f1", "psds1"))
    found, clips = some_found(rng, task), task.splits["fold0"]
    wanted = METRICS["collar_f1"].score(sample_of(task, found)).macro
    assert main_score(task, clips, found.scores, found.events) == wanted


def test_overlapping_events_of_a_class_are_joined_for_psds_and_intersections() -> None:
    rng = np.random.default_rng(1)
    task = small_task(rng, ("psds1", "intersection_f1"), n_clips=1)
    (clip,) = task.splits["fold0"]

    def scored(*events: tuple[float, float, str]) -> list[float]:
        clips = (replace(clip, events=events),)
        found = some_found(np.random.default_rng(3), replace(task, splits={"fold0": clips}), 0.2)
        found = replace(found, events={clip.file: [(0.9, 2.1, "class0"), (1.0, 2.2, "class0")]})
        score = score_task(replace(task, splits={"fold0": clips}), found)
        return [one.value for one in score.values()]

    apart = (3.0, 3.5, "class1")
    whole = scored((1.0, 2.0, "class0"), apart)
    assert scored((1.0, 1.7, "class0"), (1.5, 2.0, "class0"), apart)[1] == whole[1] == 0.5
    psds1 = psds({"f": np.ones((100, 1))}, 0.04, ["a"], {"f": [(0, 4, "a")]}, {"f": 4.0}, **PSDS1)
    assert psds1.micro == 1.0
    assert 0 <= scored((1.0, 1.7, "class0"), (1.5, 2.0, "class0"), apart)[0] <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": {}}, "6 clips without scores, the first: '0_0.wav'"),
        ({"events": {}}, "6 clips without events"),
        ({"folds": ()}, "a rotation without test clips"),
        ({"folds": ((), ("0_0.wav",))}, "a rotation without test clips"),
        ({"folds": (("other.wav",),)}, "no clip 'other.wav' in it"),
    ],
)
def test_what_a_protocol_leaves_out_is_refused(change: dict[str, Any], message: str) -> None:
    rng = np.random.default_rng(1)
    task = small_task(rng, ("event_onset_200ms_fms",))
    with pytest.raises(ValueError, match=message):
        score_task(task, replace(some_found(rng, task), **change))


def test_unknown_metrics_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="metric 'psds_1'; did you mean 'psds1'"):
        get_metric("psds_1")
    with pytest.raises(ValueError, match="of scores, not of events"):
        METRICS["psds1"].micro_of_events({}, {}, ["a"])


def hear_rows(events: EventDict) -> dict[str, list[dict[str, Any]]]:
    return {
        file: [{"label": c, "start": 1000 * a, "end": 1000 * b} for a, b, c in rows]
        for file, rows in events.items()
    }


@pytest.mark.hear
@pytest.mark.parametrize("seed", range(6))
def test_scores_are_those_of_stock_heareval(seed: int) -> None:
    available = pytest.importorskip("heareval.score").available_scores
    rng = np.random.default_rng(seed)
    sizes = {"n_folds": 1 + 2 * (seed % 2), "n_labels": 5, "n_clips": 5, "n_events": 20}
    task = small_task(rng, HEAR, duration_s=20.0, **sizes)
    found = some_found(rng, task, 0.5 * seed)
    scored = score_task(task, found)
    for name in HEAR:
        stock = available[name](label_to_idx={label: i for i, label in enumerate(task.labels)})
        assert stock.maximize == METRICS[name].maximize
        values = []
        for rotation in task.rotations:
            clips = task.clips(rotation.test)
            estimated = {clip.file: found.events[clip.file] for clip in clips}
            reference = {clip.file: list(clip.events) for clip in clips}
            values.append(stock(hear_rows(estimated), hear_rows(reference))[0][1])
        assert scored[name].value == pytest.approx(np.mean(values), rel=1e-12, abs=1e-12)


def large_task(rng: np.random.Generator) -> tuple[Task, dict[str, list]]:
    """MAESTRO's size: 5 folds of 37 pieces, each with 960 notes of 88 pitches in 120 s."""
    task = small_task(rng, ("event_onset_50ms_fms",), n_folds=5, n_clips=37, n_labels=88)
    events = {}

    def notes(clip: Clip) -> Clip:
        onsets = np.sort(rng.uniform(0, 119, 960))
        pitches = rng.integers(88, size=960)
        starts = zip(onsets.tolist(), pitches.tolist(), strict=True)
        rows = tuple((a, a + 0.5, f"class{pitch}") for a, pitch in starts)
        moved = rng.normal(0, 0.04, 960).clip(0)
        events[clip.file] = [
            (a + d, b + d, label) for (a, b, label), d in zip(rows, moved.tolist(), strict=True)
        ]
        return replace(clip, events=rows, duration_s=120.0)

    splits = {name: tuple(map(notes, clips)) for name, clips in task.splits.items()}
    return replace(task, splits=splits), events


@pytest.mark.slow
def test_maestro_is_scored_in_seconds() -> None:
    rng = np.random.default_rng(0)
    task, events = large_task(rng)
    metrics = ("event_onset_50ms_fms", "event_onset_offset_50ms_20perc_fms", "segment_1s_er")
    task = replace(task, facts=replace(task.facts, metrics=metrics))
    found = some_found(rng, small_task(rng, metrics, n_clips=1))
    folds = tuple(tuple(c.file for c in task.clips(r.test)) for r in task.rotations)
    scores = dict.fromkeys(events, np.zeros((1, 88), np.float32))
    start = time.process_time()
    scored = score_task(task, replace(found, folds=folds, events=events, scores=scores))
    assert time.process_time() - start < 20
    assert 0.1 < scored["event_onset_50ms_fms"].value < 0.99


@pytest.mark.slow
def test_psds_of_a_hundred_clips_is_drawn_in_seconds() -> None:
    rng = np.random.default_rng(0)
    task = small_task(
        rng, ("psds1", "psds2"), n_clips=100, n_labels=10, duration_s=10.0, n_events=3
    )
    found = some_found(rng, task, 2.0)
    start = time.process_time()
    scored = score_task(task, found)
    assert time.process_time() - start < 20
    assert all(len(one.draws) == 1000 for one in scored.values())


def test_the_plain_mean_over_classes_is_psds_without_its_penalty() -> None:
    task = small_task(np.random.default_rng(5), ("psds1",), n_clips=7, n_labels=4, n_events=3)
    sample = sample_of(task, some_found(np.random.default_rng(1), task, 0.7))
    penalised, plain = METRICS["psds1"].score(sample), METRICS["psds1_macro"].score(sample)
    assert plain.micro == pytest.approx(penalised.macro, abs=1e-12)
    assert plain.micro > penalised.micro


def test_segment_auroc_has_a_value_and_no_draws() -> None:
    task = small_task(np.random.default_rng(5), ("psds1",), n_clips=7, n_labels=4, n_events=3)
    sample = sample_of(task, some_found(np.random.default_rng(1), task, 0.7))
    score, draws = METRICS["segment_auroc"].measure(sample, np.ones((3, 7), int))
    assert 0 < score.macro <= 1 and not len(draws)
