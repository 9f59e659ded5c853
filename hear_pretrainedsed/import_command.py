"""The command `hear-pretrainedsed import`: files of the user's own as checkpoints with a name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from hear_pretrainedsed.cli_options import Argument, Option, Vocabulary
from hear_pretrainedsed.user_registry import FORM, import_checkpoint, remove_checkpoint

File = Annotated[Path | None, Argument(help="Weights, as `finetune` wrote them or any layout.")]
As = Annotated[str | None, Option("--as", help=f"{FORM}.")]
Remove = Annotated[str | None, Option("--remove", help="Forget this one, and remove its file.")]


def import_(
    file: File = None, name: As = None, remove: Remove = None, vocabulary: Vocabulary = None
) -> None:
    """Take a file in as a checkpoint with a name of its own, or --remove one."""
    if remove is not None:
        if file is not None or name is not None:
            raise ValueError("--remove NAME stands alone")
        print(f"removed {remove_checkpoint(remove)}")
        return
    if file is None or name is None:
        raise ValueError("give FILE --as NAME, or --remove NAME")
    checkpoint = import_checkpoint(file, name, vocabulary)
    print(checkpoint.name)
