"""The mean of a run's checkpoints, as one set of weights (PSLA).

Gong, Chung and Glass, TASLP 2021; Izmailov et al. 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from hear_pretrainedsed import weight_files


def average_weights(paths: Sequence[Path], *, first_twice: bool = False) -> dict[str, Tensor]:
    """The mean of the tensors of some files, which are read one after another.

    Sums are of 64 bits; a mean has its tensor's type, whole numbers (batch norms' counters) are cut
    towards zero. `first_twice`: the first file counts twice, as in PSLA's training script.

    Raises `ValueError` for no file, `CheckpointError` for one that cannot be read or has other
    tensors than the first.
    """
    if not paths:
        raise ValueError("no files to average")
    first = weight_files.read(Path(paths[0])).tensors
    weight = 2 if first_twice else 1
    sums = {name: weight * value.double() for name, value in first.items()}
    for path in map(Path, paths[1:]):
        tensors = weight_files.read(path).tensors
        _check_alike(tensors, first, path, Path(paths[0]))
        for name, value in tensors.items():
            sums[name] += value
        del tensors, value  # before the next file is read
    n = len(paths) - 1 + weight
    return {name: _as(sums.pop(name) / n, value) for name, value in first.items()}


def average_files(paths: Sequence[Path], target: Path, *, first_twice: bool = False) -> None:
    """Write the mean of some files to `target`, with what the first says about itself.

    Its origin gains `averaged`, the names of the files. Raises as `average_weights`, and
    `CheckpointError` where the first is no file of this project or the others are of another
    checkpoint or other classes.
    """
    saved = [weight_files.read_saved(Path(path)) for path in paths]
    for path, one in zip(paths, saved, strict=True):
        if one is None:
            weight_files.read(Path(path))  # one that cannot be read is told as such
            raise weight_files.CheckpointError(f"{path} does not say of which checkpoint it is")
        for what in ("checkpoint", "labels", "head"):
            mine, theirs = getattr(one, what), getattr(saved[0], what)
            if mine != theirs:
                raise weight_files.CheckpointError(
                    f"{path} has another {what} than {paths[0]}: they are not of one run"
                )
    tensors = average_weights(paths, first_twice=first_twice)
    origin = {
        **(saved[0].origin or {}),
        "averaged": [Path(path).name for path in paths],
        "averaged_first_twice": first_twice,
    }
    weight_files.write(Path(target), tensors, replace(saved[0], origin=origin))


def _as(mean: Tensor, like: Tensor) -> Tensor:
    if like.is_floating_point():
        return mean.to(like.dtype)
    return mean.trunc().to(like.dtype)


def _check_alike(
    tensors: Mapping[str, Tensor], first: Mapping[str, Tensor], path: Path, first_path: Path
) -> None:
    apart = sorted(tensors.keys() ^ first.keys())
    apart += [
        name for name in sorted(tensors.keys() & first) if tensors[name].shape != first[name].shape
    ]
    if apart:
        raise weight_files.CheckpointError(
            f"{path} has other tensors than {first_path}: {len(apart)} differ, the first is "
            f"{apart[0]}"
        )
