"""A pre-training as a process of its own, to be killed, or to be several.

python -m tests.pretraining.pretrain_script FOLDER N_DEVICES [SECONDS_PER_STEP [RECIPE]]

FOLDER/../corpus is the corpus. RECIPE is a preset.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from hear_pretrainedsed.registry import BACKBONES
from pretraining.corpus import open_corpus
from pretraining.presets import PRESETS
from pretraining.run import run
from tests.pretraining.tiny_runs import DrawnBackbone, shrunken, tiny_run


def main(folder: Path, n_devices: int, seconds_per_step: str = "0", name: str = "best") -> None:
    """Run the shrunken recipe; FOLDER/steps gets a line a step."""
    torch.set_num_threads(1)
    BACKBONES["tiny"] = DrawnBackbone
    folder.mkdir(exist_ok=True)

    def tell(line: str) -> None:
        with (folder / "steps").open("a") as file:
            file.write(line + "\n")
        time.sleep(float(seconds_per_step))

    settings = {"pseudo": None, "distillation_weight": 0.0, "n_epochs": 4, "precision": "fp32"}
    if PRESETS[name].weak_batch is not None:
        settings |= {"weak_objective": "strong", "sequence_model": None}  # no dropout
    recipe = replace(shrunken(PRESETS[name]), **settings)
    corpus = open_corpus(folder.parent / "corpus" / "corpus")
    job = tiny_run(recipe, corpus, folder / "out", tell=tell)
    place = replace(job.place, n_devices=n_devices, save_every_steps=3)
    run(replace(job, place=place))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
