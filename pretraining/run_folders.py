"""Folders of weak runs as they are left: their card, their network, the files of their weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hear_pretrainedsed import weight_files
from hear_pretrainedsed.model import SEDModel, build_model
from hear_pretrainedsed.options import Options
from hear_pretrainedsed.registry import get_checkpoint
from pretraining.config import sequence_of
from pretraining.run import CARD, MODEL
from pretraining.weak_run import AVERAGED, EPOCHS

_SETTINGS = ("config", "plan", "augmentation", "weak_augmentation")
_NO_SETTINGS = ("version",)  # of a card's config: the package's own


@dataclass(frozen=True)
class RunFolder:
    """A weak run that has ended.

    name: of the folder. card: what the run wrote about itself. labels: its classes. clip_s: what
    its head sees of a clip at once; None: as the backbone has it.
    """

    name: str
    folder: Path
    card: dict[str, Any]
    head: str
    labels: tuple[str, ...]
    clip_s: float | None = None

    @property
    def seed(self) -> int:
        """Of its chance."""
        return int(self.card["seed"])

    @property
    def settings(self) -> str:
        """All that its weights depend on beside the seed, as one text."""
        parts = {name: self.card.get(name) for name in _SETTINGS}
        config = {k: v for k, v in parts["config"].items() if k not in _NO_SETTINGS}
        return json.dumps({**parts, "config": config}, sort_keys=True)

    @property
    def epochs(self) -> list[Path]:
        """The checkpoints that were kept, in their order."""
        return sorted((self.folder / EPOCHS).glob("step-*.safetensors"))

    @property
    def averaged(self) -> Path | None:
        """The mean of these, if there is one."""
        path = self.folder / AVERAGED
        return path if path.is_file() else None

    @property
    def last(self) -> Path:
        """What the run ended with."""
        return self.folder / MODEL

    def network(self, batch_size: int | None = None) -> SEDModel:
        """Its network at random weights, in eval mode. `ValueError` for a card that tells none."""
        config = self.card["config"]
        start = get_checkpoint(config["start"]) if config.get("start") else None
        backbone = config.get("backbone") or (start and start.backbone)
        if backbone is None:
            raise ValueError(f"{self.folder / CARD} tells neither a backbone nor a start")
        sequence = start and start.sequence_model
        if config.get("sequence_model"):
            layers = (config["n_layers"],) if config.get("n_layers") else ()
            sequence = (*sequence_of(config["sequence_model"]), *layers)
        options = Options(batch_size=batch_size)
        return build_model(
            backbone,
            sequence_model=sequence,
            head=self.head,
            labels=self.labels,
            clip_s=self.clip_s,
            options=options,
        )


def read_runs(folders: Sequence[Path]) -> list[RunFolder]:
    """Weak runs that may be compared: of the same classes, each another one.

    Raises `ValueError` in one line for a folder that is none, or of another stage, for other
    classes than the first's, and for two runs of one seed and the same settings.
    """
    names = [folder.name for folder in map(Path.resolve, folders)]
    runs = []
    for folder, name in zip(folders, names, strict=True):
        run = _read_run(folder, name if names.count(name) == 1 else str(folder))
        for other in runs:
            if run.labels != other.labels:
                raise ValueError(
                    f"{folder} has other classes ({len(run.labels)}) than {other.folder} "
                    f"({len(other.labels)}): their scores cannot be put together"
                )
            if (run.settings, run.seed) == (other.settings, other.seed):
                raise ValueError(
                    f"{folder} and {other.folder} are one run: same settings, seed {run.seed}"
                )
        runs.append(run)
    return runs


def names_of_settings(runs: Sequence[RunFolder]) -> dict[str, str]:
    """A short name for each of the runs' settings: the recipe's, numbered if it has several."""
    names: dict[str, str] = {}
    for run in runs:
        if run.settings not in names:
            recipe = str(run.card.get("recipe"))
            n = sum(name.split(" #")[0] == recipe for name in names.values())
            names[run.settings] = f"{recipe} #{n + 1}" if n else recipe
    return names


def _read_run(folder: Path, name: str) -> RunFolder:
    try:
        card = json.loads((folder / CARD).read_text("utf-8"))
        stage, _ = card["config"]["stage"], int(card["seed"])
    except OSError:
        raise ValueError(f"{folder} is no run that has ended: there is no {CARD} in it") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / CARD} is no card of `pretrain`") from None
    if stage != "weak":
        raise ValueError(f"{folder} is a run of the stage {stage}; clip scores are of weak ones")
    saved = weight_files.read_saved(folder / MODEL)
    if saved is None or saved.head is None or saved.labels is None:
        weight_files.read(folder / MODEL)  # a file that cannot be read is told as such
        raise ValueError(f"{folder / MODEL} does not tell its head and classes")
    return RunFolder(name, folder, card, saved.head, saved.labels, saved.clip_s)
