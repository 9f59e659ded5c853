"""The main job on a small task: frames of a checkpoint, a linear probe on them, scores, events.

    make demo            or            python examples/demo.py [--output FOLDER]

Makes a small task in HEAR's format out of synthetic sounds, computes embeddings by the HEAR API,
trains a linear probe, and compares it with the same probe on a plain log-mel spectrogram and with
chance; then detects the events of one recording with the probe and draws them. Needs no network.
With a published checkpoint in the cache folder (`hear-pretrainedsed fetch NAME`) it uses that one;
else stand-in weights, made by a formula: then the frames are random features.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import hear_task
import numpy as np
import soundfile
import synthesis
import torch
from probe import frame_targets, train_probe
from rich.console import Console
from rich.table import Table
from scoring import Events, onset_f, segment_error_rate
from torch import Tensor, nn

import hear_pretrainedsed as hps
from hear_pretrainedsed.events import Event, scores_to_events, write_tsv
from hear_pretrainedsed.fetch import find
from hear_pretrainedsed.model import Options, SEDModel, build_checkpoint
from hear_pretrainedsed.picture import draw
from hear_pretrainedsed.registry import CHECKPOINTS, get_checkpoint
from hear_pretrainedsed.rule_weights import fill

ROOT = Path(__file__).resolve().parents[1]
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
MEDIANS = (1, 5, 9, 13, 17, 25)  # frames of 40 ms
N_CHANCE = 20
RECORDING_S = 30.0


@dataclass(frozen=True)
class Source:
    """Where the frames come from."""

    checkpoint: str
    options: dict[str, object] = field(default_factory=dict)  # for load_model
    file: Path | None = None  # None: stand-in weights

    @property
    def description(self) -> str:
        """What a reader has to know about the numbers."""
        where = f"{self.checkpoint}{self.options or ''}"
        if self.file:
            return f"trained weights of {where}: frozen features, trained probe"
        return f"stand-in weights of {where}: RANDOM features, trained probe"


#: Of random networks the first block serves best: it mixes bands and neighbours, and keeps times.
STAND_IN = Source("fpasst.ssl", {"layer": 0})


def find_source() -> Source:
    """A published checkpoint in the cache folder, the one of the highest PSDS1; else a stand-in."""
    strong = [facts for facts in CHECKPOINTS.values() if facts.psds1]
    for facts in sorted(strong, key=lambda facts: -facts.psds1):
        if path := find(facts.file):
            return Source(facts.name, file=path)
    return STAND_IN


def load(source: Source) -> SEDModel:
    """The model, with the spec of its front end appended to its embeddings."""
    options = {**source.options, "concat_mel": True}
    if source.file:
        return hps.load_model(source.file, checkpoint=source.checkpoint, **options)
    return fill(build_checkpoint(get_checkpoint(source.checkpoint), Options(**options)))


@dataclass(frozen=True)
class Decoding:
    """How a probe's scores become events; chosen on the valid split."""

    threshold: float
    median_frames: int

    def events(self, logits: Tensor, labels: Sequence[str], duration_s: float) -> list[Event]:
        """Logits (frames, classes) of one clip -> its events."""
        return scores_to_events(
            logits.sigmoid(),
            labels,
            threshold=self.threshold,
            median_frames=self.median_frames,
            duration_s=duration_s,
        )


@dataclass(frozen=True)
class Row:
    """One line of the table: scores on valid, by which things are chosen, and on test."""

    name: str
    valid_f: float
    test_f: float
    test_error_rate: float
    columns: slice | None = None  # of the embeddings
    probe: nn.Module | None = None
    decoding: Decoding | None = None


class Experiment:
    """A task, its embeddings (clips, frames, dim) by split, and probes on columns of them."""

    def __init__(self, folder: Path, model: SEDModel) -> None:
        self.labels = hear_task.read_labels(folder)
        self.splits = {name: hear_task.read_split(folder, name) for name in hear_task.N_CLIPS}
        computed = {
            name: hps.get_timestamp_embeddings(split.audio, model)
            for name, split in self.splits.items()
        }
        self.embeddings = {name: embeddings for name, (embeddings, _) in computed.items()}
        timestamps_ms = computed["train"][1][0]
        self.targets = torch.cat(
            [
                frame_targets(events, self.labels, timestamps_ms)
                for events in self.splits["train"].events
            ]
        )

    def run(self, name: str, columns: slice) -> Row:
        """Train a probe, choose its decoding on valid, score it on test."""
        probe = train_probe(self.embeddings["train"][..., columns].flatten(0, 1), self.targets)
        logits = {k: probe(x[..., columns]) for k, x in self.embeddings.items() if k != "train"}

        def detected(split: str, decoding: Decoding) -> list[list[Event]]:
            return [decoding.events(x, self.labels, hear_task.CLIP_S) for x in logits[split]]

        reference = {k: split.events for k, split in self.splits.items()}
        choices = [Decoding(*pair) for pair in product(THRESHOLDS, MEDIANS)]
        scores = [onset_f(reference["valid"], detected("valid", choice)) for choice in choices]
        best = choices[int(np.argmax(scores))]
        found = detected("test", best)
        f, error_rate = (
            onset_f(reference["test"], found),
            segment_error_rate(reference["test"], found),
        )
        return Row(name, max(scores), f, error_rate, columns, probe, best)

    def chance(self) -> Row:
        """Events at random, as many and as long as those of train: the mean of many draws."""
        draws = [self._random_events(np.random.default_rng(seed)) for seed in range(N_CHANCE)]
        f = {
            split: np.mean([onset_f(self.splits[split].events, draw[split]) for draw in draws])
            for split in ("valid", "test")
        }
        rates = [segment_error_rate(self.splits["test"].events, draw["test"]) for draw in draws]
        return Row("chance: events at random", f["valid"], f["test"], float(np.mean(rates)))

    def _random_events(self, rng: np.random.Generator) -> dict[str, Events]:
        train = [event for events in self.splits["train"].events for event in events]
        per_clip = len(train) / len(self.splits["train"].files)

        def clip() -> list[tuple[float, float, str]]:
            picked = rng.choice(len(train), rng.poisson(per_clip))
            lengths = [(train[i][1] - train[i][0], train[i][2]) for i in picked]
            onsets_s = [rng.uniform(0, hear_task.CLIP_S - length_s) for length_s, _ in lengths]
            return [(a, a + n, label) for a, (n, label) in zip(onsets_s, lengths, strict=True)]

        return {k: [clip() for _ in self.splits[k].files] for k in ("valid", "test")}

    def silence(self) -> Row:
        """The best constant answer: no event at all."""
        nothing = {split: [[] for _ in self.splits[split].files] for split in ("valid", "test")}
        f = {k: onset_f(self.splits[k].events, nothing[k]) for k in nothing}
        rate = segment_error_rate(self.splits["test"].events, nothing["test"])
        return Row("no event at all", f["valid"], f["test"], rate)


def results_table(rows: Sequence[Row], experiment: Experiment, source: Source) -> Table:
    """The rows as a table."""
    test = experiment.splits["test"]
    n_events = sum(map(len, test.events))
    table = Table(
        title=f"{hear_task.FOLDER}, test: {len(test.files)} clips, {n_events} events, "
        f"{len(experiment.labels)} classes",
        caption="onset F: collar 200 ms. segment ER: error rate in 1 s segments, less is better.\n"
        f"frames: {source.description}.",
        caption_justify="left",
    )
    table.add_column("features", no_wrap=True)
    for name in ("dim", "onset F\nvalid", "onset F\ntest", "segment ER\ntest"):
        table.add_column(name, justify="right")
    table.add_column("threshold,\nmedian", no_wrap=True)
    for row in rows:
        decoding, dim = "", ""
        if row.probe is not None:
            dim = str(row.probe.in_features)
            decoding = f"{row.decoding.threshold}, {0.04 * row.decoding.median_frames:.2f} s"
        scores = [f"{x:.3f}" for x in (row.valid_f, row.test_f, row.test_error_rate)]
        table.add_row(row.name, dim, *scores, decoding)
    return table


def detect_recording(
    row: Row, model: SEDModel, labels: Sequence[str], folder: Path
) -> tuple[list[Event], list[synthesis.Labelled]]:
    """Make a recording, detect its events with a probe, write them and their picture."""
    audio, made = synthesis.recording(
        np.random.default_rng(2024), RECORDING_S, 12, hear_task.SNR_DB
    )
    path = folder / "recording.wav"
    soundfile.write(path, audio, synthesis.SAMPLE_RATE, subtype="PCM_16")
    samples, rate = soundfile.read(path, dtype="float32")
    embeddings, _ = hps.get_timestamp_embeddings(torch.from_numpy(samples)[None], model)
    logits = row.probe(embeddings[0, :, row.columns])
    events = row.decoding.events(logits, labels, RECORDING_S)
    write_tsv(folder / "recording.tsv", {path.name: events})
    title = f"{path.name}: events found by the probe on {row.name}"
    draw(samples, rate, events, folder / "recording.png", logits.sigmoid(), labels, title)
    return events, made


def events_table(found: Sequence[Event], made: Sequence[tuple[float, float, str]]) -> Table:
    """Found events beside those that the recording was made of."""
    table = Table(title=f"recording.wav: {len(found)} events found, {len(made)} are in it")
    for name in ("onset s", "offset s"):
        table.add_column(name, justify="right")
    table.add_column("label")
    table.add_column("score", justify="right")
    table.add_column("in the recording")
    left = list(made)
    rows: list[tuple[float, tuple[str, ...]]] = []
    for event in found:
        near = [m for m in left if m[2] == event.label and abs(m[0] - event.onset_s) <= 0.2]
        if near:
            left.remove(near[0])
        truth = f"at {near[0][0]:.2f} s" if near else "no"
        times = (f"{event.onset_s:.2f}", f"{event.offset_s:.2f}")
        rows.append((event.onset_s, (*times, event.label, f"{event.score:.2f}", truth)))
    rows += [(m[0], ("", "", m[2], "", f"at {m[0]:.2f} s: missed")) for m in left]
    for _, cells in sorted(rows):
        table.add_row(*cells)
    return table


def run(
    output: Path, source: Source, console: Console, n_clips: dict[str, int] | None = None
) -> list[Row]:
    """The whole demo; returns the rows of its table."""

    @contextmanager
    def step(text: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        seconds = f"{time.monotonic() - start:6.1f} s"
        console.print(f"{seconds}  {text}", highlight=False, soft_wrap=True)

    begun = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    with step(f"made a task of synthetic sounds in {output / 'tasks'}"):
        folder = hear_task.write_task(output / "tasks", n_clips or hear_task.N_CLIPS)
    with step(f"loaded {source.description}"):
        model = load(source)
    with step("embeddings of all clips, by the HEAR API"):
        experiment = Experiment(folder, model)
    n_mels = model.frontend.n_mels
    with step("three probes: trained on train, decoding chosen on valid, scored on test"):
        rows = [
            experiment.run("frames", slice(None, -n_mels)),
            experiment.run("frames + log-mel", slice(None)),
            experiment.run("log-mel alone", slice(-n_mels, None)),
        ]
    best = max(rows[:2], key=lambda row: row.valid_f)
    with step(f"events of a recording of {RECORDING_S:.0f} s, by the probe on {best.name}"):
        found, made = detect_recording(best, model, experiment.labels, output)
    rows += [experiment.chance(), experiment.silence()]
    console.print(events_table(found, made))
    console.print(f"picture: {output / 'recording.png'}, events: {output / 'recording.tsv'}")
    console.print(f"{time.monotonic() - begun:6.1f} s  in all\n", highlight=False)
    console.print(results_table(rows, experiment, source))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "demo")
    output = parser.parse_args(arguments).output
    run(output, find_source(), Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
