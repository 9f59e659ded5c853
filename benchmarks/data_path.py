"""The data path of pre-training: decoding, clips ready to learn from, sampler and encoder.

    python -m benchmarks.data_path [--batch N] [--rounds 3] [--tflops 125] [--clips 2000000]

One core each (one thread). The first table decodes clips of 10 s from memory. The second makes
batches as the presets do: decode, encode labels, the preset's own augmentation of audio and specs,
the front end (and the teacher's, where one runs along; stored pseudo labels are not read); beside
it, what a GPU would take: three times the forward pass (and once that of a teacher), six or two
operations a multiply-accumulate, at `--tflops` (125: an A100 at 40 % of its 312 TFLOP/s in bf16;
small CNNs reach less, so theirs is an upper bound). The third makes weights and an epoch's order
for `--clips` clips of three events, in a process of its own, whose peak memory is with all
libraries.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from rich.console import Console

from benchmarks.measure import interleaved, machine, seconds, spread, table
from benchmarks.memory import peak_gb
from hear_pretrainedsed.complexity import complexity
from hear_pretrainedsed.frontends import FrontEnd
from hear_pretrainedsed.model import build_model
from hear_pretrainedsed.registry import get_checkpoint
from hear_pretrainedsed.training.augmentation import Augmentation
from hear_pretrainedsed.training.batch import Batch
from hear_pretrainedsed.training.mask_value import mask_value
from pretraining.clip_index import ClipIndex, Labelled
from pretraining.clips import Clips, Draw, Row, decode
from pretraining.config import Recipe
from pretraining.corpus import Record
from pretraining.encoding import encode
from pretraining.presets import PRESETS
from pretraining.sampling import WEIGHTS, ClipOrder, weights_of

KINDS = {
    "wav, 16 kHz": ("WAV", "PCM_16", 16_000),
    "flac, 16 kHz": ("FLAC", "PCM_16", 16_000),
    "ogg, 16 kHz": ("OGG", "VORBIS", 16_000),
    "mp3, 16 kHz": ("MP3", "MPEG_LAYER_III", 16_000),
    "mp3, 32 kHz": ("MP3", "MPEG_LAYER_III", 32_000),
    "flac, 44.1 kHz": ("FLAC", "PCM_16", 44_100),
}
PATHS = ("strong_student-beats", "strong_student-atst_f", "fmn_student-fmn10", "fmn_online")
N_CLASSES = 447


def sound(rate: int, seed: int = 0) -> np.ndarray:
    """10 s of noise with a tone that comes and goes, (samples,)."""
    rng = np.random.default_rng(seed)
    t = np.arange(10 * rate) / rate
    tone = np.sin(2 * np.pi * 440 * t) * (np.sin(2 * np.pi * t) > 0)
    return (0.02 * rng.standard_normal(len(t)) + 0.3 * tone).astype(np.float32)


def encoded(kind: str, seed: int = 0) -> bytes:
    """A clip in one of `KINDS`."""
    form, subtype, rate = KINDS[kind]
    out = io.BytesIO()
    soundfile.write(out, sound(rate, seed), rate, format=form, subtype=subtype)
    return out.getvalue()


def decode_rows(rounds: int, n_clips: int = 20) -> Iterator[tuple[str, ...]]:
    """Milliseconds a clip, and times real time."""
    clips = {kind: encoded(kind) for kind in KINDS}

    def work(data: bytes) -> Callable[[], object]:
        return lambda: [decode(data) for _ in range(n_clips)]

    times = interleaved({kind: work(data) for kind, data in clips.items()}, rounds)
    for kind, spent in times.items():
        each = [1000 * t / n_clips for t in spent]
        speed = 10_000 / statistics.median(each)
        yield kind, f"{len(clips[kind]) / 1000:.0f}", spread(each), f"{speed:.0f}"


@dataclass(frozen=True)
class Made:
    """Clips in memory that stand for a corpus; every clip has three events."""

    records: tuple[Record, ...]
    labels: tuple[str, ...] = tuple(f"class {i}" for i in range(N_CLASSES))
    folder: Path = Path("made")
    has_events: bool = True

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Record:
        return self.records[number]


def made(n_clips: int, kind: str = "mp3, 32 kHz") -> Made:
    """A few sounds under many names: AudioSet's mp3."""
    sounds = [encoded(kind, seed) for seed in range(4)]
    events = tuple((1.0 * i, 2.0 * i + 1, i) for i in range(3))
    return Made(tuple(Record(f"{i}", sounds[i % 4], events, (0, 1, 2)) for i in range(n_clips)))


def streams_of(recipe: Recipe, batch: int | None) -> list[tuple[Clips, Augmentation]]:
    """The clips of each stream, `batch` together or the recipe's number, and what is done to them.

    The second stream's clips have no events.
    """
    made_of = [(recipe.batch, recipe.augmentation, True)]
    if recipe.weak_batch is not None:
        made_of.append((recipe.weak_batch, recipe.weak_augmentation, False))
    streams = []
    for n_clips, augmentation, has_events in made_of:
        n_clips = n_clips if batch is None else max(1, batch // len(made_of))
        streams.append((Clips(replace(made(n_clips), has_events=has_events)), augmentation))
    return streams


def augmented(
    batch: Batch,
    augmentation: Augmentation,
    frontend: FrontEnd,
    teacher: FrontEnd | None,
    generator: torch.Generator,
) -> Batch:
    """A batch as a step of training learns from it; `teacher`: its front end, if one listens."""
    batch = augmentation.on_audio(batch, generator)
    drawn = frontend.with_drawn_edges(generator) if augmentation.draw_mel_edges else frontend
    with torch.no_grad():
        batch = replace(batch, spec=drawn(batch.audio))
        if teacher is not None:
            batch = replace(batch, teacher_spec=teacher(batch.audio))
        return augmentation.with_mask_value(mask_value(frontend)).on_spec(batch, generator)


def path_row(preset: str, batch: int | None, rounds: int, tflops: float) -> tuple[str, ...]:
    """Clips/s that a core makes of a preset's batches, and what a GPU takes."""
    recipe = PRESETS[preset]
    checkpoint = get_checkpoint(recipe.start)
    n_step = recipe.batch + (recipe.weak_batch or 0)
    streams = streams_of(recipe, batch)
    n_clips = sum(len(clips.corpus) for clips, _ in streams)
    frontend = build_model(checkpoint.backbone).frontend
    teacher = recipe.teacher and build_model(get_checkpoint(recipe.teacher).backbone).frontend
    generator = torch.Generator().manual_seed(0)

    def rows_of(clips: Clips) -> list[Row]:
        return [clips[Draw(i, i)] for i in range(len(clips.corpus))]

    def read() -> None:
        for clips, _ in streams:
            rows_of(clips)

    def make() -> None:
        for clips, augmentation in streams:
            found = clips.batch(rows_of(clips))
            augmented(found, augmentation, frontend, teacher, generator)

    times = interleaved({"read": read, "make": make}, rounds)
    speed = {name: n_clips / statistics.median(spent) for name, spent in times.items()}
    macs = 3 * macs_of(recipe.start)
    if recipe.teacher is not None:
        macs += macs_of(recipe.teacher)
    need = tflops * 1e12 / (2 * macs)
    return (
        preset,
        f"{n_step} x {recipe.accumulation}",
        f"{speed['read']:.0f}",
        f"{speed['make']:.0f}",
        f"{need:.0f}",
        f"{need / n_step:.1f}",
        f"{need / speed['read']:.1f}",
        f"{need / speed['make']:.1f}",
    )


def macs_of(checkpoint: str) -> int:
    """Multiply-accumulates of a clip's forward pass."""
    return complexity(get_checkpoint(checkpoint)).macs_with_attention


def many(n_clips: int, n_events: int = 3, n_weak: int = 2) -> ClipIndex:
    """An index of clips whose classes are as unevenly spread as AudioSet's."""
    rng = np.random.default_rng(0)
    classes = np.minimum(rng.pareto(1.0, n_clips * (n_events + n_weak)), 1e6).astype(np.int64)
    onset_s = rng.uniform(0, 9, n_clips * n_events)
    text = np.frombuffer(b"".join(b"Y%010d" % i for i in range(n_clips)), np.uint8)
    return ClipIndex(
        name_text=text,
        name_ends=11 * np.arange(1, n_clips + 1),
        is_strong=np.ones(n_clips, bool),
        event_ends=n_events * np.arange(1, n_clips + 1),
        onset_s=onset_s,
        offset_s=np.minimum(10, onset_s + rng.exponential(2, len(onset_s))),
        event_class=(classes[: len(onset_s)] % N_CLASSES).astype(np.int32),
        weak_ends=n_weak * np.arange(1, n_clips + 1),
        weak_class=(classes[len(onset_s) :] % N_CLASSES).astype(np.int32),
        duration_s=np.full(n_clips, 10.0),
    )


@dataclass(frozen=True)
class Indexed:
    """An index that stands for a corpus."""

    index: ClipIndex

    def __len__(self) -> int:
        return len(self.index)


def sampler_rows(n_clips: int) -> list[tuple[str, str]]:
    """Seconds of weights, orders and targets; the last row is the process's peak memory."""
    torch.set_num_threads(1)
    index = many(n_clips)
    rows = []
    for rule in WEIGHTS:
        spent = seconds(lambda rule=rule: weights_of(rule, index, N_CLASSES))
        rows.append((f"weights, {rule}", f"{spent:.2f} s"))
    weights = weights_of("strong", index, N_CLASSES)
    for name, given, replacement in (
        ("uniform", None, False),
        ("weighted", weights, False),
        ("weighted, with replacement", weights, True),
    ):
        order = ClipOrder(Clips(Indexed(index)), 256, 0, None, given, replacement)
        rows.append((f"an epoch's order, {name}", f"{seconds(lambda o=order: o.epoch(0)):.2f} s"))
        rows.append(("its step 5000", f"{1000 * seconds(lambda o=order: o.step(5000)):.1f} ms"))
    clips: list[Labelled] = [index.row(i) for i in range(min(2000, n_clips))]
    spent = seconds(lambda: [encode(row.events or (), N_CLASSES) for row in clips]) / len(clips)
    rows.append(("targets of a clip (250 x 447)", f"{1e6 * spent:.0f} us"))
    return [*rows, ("peak memory", f"{peak_gb():.2f} GiB")]


def in_a_process(n_clips: int) -> list[tuple[str, str]]:
    """`sampler_rows` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(sampler_rows, (n_clips,))


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=None, help="clips (none: the preset's)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tflops", type=float, default=125, help="of the GPU, as it is reached")
    parser.add_argument("--clips", type=int, default=2_000_000, help="for sampler and encoder")
    parser.add_argument("--only", nargs="*", default=PATHS, help="presets")
    given = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    console.print(machine())
    start = time.perf_counter()
    columns = ["10 s of", "kB", "ms", "x real time"]
    console.print(table("Decoding, one core", columns, decode_rows(given.rounds)))
    columns = ["preset", "batch", "read/s", "all/s", "GPU/s", "batches/s"]
    columns += ["cores, read", "cores, all"]
    rows = (path_row(name, given.batch, given.rounds, given.tflops) for name in given.only)
    console.print(table(f"Clips of mp3, one core; GPU at {given.tflops:g} TFLOP/s", columns, rows))
    title = f"Sampler and encoder, {given.clips} clips"
    console.print(table(title, ["", ""], iter(in_a_process(given.clips))))
    console.print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
