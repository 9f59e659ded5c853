"""Write tests/golden/pretrainedsed.npz: what this code gives for a made-up clip.

    python -m tests.make_golden

Run it only after tests/test_parity.py has passed with the reference data beside the checkout: the
golden values are a record of code that agreed with it, for clones that do not have it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.reference import MODELS, reference_model, signal

GOLDEN = Path(__file__).parent / "golden" / "pretrainedsed.npz"
N_SAMPLES = 200_000  # a window and a part


def golden_values(backbone: str) -> dict[str, np.ndarray]:
    """Samples of every stage for the clip `signal(200_000)`."""
    model, clip = reference_model(backbone), signal(N_SAMPLES)[None]
    window = clip[:, :160_000]
    tokens = model.backbone(model.frontend(window))
    found = {
        "spec": model.frontend(window)[0, 0, ::4, ::100],
        "tokens": tokens[0, ::31, ::24],
        "frames": model.frames(clip)[0, ::25, ::24],
        "logits": model.logits(clip)[0, ::25, ::16],
        "weak": model.weak_logits(clip)[0, ::16],
    }
    return {f"{backbone}.{stage}": value.numpy() for stage, value in found.items()}


def main() -> None:
    """Write the file."""
    values: dict[str, np.ndarray] = {}
    for backbone in MODELS:
        values |= golden_values(backbone)
    np.savez_compressed(GOLDEN, **values)


if __name__ == "__main__":
    main()
