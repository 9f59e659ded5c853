"""From labelled audio to a distilled Strong checkpoint, by the commands, at the scale of two cores.

    python -m benchmarks.whole_way --data ../shared/data/strong_mini-v1 [--epochs 12] [-o FOLDER]

corpus -> weak -> teacher with a BiGRU -> its pseudo labels -> student: each stage is imported and
the next one takes it in. The network is an fmn04 from random weights. Printed: PSDS1 on the
evaluation clips (macro, no penalty for unequal classes) and seconds of every stage; *untrained* is
the same network with none of it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pretraining.build import start_model
from pretraining.corpus import open_corpus
from pretraining.presets import get_preset
from pretraining.validation import psds1

WEAK, TEACHER, STUDENT = (
    "fmn04.weak-small",
    "fmn04.strong-small-teacher+gru-64",
    "fmn04.strong-small",
)

_SCORE = """
import sys
from hear_pretrainedsed import load_model
from pretraining.corpus import open_corpus
from pretraining.validation import psds1
print(psds1(load_model(checkpoint=sys.argv[1]), open_corpus(sys.argv[2])))
"""


@dataclass(frozen=True)
class Stage:
    """A stage that is done: its PSDS1 on the evaluation clips, and how long it took."""

    name: str
    psds1: float
    seconds: float


def whole_way(data: Path, out: Path, epochs: int, *, more: tuple[str, ...] = ()) -> Iterator[Stage]:
    """Run it in a folder, with a cache of its own there; stages as they are done.

    data: a folder as ../shared/data/strong_mini-v1. epochs: of each stage. more: words for every
    `pretrain`.
    """
    python = _runner(out / "home")
    run = partial(python, "-m", "hear_pretrainedsed.cli")
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
        shared = {"n_epochs": epochs, "valid_every_epochs": epochs, "batch": 8}
        words += _settings(**shared, norm_momentum=0.1, precision="fp32")
        run("pretrain", "--preset", preset, *sources, "--logger", "csv", *words, *more)
        run("import", folder / "model.safetensors", "--as", name)
        seconds = time.monotonic() - begun
        score = python("-c", _SCORE, name, corpora["eval"])
        return Stage(name, float(score), seconds)

    recipe = get_preset("best")
    labels = open_corpus(corpora["eval"]).labels
    untrained = start_model(recipe, labels, 0, backbone="fmn04")
    yield Stage("untrained", psds1(untrained.eval(), open_corpus(corpora["eval"])), 0.0)

    yield pretrain(WEAK, "best_weak", "--backbone", "fmn04", *_settings(lr=3e-3, layer_decay=1.0))
    gru = _settings(lr=2e-3, sequence_model="gru-64", n_warmup_steps=20)
    yield pretrain(TEACHER, "strong_teacher", "-c", WEAK, *gru)
    begun, logits = time.monotonic(), out / "pseudo.h5"
    run("pseudo-labels", "--checkpoints", TEACHER, "--corpus", corpora["train"], "-o", logits)
    yield Stage("pseudo labels", float("nan"), time.monotonic() - begun)
    plain = _settings(lr=3e-3, backbone_lr=3e-3, sequence_model=None, n_warmup_steps=20)
    plain += _settings(accumulation=1, layer_decay=1.0)
    plain += ("--set", "augmentation.wavmix=None", "--set", "augmentation.frame_shift=None")
    yield pretrain(STUDENT, "fmn_student", "-c", WEAK, "--pseudo-labels", logits, *plain)


def _settings(**values: object) -> tuple[str, ...]:
    return tuple(word for key, value in values.items() for word in ("--set", f"{key}={value}"))


def _runner(home: Path) -> Callable[..., str]:
    """Runs Python with a cache folder of its own; gives what it printed."""
    environment = {**os.environ, "HEAR_PRETRAINEDSED_HOME": str(home)}

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
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        for stage in whole_way(options.data, out, options.epochs):
            print(f"{stage.name:<36}{stage.psds1:8.4f}{stage.seconds:8.0f} s", flush=True)


if __name__ == "__main__":
    main()
