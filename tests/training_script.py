"""A training as a process of its own, to be killed, or to be several.

python -m tests.training_script FOLDER N_DEVICES [SECONDS_PER_STEP]
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.training.augmentation import Augmentation
from hear_pretrainedsed.training.fit import fit
from hear_pretrainedsed.training.pieces import Order
from hear_pretrainedsed.training.plan import Place, Plan
from hear_pretrainedsed.training.stream import Stream, bce
from tests.tiny_model import tiny_model, tones

PLAN = Plan(
    n_steps=11,
    n_warmup_steps=2,
    batch_pieces=5,
    lr=0.05,
    weight_decay=1e-3,
    layer_decay=0.8,
    balanced=0.5,
    ema_decay=0.9,
    valid_every_steps=3,
    patience=9,
)


def validate(model: SEDModel) -> float:
    """Something that depends on the weights."""
    return -model.head.strong.weight.norm().item()


def main(folder: Path, n_devices: int, seconds_per_step: float = 0.0) -> None:
    """Train, then write the weights and how it ended."""
    torch.set_num_threads(1)
    recordings = tones(folder / f"audio-{n_devices}", (31.0, 14.0, 10.0, 4.0))  # 5 pieces and 1

    def tell(line: str) -> None:
        with open(folder / "steps", "a") as file:
            file.write(line + "\n")
        time.sleep(seconds_per_step)

    order = Order(recordings, PLAN.batch_pieces, 3, PLAN.balanced)
    dropout = 0.3 if n_devices == 1 and seconds_per_step else 0.0
    model = tiny_model(dropout=dropout)
    place = Place(folder / "run", n_devices=n_devices, micro_pieces=2, save_every_steps=2)
    streams = [Stream(order, Augmentation(wavmix=0.5, mixup=0.5), bce)]
    fitted = fit(model, streams, PLAN, place, validate=validate, tell=tell)
    from lightning.pytorch.utilities import rank_zero_only

    if not rank_zero_only.rank:
        torch.save(model.state_dict(), folder / "weights.pt")
        (folder / "fitted.json").write_text(json.dumps(asdict(fitted)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:]))
