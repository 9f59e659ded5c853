"""Every value of the metric fixtures: recomputed ones exactly, published ones to their rounding."""

from __future__ import annotations

import gzip
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import pytest

from downstream.metrics import (
    PSDS1,
    PSDS2,
    event_error_rate,
    event_f1,
    intersection_f1,
    psds_from_events,
    segment_accuracy,
    segment_error_rate,
    segment_f1,
)
from tests.downstream.metric_oracles import (
    GOLDEN,
    EventDict,
    approx,
    from_rows,
    from_table,
    joined,
)

EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
DESED = EXPECTED["desed_task_example"]
# Published values that the released files do not give, and what they give. The report counts one
# hit of Running_water less; of PSDS2 no cause is known.
NOT_REPRODUCIBLE = {"event_f1_macro": 0.3987, "event_f1_micro": 0.4095, "psds2": 0.5281}


def durations(text: str) -> dict[str, float]:
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return {name: float(seconds) for name, seconds in rows}


def operating_points(path: Path) -> list[EventDict]:
    with tarfile.open(path) as tar:
        members = [m for m in tar.getmembers() if m.isfile()]
        return [from_table(tar.extractfile(m).read().decode()) for m in members]


def desed(shared: Path, who: str) -> tuple[EventDict, EventDict, dict[str, float]]:
    folder = shared / "data" / "metrics" / "desed_task_example"
    reference = from_table((folder / "validation.tsv").read_text())
    text = gzip.decompress((folder / f"{who}_predictions_th0.5.csv.gz").read_bytes()).decode()
    seconds = durations((folder / "validation_durations.tsv").read_text())
    return reference, from_table(text, ","), seconds


def test_golden_copies_are_the_shared_files(shared: Path) -> None:
    folder = shared / "data" / "metrics"
    sources = {
        "sed_eval": folder / "sed_eval_example",
        "psds_eval": folder / "psds_eval_example" / "unit",
        ".": folder,
    }
    for name, source in sources.items():
        for path in (GOLDEN / name).iterdir():
            if path.is_file() and path.name != "LICENSES.txt":
                assert path.read_bytes() == (source / path.name).read_bytes(), path.name


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_desed_events_and_segments(shared: Path, who: str) -> None:
    reference, estimated, _ = desed(shared, who)
    sides = (reference, estimated)
    both = event_f1(*sides, 0.2, 0.2, zero_if_silent=True)
    onset = event_f1(*sides, 0.2, zero_if_silent=True)
    segment = segment_f1(*sides)
    values: dict[str, dict[str, float]] = {
        "onset+offset 200 ms/20 %": {
            "event_f1_macro": both.macro,
            "event_f1_micro": both.micro,
            "event_er": event_error_rate(*sides, 0.2, 0.2).micro,
            "segment_f1_macro": segment.macro,
            "segment_f1_micro": segment.micro,
            "segment_er": segment_error_rate(*sides).micro,
        },
        "onset only 200 ms": {
            "event_f1_macro": onset.macro,
            "event_f1_micro": onset.micro,
            "event_er": event_error_rate(*sides, 0.2).micro,
        },
    }
    # Greedy matching happens to give the same counts here; it is not offered.
    both_events = {k: v for k, v in values["onset+offset 200 ms/20 %"].items() if "event" in k}
    values["onset+offset 200 ms/20 %, greedy matching"] = both_events
    recomputed = DESED["recomputed"][who]
    assert values == approx_tree({name: recomputed[name] for name in values})


def approx_tree(tree: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {name: approx(row) for name, row in tree.items()}


def test_desed_intersections(shared: Path) -> None:
    reference, estimated, seconds = desed(shared, "student")
    score = intersection_f1(reference, estimated, durations_s=seconds)
    assert score.macro == approx(DESED["recomputed"]["student"]["intersection macro F1 (.5/.5/.3)"])


@pytest.mark.slow
def test_desed_psds_at_50_thresholds(shared: Path) -> None:
    pytest.importorskip("sed_scores_eval")
    reference, _, seconds = desed(shared, "student")
    folder = shared / "data" / "metrics" / "desed_task_example"
    points = operating_points(folder / "student_operating_points.tar.xz")
    assert len(points) == 50
    recomputed = DESED["recomputed"]["student"]
    for name, preset in (("psds1", PSDS1), ("psds2", PSDS2)):
        (value,) = (v for k, v in recomputed.items() if k.startswith(name))
        assert psds_from_events(points, reference, seconds, **preset).micro == approx(value)


@pytest.mark.slow
def test_dcase_2019_psds_at_10_thresholds(shared: Path) -> None:
    """Published: 0.40813, by a version that took same-class events that overlap."""
    pytest.importorskip("sed_scores_eval")
    folder = shared / "data" / "metrics" / "psds_eval_example"
    reference, meta = (
        lzma.decompress((folder / f"dcase2019t4_{name}.csv.xz").read_bytes()).decode()
        for name in ("gt", "meta")
    )
    points = operating_points(folder / "dcase2019_baseline_operating_points.tar.xz")
    with pytest.raises(ValueError, match="overlap: .*merge_events"):
        psds_from_events(points, from_table(reference), durations(meta), 0.5, 0.5)
    points = [joined(point) for point in points]
    score = psds_from_events(points, joined(from_table(reference)), durations(meta), 0.5, 0.5)
    recomputed = EXPECTED["psds_eval_example"]["recomputed"]
    assert score.micro == approx(recomputed["psds, overlapping same-class events joined"])
    published = EXPECTED["psds_eval_example"]["published"]
    (value,) = (v for k, v in published.items() if k.startswith("psds "))
    assert score.micro == pytest.approx(value, abs=0.0011)


def test_a_toy_case_of_psds_eval() -> None:
    pytest.importorskip("sed_scores_eval")
    folder = GOLDEN / "psds_eval"
    reference, point = (from_table((folder / f"test_1.{s}").read_text()) for s in ("gt", "det"))
    seconds = durations((folder / "test.metadata").read_text())
    published = EXPECTED["psds_eval_example"]["published"]
    (value,) = (v for k, v in published.items() if k.startswith("unit/"))
    score = psds_from_events([point], reference, seconds, 0.5, 0.5, cttc=0.3)
    assert score.micro == approx(value)


def test_street_scenes() -> None:
    folder = GOLDEN / "sed_eval"
    reference = from_rows(folder / "street_fold1_reference.txt", (2, 3, 4, 0))
    estimated = from_rows(folder / "street_fold1_detected.txt", (1, 2, 3, 0))
    accuracy = segment_accuracy(reference, estimated).micro
    rate = segment_error_rate(reference, estimated).micro
    recomputed = EXPECTED["sed_eval_example"]["recomputed"]["street_fold1"]
    assert {"accuracy": accuracy, "error_rate": rate} == approx(recomputed)
    published = EXPECTED["sed_eval_example"]["published"]
    assert accuracy == pytest.approx(published["street_fold1 segment accuracy (1 s)"], abs=1e-11)
    assert rate == approx(published["street_fold1 segment error rate (1 s)"])


@pytest.mark.parametrize("name", ["office_snr0_high_v2", "office_snr0_med_v2"])
def test_office_scenes(name: str) -> None:
    folder = GOLDEN / "sed_eval"
    sides = [from_rows(folder / f"{name}{end}.txt", (0, 1, 2)) for end in ("", "_detected")]
    values = {
        "event_onset_200ms_f1": event_f1(*sides).micro,
        "segment_1s_er": segment_error_rate(*sides).micro,
        "segment_1s_f1": segment_f1(*sides).micro,
    }
    assert values == approx(EXPECTED["sed_eval_example"]["recomputed"][name])


@pytest.mark.parametrize("order", ["a", "b"])
def test_the_order_of_events_does_not_cost_a_match(order: str) -> None:
    """sed_eval's example of what greedy matching gets wrong: 1.75 s could take either."""
    folder = GOLDEN / "sed_eval"
    reference = from_rows(folder / "mini_reference.txt", (0, 1, 2))
    estimated = from_rows(folder / f"mini_detected_{order}.txt", (0, 1, 2))
    assert event_f1(reference, estimated, 0.5).micro == 1


def test_published_values_within_their_rounding_or_known_not_to_be() -> None:
    """Of the recomputed values, that is; they are what the other tests reproduce."""
    student = DESED["recomputed"]["student"]
    values = dict(student["onset+offset 200 ms/20 %"])
    values["intersection_macro_f1"] = student["intersection macro F1 (.5/.5/.3)"]
    for name in ("psds1", "psds2"):
        (values[name],) = (v for k, v in student.items() if k.startswith(name))
    for name, published in DESED["published"]["student"].items():
        digits = 3 if name.startswith("psds") else 4
        if name in NOT_REPRODUCIBLE:
            assert round(values[name], 4) == NOT_REPRODUCIBLE[name] != published
        else:
            assert abs(values[name] - published) <= 10**-digits
