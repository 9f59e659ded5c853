"""From labelled audio to a distilled Strong checkpoint, by the commands, at the scale of two cores.

    python -m benchmarks.whole_way --data ../shared/data/strong_mini-v1 [--epochs 16] [-o FOLDER]

corpus -> weak -> teacher with a BiGRU -> its pseudo labels -> student: each stage is imported and
the next one takes it in. The network is an fmn04 from random weights, and clips are not
augmented, since so few steps hardly learn them as they are. Printed, on the evaluation clips: PSDS1
(macro, no penalty for unequal classes), frame mAP, and seconds of every stage. *untrained* is the
same network with none of it; frame mAP of scores that know nothing is the share of frames that are
active, which the last line has.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from downstream.metrics import frame_map
from hear_pretrainedsed.events import GRID, events_to_frames
from hear_pretrainedsed.model import SEDModel
from pretraining.build import start_model
from pretraining.clips import decode, window
from pretraining.corpus import Corpus, open_corpus
from pretraining.presets import get_preset
from pretraining.validation import psds1

WEAK, TEACHER, STUDENT = (
    "fmn04.weak-small",
    "fmn04.strong-small-teacher+gru-64",
    "fmn04.strong-small",
)

_SCORE = """
import sys
from benchmarks.whole_way import quality
from hear_pretrainedsed import load_model
from pretraining.corpus import open_corpus
print(*quality(load_model(checkpoint=sys.argv[1]), open_corpus(sys.argv[2])))
"""


@dataclass(frozen=True)
class Stage:
    """A stage that is done: what it scores on the evaluation clips, and how long it took."""

    name: str
    psds1: float
    frame_map: float
    seconds: float


@torch.no_grad()
def quality(model: SEDModel, corpus: Corpus) -> tuple[float, float]:
    """PSDS1 and frame mAP of a model on a corpus with events."""
    scores, targets = {}, {}
    labels = model.labels or ()
    for number, name in enumerate(corpus.names):
        audio = window(decode(corpus[number].audio), 0)
        scores[name] = model.scores(torch.from_numpy(audio)[None])[0].numpy()
        targets[name] = targets_of(corpus, number, labels, len(scores[name]))
    return psds1(model, corpus), frame_map(scores, targets, labels).macro


def targets_of(corpus: Corpus, number: int, labels: Sequence[str], n_frames: int) -> np.ndarray:
    """Targets (frames, classes) of one clip."""
    events = [(a, b, corpus.labels[c]) for a, b, c in corpus.index.row(number)[1] or ()]
    return events_to_frames(events, labels, n_frames, ignore_unknown=True)


def chance(corpus: Corpus) -> float:
    """Frame mAP of scores that know nothing: a class's share of active frames, on average."""
    parts = [targets_of(corpus, i, corpus.labels, GRID.window_frames) for i in range(len(corpus))]
    shares = np.mean(parts, axis=(0, 1))
    return float(shares[shares > 0].mean())


def whole_way(data: Path, out: Path, epochs: int, batch: int = 8) -> Iterator[Stage]:
    """Run it in a folder, with a cache of its own there; stages as they are done.

    data: a folder as ../shared/data/strong_mini-v1. epochs: of each stage. batch: clips a step.
    """
    python = _runner(out / "home")
    run = partial(python, "-m", "hear_pretrainedsed")
    corpora = {}
    for split in ("train", "eval"):
        corpora[split] = out / split
        table = data / f"{data.name.removesuffix('-v1')}_{split}"
        labels = ("--strong", f"{table}_strong.tsv", "--weak", f"{table}_weak.csv")
        classes = ("--classes", data / "class_labels_indices.csv")
        run("corpus", "build", corpora[split], "--audio", data / "audio" / split, *labels, *classes)

    def pretrain(name: str, preset: str, *words: object) -> Stage:
        begun, folder = time.monotonic(), out / preset
        sources = ("--corpus", corpora["train"], "--valid", corpora["eval"], "-o", folder)
        shared = {"n_epochs": epochs, "valid_every_epochs": epochs, "batch": batch}
        shared |= {"n_warmup_steps": None, "warmup_share": 0.05, "keep_from_epoch": None}
        words += _settings(**shared, norm_momentum=0.1, precision="fp32")
        run("pretrain", "--preset", preset, *sources, "--logger", "csv", *words)
        run("import", folder / "model.safetensors", "--as", name)
        seconds = time.monotonic() - begun
        scores = python("-c", _SCORE, name, corpora["eval"]).split()
        return Stage(name, *map(float, scores), seconds)

    valid = open_corpus(corpora["eval"])
    untrained = start_model(get_preset("best"), valid.labels, 0, backbone="fmn04").eval()
    yield Stage("untrained", *quality(untrained, valid), 0.0)

    begin = ("--backbone", "fmn04", *_settings(lr=3e-3, layer_decay=1.0))
    yield pretrain(WEAK, "best_weak", *begin, *_without("wav_mixup", "spec_mask"))
    gru = _settings(lr=3e-3, backbone_lr=3e-3, sequence_model="gru-64")
    gru += _without("mixup", "mixstyle", "filter_augment", "freq_warp")
    yield pretrain(TEACHER, "strong_teacher", "-c", WEAK, *gru)
    begun, logits = time.monotonic(), out / "pseudo.h5"
    run("pseudo-labels", "--checkpoints", TEACHER, "--corpus", corpora["train"], "-o", logits)
    yield Stage("pseudo labels", math.nan, math.nan, time.monotonic() - begun)
    plain = _settings(lr=3e-3, backbone_lr=3e-3, sequence_model=None)
    plain += _settings(accumulation=1, layer_decay=1.0) + _without("wavmix", "mixup", "frame_shift")
    yield pretrain(STUDENT, "fmn_student", "-c", WEAK, "--pseudo-labels", logits, *plain)


def _settings(**values: object) -> tuple[str, ...]:
    return tuple(word for key, value in values.items() for word in ("--set", f"{key}={value}"))


def _without(*augmentations: str) -> tuple[str, ...]:
    return _settings(**{f"augmentation.{name}": None for name in augmentations})


def _runner(home: Path) -> Callable[..., str]:
    """Runs Python with a cache folder of its own; gives what it printed."""
    places = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))
    environment = {**os.environ, "HEAR_PRETRAINEDSED_HOME": str(home)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))

    def run(*words: object) -> str:
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[1:])}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    return run


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        for stage in whole_way(options.data, out, options.epochs):
            scores = f"{stage.psds1:8.4f}{stage.frame_map:8.4f}"
            print(f"{stage.name:<36}{scores}{stage.seconds:8.0f} s", flush=True)
        print(f"{'nothing known':<36}{0:8.4f}{chance(open_corpus(out / 'eval')):8.4f}")


if __name__ == "__main__":
    main()
