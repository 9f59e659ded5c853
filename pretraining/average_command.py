"""`hear-pretrainedsed average-weights`: the mean of a run's checkpoints, as one more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from hear_pretrainedsed import weight_files
from hear_pretrainedsed.cli_options import Argument, Option
from pretraining.weak_run import EPOCHS, averaged_of
from pretraining.weight_averaging import average_files

ENDINGS = (".safetensors", ".pt")

Files = Annotated[
    list[Path], Argument(help="Weights in the order of their epochs, or a run's folder.")
]
Out = Annotated[Path, Option("--out", "-o", help="File, .safetensors or .pt.")]
FirstTwice = Annotated[
    bool, Option("--first-twice", help="The first counts twice, as in PSLA's training script.")
]


def average_weights(files: Files, out: Out, first_twice: FirstTwice = False) -> None:
    """Write the mean of several checkpoints of one run; `import` takes it in."""
    if out.suffix not in ENDINGS:
        raise ValueError(f"-o is {out}; its name has to end in {' or '.join(ENDINGS)}")
    if not out.parent.is_dir():
        raise ValueError(f"cannot write {out}: there is no folder {out.parent}")
    paths = [path for given in files for path in checkpoints_of(given)]
    if len(paths) < 2:
        raise ValueError(f"an average is of two files at least, got {paths[0]} alone")
    if any(out.exists() and path.exists() and out.samefile(path) for path in paths):
        raise ValueError(f"-o is {out}, which is one of those that are averaged")
    average_files(paths, out, first_twice=first_twice)
    twice = ", the first counted twice" if first_twice else ""
    print(f"{out}: the mean of {len(paths)} files, {paths[0].name} to {paths[-1].name}{twice}")


def checkpoints_of(path: Path) -> list[Path]:
    """A file itself; of a run's folder, or that of its epochs, the checkpoints to average.

    These are those that were kept, from the recipe's average_from_epoch on if it has one.

    Raises `ValueError` for a folder without any.
    """
    if not path.is_dir():
        return [path]
    folder = path / EPOCHS if (path / EPOCHS).is_dir() else path
    found = sorted(folder.glob("step-*.safetensors"))
    if not found:
        raise ValueError(
            f"{path} has no checkpoints {EPOCHS}/step-*.safetensors: a run keeps them from the "
            "epoch on that its recipe's keep_from_epoch says"
        )
    saved = weight_files.read_saved(found[0])
    origin = (saved and saved.origin) or {}
    return averaged_of(found, origin.get("average_from_step"))
