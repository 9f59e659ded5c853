"""HEAR's common API, written once: load_model, get_timestamp_embeddings, get_scene_embeddings.

https://hearbenchmark.com/hear-api.html. Also `detect`, the everyday entry.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from hear_pretrainedsed.audio import check_audio, read_audio
from hear_pretrainedsed.checkpoints import build_for, load_weights
from hear_pretrainedsed.decoding import decoding_for
from hear_pretrainedsed.events import Event, scores_to_events
from hear_pretrainedsed.fetch import fetch
from hear_pretrainedsed.model import Options, SEDModel
from hear_pretrainedsed.registry import CHECKPOINTS, Checkpoint, get_checkpoint, unknown
from hear_pretrainedsed.unfilled import Unfilled
from hear_pretrainedsed.weight_files import Saved, read_saved


def load_model(
    model_file_path: str | os.PathLike[str] = "",
    *,
    checkpoint: str | None = None,
    device: str | torch.device | None = None,
    **options: object,
) -> SEDModel:
    """Load a checkpoint, ready for inference.

    Args:
        model_file_path: weights in any published layout; "" takes the published file from the
            cache folder, and downloads it when it is not there.
        checkpoint: its name, as in `list_checkpoints()`; may be left out when the file still has
            its published name, or was written by `save_weights`, which tells it.
        device: where to put the model; None: the CPU (HEAR's tools move it themselves).
        options: fields of `hear_pretrainedsed.model.Options`. A fine-tuned file tells the windowing
            of its recipe, on which its thresholds were calibrated: it is taken where none is given.

    Raises:
        ValueError: unknown checkpoint or option, or a file that does not hold the checkpoint.
    """
    path = Path(model_file_path) if model_file_path else None
    saved = read_saved(path) if path else None
    facts = _which(model_file_path, checkpoint, saved)
    allowed = [f.name for f in fields(Options)]
    for name in options:
        if name not in allowed:
            raise ValueError(unknown("option", name, allowed))
    Options(**options)  # refuse wrong values before a file is fetched
    path = path or fetch(facts.file, facts.url, facts.sha256)
    origin = saved or (read_saved(path) if facts.own else None)
    if origin and origin.windowing:
        options = {"windowing": origin.windowing} | options
    chosen = Options(**options)
    if saved and saved.labels and chosen.vocabulary:
        raise ValueError(
            f"vocabulary={str(chosen.vocabulary)!r} has no use: {path} names its "
            f"{len(saved.labels)} classes itself ({', '.join(saved.labels[:3])}, ...)"
        )
    with Unfilled():  # the file fills every tensor
        model = build_for(saved, facts, chosen)
    load_weights(model, path, facts)
    model.layer_indices(chosen.layer if chosen.layer is not None else "all")  # refuse it now
    model.requires_grad_(True).eval()
    return model.to(device) if device is not None else model


def _which(path: str | os.PathLike[str], name: str | None, saved: Saved | None) -> Checkpoint:
    if name is not None:
        return get_checkpoint(name)
    file_name = Path(path).name
    for checkpoint in CHECKPOINTS.values():
        if checkpoint.file == file_name:
            return checkpoint
    if saved and saved.checkpoint:
        return get_checkpoint(saved.checkpoint)
    raise ValueError(
        f"which checkpoint does {str(path)!r} hold? Its name is no published file's: "
        'give checkpoint="...", one of hear_pretrainedsed.list_checkpoints()'
    )


@torch.no_grad()
def get_timestamp_embeddings(audio: Tensor, model: SEDModel) -> tuple[Tensor, Tensor]:
    """Embeddings over time.

    Args:
        audio: (batch, samples) in [-1, 1] at `model.sample_rate`, any length.
        model: from `load_model`.

    Returns:
        embeddings (batch, frames, `model.timestamp_embedding_size`), float32, and the frames'
        centres in ms (batch, frames): (i + 0.5) * 40, none beyond the clip's end.
    """
    embeddings = model.embeddings(audio)
    timestamps = model.grid.timestamps_ms(embeddings.shape[1]).to(embeddings.device)
    return embeddings, timestamps.expand(len(embeddings), -1).clone()


@torch.no_grad()
def get_scene_embeddings(audio: Tensor, model: SEDModel) -> Tensor:
    """One embedding a clip, the mean over its frames: (batch, `model.scene_embedding_size`)."""
    return model.embeddings(audio).mean(dim=1)


@torch.no_grad()
def detect(
    audio: Tensor | str | os.PathLike[str],
    model: SEDModel,
    threshold: float | Sequence[float] | None = None,
    median_frames: int | Sequence[int] | None = None,
    **options: object,
) -> list[Event] | list[list[Event]]:
    """Events in a file, in one clip (samples,), or in each clip of (batch, samples).

    Args:
        audio: a path, or audio at `model.sample_rate`.
        model: one with a trained head.
        threshold: scores above it are events; one number or one a class. None: what was calibrated
            for the model, else 0.5.
        median_frames: of the median filter, likewise; None: what was calibrated, else no filter.
        options: further keywords of `hear_pretrainedsed.events.scores_to_events`.

    Returns:
        A list of `Event`, or a list of lists for a batch.
    """
    if model.head is not None and model.labels is None:
        name = model.provenance.get("checkpoint", "this model")
        raise ValueError(
            f"the names of the classes of {name} are not known here, so there are scores and no "
            "events: give load_model a list of them, vocabulary=FILE (FSD50K: its vocabulary.csv)"
        )
    if not isinstance(audio, Tensor | str | os.PathLike):
        check_audio(audio)  # it says what to do with an array
    if not isinstance(audio, Tensor):
        audio = read_audio(audio, model.sample_rate)
    batch = audio if audio.ndim > 1 else audio[None]
    options["duration_s"] = batch.shape[-1] / model.sample_rate
    scored = model.scores(batch).cpu()
    options |= decoding_for(model, model.labels, threshold, median_frames)
    found = [scores_to_events(scores, model.labels, **options) for scores in scored]
    return found if audio.ndim > 1 else found[0]


def add_hear_modules(package: str) -> None:
    """Make one importable HEAR module for each checkpoint, `package`.<name with underscores>.

    HEAR's tools take a module's name and file results under it, so every checkpoint needs one.
    """
    for checkpoint in CHECKPOINTS.values():
        module = _hear_module(f"{package}.{checkpoint.module}", checkpoint.name)
        sys.modules[module.__name__] = module
        setattr(sys.modules[package], checkpoint.module, module)


def _hear_module(module_name: str, checkpoint: str) -> ModuleType:
    module = ModuleType(module_name, f"HEAR module of the checkpoint {checkpoint}.")
    load: Callable[..., SEDModel] = partial(load_model, checkpoint=checkpoint)
    module.load_model = load
    module.get_timestamp_embeddings = get_timestamp_embeddings
    module.get_scene_embeddings = get_scene_embeddings
    return module
