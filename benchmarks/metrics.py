"""Speed and memory of the metrics: events against sed_eval, scores at AudioSet Strong's size.

    python -m benchmarks.metrics [--clips 185] [--score-clips 1000] [--classes 447] [--full]

The first table scores events of MAESTRO's size (185 clips, 960 notes each, 88 pitches; estimated
notes are moved, lost and made up) and times sed_eval on a few of the clips. The second one writes
frame scores to a file and computes PSDS1 from it in worker processes, then PSDS1 and segment AUROC
together from scores that are handed over clip by clip, as a model makes them; PSDS1 by
sed_scores_eval alone on a part of it; and the median filter of 9 frames. `--full` takes 17 000
clips (3.8 GB of float16 on disk). Memory is what the processes hold of their own, summed over
them, the parent's included.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from scipy import ndimage

from benchmarks.measure import machine, seconds, table
from downstream.metrics import (
    PSDS1,
    Score,
    StreamedPSDS,
    StreamedSegmentAUROC,
    event_error_rate,
    event_f1,
    psds,
    segment_error_rate,
    segment_f1,
)
from downstream.postprocess import median_filter

EventDict = dict[str, list[tuple[float, float, str]]]
PITCHES = [str(pitch) for pitch in range(21, 109)]
FRAMES = 250
FRAME_S = 0.04


def notes(n_clips: int, per_clip: int = 960) -> tuple[EventDict, EventDict]:
    """Reference and estimated notes of clips of 120 s; most of what is played is mid-range."""
    rng = np.random.default_rng(0)
    reference: EventDict = {}
    estimated: EventDict = {}
    for clip in range(n_clips):
        onset = np.sort(rng.random(per_clip)) * 119
        length = rng.gamma(2.0, 0.25, per_clip)
        pitch = np.clip(rng.normal(44, 14, per_clip), 0, 87).astype(int)
        names = [PITCHES[i] for i in pitch]
        reference[f"{clip}"] = as_list(onset, onset + length, names)
        moved = onset + rng.normal(0, 0.04, per_clip)
        kept = rng.random(per_clip) < 0.85
        wrong = np.where(rng.random(per_clip) < 0.15, rng.integers(0, 88, per_clip), pitch)
        rows = as_list(moved.clip(0), moved.clip(0) + length, [PITCHES[i] for i in wrong])
        estimated[f"{clip}"] = [row for row, keep in zip(rows, kept, strict=True) if keep]
    return reference, estimated


def as_list(onset: np.ndarray, offset: np.ndarray, names: list[str]) -> list:
    """Columns -> [(onset_s, offset_s, label), ...]."""
    return list(zip(onset.tolist(), offset.tolist(), names, strict=True))


def sed_eval_value(metric: object, kind: str, reference: EventDict, estimated: EventDict) -> float:
    """sed_eval's overall value."""
    for name in reference:
        sides = (
            [{"event_onset": a, "event_offset": b, "event_label": c} for a, b, c in side[name]]
            for side in (reference, estimated)
        )
        metric.evaluate(*sides)
    results = metric.results_overall_metrics()
    return results[kind][kind]


def event_rows(n_clips: int, n_oracle: int) -> Iterator[tuple[str, ...]]:
    """Seconds of each metric on all clips, sed_eval's scaled up from a few."""
    from sed_eval import sound_event

    reference, estimated = notes(n_clips)
    part = {name: reference[name] for name in list(reference)[:n_oracle]}
    found = {name: estimated[name] for name in part}

    def events(collar_s: float, fraction: float | None = None) -> object:
        return sound_event.EventBasedMetrics(
            PITCHES,
            t_collar=collar_s,
            evaluate_offset=fraction is not None,
            percentage_of_length=fraction or 0.5,
        )

    def segments() -> object:
        return sound_event.SegmentBasedMetrics(PITCHES)

    cases: list[tuple[str, str, Callable, Callable]] = [
        ("onset F1, 50 ms", "f_measure", partial(event_f1, collar_s=0.05), partial(events, 0.05)),
        (
            "onset and offset F1, 50 ms, 20 %",
            "f_measure",
            partial(event_f1, collar_s=0.05, offset_fraction=0.2),
            partial(events, 0.05, 0.2),
        ),
        ("event error rate, 200 ms", "error_rate", event_error_rate, partial(events, 0.2)),
        ("segment F1, 1 s", "f_measure", segment_f1, segments),
        ("segment error rate, 1 s", "error_rate", segment_error_rate, segments),
    ]
    for name, kind, ours, theirs in cases:
        start = time.perf_counter()
        value = sed_eval_value(theirs(), kind, part, found)
        slow = time.perf_counter() - start
        assert abs(ours(part, found).micro - value) < 1e-12, name
        fast = min(seconds(partial(ours, reference, estimated)) for _ in range(3))
        whole = slow * n_clips / n_oracle
        yield name, f"{fast:.2f}", f"{whole:.0f} (from {slow:.1f})", f"{whole / fast:.0f}"


class ScoreFile(Mapping[str, np.ndarray]):
    """Scores of many clips in one file, each read when it is asked for."""

    def __init__(self, path: Path, n_clips: int, n_classes: int, first: int = 0) -> None:
        self.path, self.n_classes = path, n_classes
        self.place = {f"{first + i}": first + i for i in range(n_clips)}

    def __getitem__(self, name: str) -> np.ndarray:
        shape = (FRAMES, self.n_classes)
        n = FRAMES * self.n_classes
        start = 2 * n * self.place[name]
        return np.fromfile(self.path, np.float16, n, offset=start).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.place)

    def __len__(self) -> int:
        return len(self.place)


def write_scores(path: Path, n_clips: int, n_classes: int) -> EventDict:
    """Smooth scores, low but where an event is: 1 to 7 events of 1 to 4 classes a clip."""
    rng = np.random.default_rng(0)
    reference: EventDict = {}
    width = 9
    with path.open("wb") as file:
        for clip in range(n_clips):
            noise = rng.standard_normal((FRAMES + width, n_classes), dtype=np.float32)
            total = np.cumsum(noise, axis=0)
            logits = (total[width:] - total[:-width]) / np.sqrt(width) - 5
            events = []
            classes = rng.choice(n_classes, rng.integers(1, 5), replace=False)
            for label in np.append(classes, clip % n_classes if clip % 3 == 0 else classes[0]):
                first = int(rng.integers(0, FRAMES - 30))
                end = first + int(rng.integers(5, 30))
                logits[first:end, label] += 5
                events.append((first * FRAME_S, end * FRAME_S, f"class {label}"))
            reference[f"{clip}"] = apart(events)
            (1 / (1 + np.exp(-logits))).astype(np.float16).tofile(file)
    return reference


def apart(events: list) -> list:
    """Without those that meet an earlier one of their class."""
    kept: list = []
    for event in events:
        if all(event[2] != k[2] or event[0] > k[1] or event[1] < k[0] for k in kept):
            kept.append(event)
    return kept


class Memory:
    """The largest sum of private memory of this process and its children, sampled."""

    def __enter__(self) -> Memory:
        self.peak = 0.0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.over.wait(0.1):
            self.peak = max(self.peak, sum(map(private_gb, family())))


def family() -> list[int]:
    """This process and its children."""
    me = os.getpid()
    path = Path(f"/proc/{me}/task")
    found = [me]
    for task in path.iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def private_gb(process: int) -> float:
    """Memory that is the process's own."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    lines = (line.split() for line in text.splitlines())
    return sum(int(line[1]) for line in lines if line[0].startswith("Private")) / 2**20


def score_rows(n_clips: int, n_classes: int, jobs: int | None) -> Iterator[tuple[str, ...]]:
    """Seconds, GB and cores of the metrics of scores, with sed_scores_eval's on a part."""
    labels = [f"class {i}" for i in range(n_classes)]
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as bar:
        path = Path(folder) / "scores"
        task = bar.add_task("writing scores", total=None)
        reference = write_scores(path, n_clips, n_classes)
        durations = dict.fromkeys(reference, FRAMES * FRAME_S)
        scores = ScoreFile(path, n_clips, n_classes)
        sides = (FRAME_S, labels, reference, durations)

        def tell(done: int, total: int) -> None:
            bar.update(task, description="PSDS1", completed=done, total=total)

        n_part = min(n_clips, 60)
        part = {name: scores[name] for name in list(scores)[:n_part]}
        plain = plain_row(part, {name: reference[name] for name in part}, n_clips)
        score, *costs = measured(partial(psds, scores, *sides, **PSDS1, jobs=jobs, progress=tell))
        text = f"PSDS1 {score.micro:.3f}, macro {score.macro:.3f}"
        yield "PSDS1, ours", f"{n_clips}", *costs, text
        both, *costs = measured(partial(streamed, scores, *sides, tell))
        assert max(abs(both[0].micro - score.micro), abs(both[0].macro - score.macro)) < 1e-12
        yield "PSDS1 + AUROC, clip by clip", f"{n_clips}", *costs, f"AUROC {both[1].macro:.3f}"
        yield plain
        yield from median_rows(scores["0"].astype(np.float32), n_clips)


def streamed(
    scores: Mapping[str, np.ndarray],
    frame_s: float,
    labels: list[str],
    reference: EventDict,
    durations_s: dict[str, float],
    tell: Callable[[int, int], None],
) -> tuple[Score, Score]:
    """PSDS1 and segment AUROC of clips that come one at a time."""
    sides = (frame_s, labels, reference, durations_s)
    streams = (StreamedPSDS(*sides, **PSDS1), StreamedSegmentAUROC(*sides))
    for done, name in enumerate(scores):
        score = scores[name]
        for stream in streams:
            stream.add(name, score)
        tell(done, len(scores))
    return streams[0].result(), streams[1].result()


def measured(function: Callable[[], object]) -> tuple[object, str, str, str]:
    """What it returns, its seconds, GB and cores."""
    start, cpu = time.perf_counter(), cpu_s()
    with Memory() as memory:
        result = function()
    took = time.perf_counter() - start
    return result, f"{took:.1f}", f"{memory.peak:.2f}", f"{(cpu_s() - cpu) / took:.1f}"


def median_rows(scores: np.ndarray, n_clips: int) -> Iterator[tuple[str, ...]]:
    """The median of 9 frames, ours and SciPy's, from the best of some calls."""
    filters = {"median, ours": lambda: median_filter(scores, 9)}
    filters["median, SciPy"] = lambda: ndimage.median_filter(scores, size=(9, 1))
    for name, function in filters.items():
        best = min(seconds(function) for _ in range(9))
        text = f"{1000 * best:.2f} ms a clip"
        yield name, f"{n_clips} (from 1)", f"{best * n_clips:.1f}", "", "1.0", text


def cpu_s() -> float:
    """Processor time of this process and of its children that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    usages = [resource.getrusage(kind) for kind in kinds]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def plain_row(part: dict[str, np.ndarray], events: EventDict, n_clips: int) -> tuple[str, ...]:
    """sed_scores_eval alone: its tables and changes of a few clips."""
    from sed_scores_eval.base_modules.scores import create_score_dataframe
    from sed_scores_eval.intersection_based import intermediate_statistics_deltas

    there = sorted({int(label.split()[1]) for row in events.values() for *_, label in row})
    names = [f"class {i}" for i in there]
    before, start = private_gb(os.getpid()), time.perf_counter()
    times = np.arange(FRAMES + 1) * FRAME_S
    tables = {
        name: create_score_dataframe(score[:, there], times, names) for name, score in part.items()
    }
    deltas = intermediate_statistics_deltas(tables, events, dtc_threshold=0.7, gtc_threshold=0.7)
    took = time.perf_counter() - start
    used = private_gb(os.getpid()) - before
    assert len(deltas) == len(part)
    scale = len(next(iter(part.values()))[0]) / len(there) * n_clips / len(part)
    return (
        "sed_scores_eval, scaled up",
        f"{n_clips} (from {len(part)})",
        f"{took * scale:.0f}",
        f"{used * scale:.1f}",
        "1.0",
        "PSDS1 without its curves",
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=185, help="clips of notes")
    parser.add_argument("--oracle-clips", type=int, default=2, help="of which sed_eval gets")
    parser.add_argument("--score-clips", type=int, default=1000, help="clips of scores")
    parser.add_argument("--classes", type=int, default=447)
    parser.add_argument("--jobs", type=int, default=None, help="processes (none: all cores)")
    parser.add_argument("--full", action="store_true", help="scores of 17 000 clips")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", module="dcase_util")
    console = Console()
    console.print(machine())
    columns = ["metric", "s", "sed_eval s", "ratio"]
    rows = event_rows(given.clips, given.oracle_clips)
    console.print(table(f"{given.clips} clips x 960 notes x 88 pitches", columns, rows))
    columns = ["scores", "clips", "s", "GB", "cores", ""]
    rows = score_rows(17_000 if given.full else given.score_clips, given.classes, given.jobs)
    console.print(table(f"{given.classes} classes, {FRAMES} frames", columns, rows))


if __name__ == "__main__":
    main()
