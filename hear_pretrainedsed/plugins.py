"""Commands of the packages on top of this one, imported only when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import typer

#: command -> (module, its function); the function is a typer command.
COMMANDS = {
    "evaluate": ("downstream.evaluate", "evaluate"),
    "reproduce": ("downstream.reproduce", "reproduce"),
    "report": ("downstream.report", "report"),
    "compare": ("downstream.compare", "compare"),
    "finetune": ("downstream.finetune_command", "finetune"),
    "pretrain": ("pretraining.command", "pretrain"),
    "corpus": ("pretraining.corpus_command", "corpus"),
    "pseudo-labels": ("pretraining.pseudo_labels_command", "pseudo_labels"),
    "enhance-labels": ("pretraining.enhance_command", "enhance_labels"),
    "average-weights": ("pretraining.average_command", "average_weights"),
    "ensemble-results": ("pretraining.ensemble_command", "ensemble_results"),
    "build-task": ("downstream.build_task", "build_task"),
}
_LISTS = ("--checkpoints", "--tasks", "--protocols", "--modes", "--source", "--audio", "--strong")


def add_commands(app: typer.Typer, arguments: Sequence[str]) -> None:
    """Add the commands that the arguments name, or all of them where help is asked for."""
    asked = [word for word in arguments if not word.startswith("-")][:1]
    known = {command.name for command in app.registered_commands}
    for name, (module, function) in COMMANDS.items():
        if (asked and asked[0] != name) or name in known:
            continue
        try:
            command = getattr(import_module(module), function)
        except ModuleNotFoundError as error:
            if asked:
                extra = module.partition(".")[0]
                raise ValueError(
                    f"{name} needs {error.name}: pip install 'hear-pretrainedsed[{extra}]'"
                ) from None
            continue
        app.command(name)(command)


def spread(arguments: Sequence[str]) -> list[str]:
    """`--tasks a b` as `--tasks a --tasks b`, for the options that take lists."""
    out: list[str] = []
    option, n_values = "", 0
    for word in arguments:
        if word.startswith("-") and word != "-":
            option, n_values = (word if word in _LISTS else ""), 0
        elif option:
            if n_values:
                out.append(option)
            n_values += 1
        out.append(word)
    return out
