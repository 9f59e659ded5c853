"""PSDS of a stock heareval run, from the frame scores that it stores.

heareval 2021.1.3 knows no PSDS, but leaves in its folder of embeddings, for each test split, the
scores of all frames one after the other (`<split>.predictions.pkl`) and which frame is which
(`<split>.filename-timestamps.json`).
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from downstream.metrics import PSDS1, PSDS2, Score, psds
from downstream.tasks.hear_folder import read_labels

_PREDICTIONS = ".predictions.pkl"
_TOLERANCE_MS = 0.01


def psds_from_stock(folder: Path) -> dict[str, Score]:
    """PSDS1 and PSDS2 (keys `psds1`, `psds2`) of a finished stock run, all its test splits pooled.

    `folder` is the one that `heareval.predictions.runner` was given. Scores are those of the
    chosen model, not smoothed: heareval stores them before its median filter. Reference events of
    a class may not overlap or touch, and timestamps have to be the centres of frames of one hop.
    Raises `ValueError` if the run is not finished, or was of no event task.
    """
    found = sorted(folder.glob(f"*{_PREDICTIONS}"))
    if not found:
        raise ValueError(f"{folder}: no {_PREDICTIONS} in it: not a finished run of heareval")
    labels = read_labels(folder)
    scores: dict[str, np.ndarray] = {}
    reference: dict[str, list[tuple[float, float, str]]] = {}
    hops_ms = set()
    for path in found:
        content = _read(path)
        split = path.name.removesuffix(_PREDICTIONS)
        in_files, hop_ms = _by_file(folder / f"{split}.filename-timestamps.json", content)
        scores |= in_files
        hops_ms.add(round(hop_ms, 3))
        for file, rows in content["target_events"].items():
            reference[file] = [(e["start"] / 1e3, e["end"] / 1e3, str(e["label"])) for e in rows]
    if len(hops_ms) > 1:
        raise ValueError(f"{folder}: frames of several lengths: {sorted(hops_ms)} ms")
    hop_s = hops_ms.pop() / 1e3
    durations_s = {file: len(frames) * hop_s for file, frames in scores.items()}
    return {
        name: psds(scores, hop_s, labels, reference, durations_s, **parameters)
        for name, parameters in (("psds1", PSDS1), ("psds2", PSDS2))
    }


def _by_file(path: Path, content: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], float]:
    """Scores (frames, classes) by file, and the hop in ms."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    frames = content["prediction"].numpy()
    if len(rows) != len(frames):
        raise ValueError(f"{path}: {len(rows)} frames, of which {len(frames)} have scores")
    place: dict[str, list[int]] = {}
    for i, (file, _) in enumerate(rows):
        place.setdefault(Path(file).name, []).append(i)
    times_ms = np.array([time_ms for _, time_ms in rows])
    first = times_ms[next(iter(place.values()))]
    hop_ms = float(np.diff(first).mean()) if len(first) > 1 else 2 * float(first[0])
    scores = {}
    for file, indices in place.items():
        centres = (np.arange(len(indices)) + 0.5) * hop_ms
        if np.abs(times_ms[indices] - centres).max() > _TOLERANCE_MS:
            raise ValueError(f"{path}: {file}: timestamps are no centres of frames of {hop_ms} ms")
        scores[file] = frames[indices]
    return scores, hop_ms


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): lambda b: torch.load(io.BytesIO(b), weights_only=True),
    ("collections", "OrderedDict"): dict,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.multiarray", "scalar"): np._core.multiarray.scalar,
    ("numpy.core.multiarray", "scalar"): np._core.multiarray.scalar,
}


class _Unpickler(pickle.Unpickler):
    """Tensors, numbers and plain containers: nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for."""
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is not expected in it")
        return _KNOWN[module, name]


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _Unpickler(file).load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path}: not what heareval writes: {error}") from None
    if not isinstance(content, dict) or "target_events" not in content:
        raise ValueError(f"{path}: no target_events in it: a run of an event task has some")
    return content
