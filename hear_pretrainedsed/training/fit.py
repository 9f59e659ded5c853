"""Train a model: Lightning's trainer around `Learner`, gone on with after a kill."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import (
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from hear_pretrainedsed.events import disk_errors, whole_file
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.registry import unknown
from hear_pretrainedsed.training.learner import KEPT, LAST, Learner, Stopped, Validate
from hear_pretrainedsed.training.plan import Place, Plan
from hear_pretrainedsed.training.processes import Parallel, environment
from hear_pretrainedsed.training.stream import Stream

CONFIG, FITTED, WEIGHTS = "config.json", "fitted.json", "weights.pt"
_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}

LOGGERS: dict[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "csv": (),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
"""Loggers, and the packages of which they need one; with each, `learner.CURVE` is kept as well."""


@dataclass(frozen=True)
class Fitted:
    """How a training ended.

    n_steps: steps that were made. kept_step: the one whose weights were kept. valid_score: theirs.
    valid_scores: (step, score) of every validation. loss: of the last step. micro_pieces: pieces in
    memory at a time, at the end.
    """

    n_steps: int
    kept_step: int
    valid_score: float
    valid_scores: tuple[tuple[int, float], ...]
    loss: float
    micro_pieces: int


def fit(
    model: SEDModel,
    streams: Sequence[Stream],
    plan: Plan,
    place: Place,
    *,
    validate: Validate,
    config: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Fitted:
    """Train a model, in place; left in eval mode on the CPU, with the weights that are kept.

    A run that was killed goes on from what it has left in `place.folder`, and ends as it would have
    without: to the last bit on a CPU with the same number of threads. One that has ended is not run
    again. Several nodes share the folder. SIGTERM ends a run after the step that it is in: that
    step is saved, and the process exits with 143.

    Args:
        model: with a head that gives what the streams' losses are of.
        streams: what is learned; the first one's seed is that of dropout.
        plan, place: how, and where.
        validate: the model, in eval mode -> a score, the larger the better; -inf: none.
        config: whatever else the result depends on; JSON.
        tell: is called with a line on where the training is.

    Raises:
        ValueError: the folder holds a run of another config (the differences are named), a loss is
            not finite (the pieces are named), what an earlier call left is damaged (the file is
            named, and nothing is written), or even one piece at a time needs too much memory.
        OSError: what a run goes on from or leaves cannot be written; it has the file's name.
    """
    folder = place.folder
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / LAST
    trainer = _trainer(place, plan.precision, _saved_step(last))
    content = _content(streams, plan, config or {})
    check_config(folder, content, begun=has_begun(folder), writes=trainer.is_global_zero)
    if (fitted := _finished(model, folder)) is not None:
        return fitted
    learner = Learner(model, streams, plan, place, validate, tell)
    try:
        with disk_errors(folder), _quiet(), _sigterm_asks(learner):  # loggers name no file
            trainer.fit(learner, ckpt_path=last if last.is_file() else None, weights_only=True)
    except Stopped:
        raise SystemExit(128 + signal.SIGTERM) from None
    learner.write_result()
    model.cpu()
    progress = learner.progress
    kept = progress.best if plan.patience is not None else progress.scores[-1]
    scores = tuple(progress.scores)
    fitted = Fitted(progress.step, *kept, scores, progress.loss, learner.micro_pieces)
    if trainer.is_global_zero:
        _finish(model, fitted, folder)
    return fitted


def _finish(model: SEDModel, fitted: Fitted, folder: Path) -> None:
    """Keep the weights and, once they are there, what is known of them; nothing else is needed."""
    with whole_file(folder / WEIGHTS) as file:
        torch.save(model.state_dict(), file)
    with whole_file(folder / FITTED) as file:
        file.write(json.dumps(asdict(fitted), indent=1).encode() + b"\n")
    (folder / LAST).unlink(missing_ok=True)


def _finished(model: SEDModel, folder: Path) -> Fitted | None:
    """What is known of a run that has ended, its weights in the model; None for any other."""
    if not ((folder / FITTED).is_file() and (folder / WEIGHTS).is_file()):
        return None
    with undamaged(folder / FITTED):
        content = json.loads((folder / FITTED).read_text(encoding="utf-8"))
        content["valid_scores"] = tuple(map(tuple, content["valid_scores"]))
        fitted = Fitted(**content)
    with undamaged(folder / WEIGHTS):
        model.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True))
    model.eval()
    return fitted


@contextmanager
def undamaged(
    path: Path, otherwise: str = "remove it and the run begins again from its first step"
) -> Iterator[None]:
    """Whatever reading a damaged file of a run raises, as one line; a missing one stays that.

    otherwise: what can be done about it where no copy is at hand.
    """
    try:
        yield
    except Exception as error:  # torch raises a dozen kinds on bad bytes, OSError among them
        if isinstance(error, MemoryError) or getattr(error, "filename", None) is not None:
            raise
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}): put an earlier copy of it there, or "
            f"{otherwise}"
        ) from None


def default_logger() -> str:
    """TensorBoard where a package for it is installed, else CSV."""
    return "tensorboard" if _installed("tensorboard") else "csv"


def _installed(name: str) -> bool:
    packages = LOGGERS[name]
    return not packages or any(find_spec(package) for package in packages)


def check_logger(name: str) -> None:
    """Refuse a logger that nobody knows, or whose package is missing."""
    if name not in LOGGERS:
        raise ValueError(unknown("logger", name, LOGGERS))
    if not _installed(name):
        raise ValueError(f"the logger {name} needs the package {LOGGERS[name][0]}")


def _saved_step(path: Path) -> int:
    """The step that a killed run goes on from; 0 where there is none."""
    if not path.is_file():
        return 0
    with undamaged(path):
        saved = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
        return int(saved["learner"]["progress"]["step"])


def _logger(name: str, folder: Path, step: int) -> Logger | bool:
    """A logger whose curve goes on after `step`, what is there of later ones is taken out."""
    check_logger(name)
    if name == "csv":
        return False  # the learner keeps it
    if name == "wandb":
        run = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        return WandbLogger(save_dir=folder, name=folder.name, id=run)
    if name == "mlflow":
        return MLFlowLogger(save_dir=str(folder / "log"))
    return TensorBoardLogger(folder, name="log", version="", purge_step=step + 1 if step else None)


def _trainer(place: Place, precision: str, step: int) -> Trainer:
    accelerator, _, index = place.device.partition(":")
    several = place.n_devices * place.n_nodes > 1
    with _quiet():
        return Trainer(
            accelerator="gpu" if accelerator == "cuda" else accelerator,
            devices=[int(index)] if index else place.n_devices,
            num_nodes=place.n_nodes,
            strategy=Parallel() if several else "auto",
            plugins=environment(place),
            sync_batchnorm=several and accelerator == "cuda",
            precision=_PRECISION[precision],
            max_epochs=1,  # the one stream of pieces: epochs are the material's
            logger=_logger(place.logger, place.folder, step) if place.logger else False,
            default_root_dir=place.folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
        )


def _content(streams: Sequence[Stream], plan: Plan, config: Mapping[str, Any]) -> dict[str, Any]:
    """All that a run's numbers depend on."""
    content = {**config, **asdict(plan)}
    for number, stream in enumerate(streams, 1):
        before = "" if number == 1 else f"stream {number}: "
        facts = {"seed": stream.material.seed, "n_pieces": stream.material.n_pieces}
        facts |= {"weight": stream.weight, **asdict(stream.augmentation)}
        content |= {f"{before}{name}": value for name, value in facts.items()}
    return content


def has_begun(folder: Path) -> bool:
    """Whether a run has left something there that another one would spoil."""
    files = (folder / name for name in (LAST, FITTED, WEIGHTS))
    return any(path.is_file() for path in files) or any((folder / KEPT).glob("*.pt"))


def check_config(
    folder: Path, config: Mapping[str, Any], *, begun: bool, writes: bool = True
) -> None:
    """Refuse a folder with a run of another config; note this one where none has got anywhere.

    begun: whether something is there that belongs to the config that is noted. writes: this process
    is the one of several that notes it.
    """
    path = folder / CONFIG
    text = json.dumps(config, indent=1, sort_keys=True)
    if not (begun and path.is_file()):
        if writes:
            with whole_file(path) as file:
                file.write(text.encode() + b"\n")
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(there, dict):
            raise ValueError
    except ValueError:
        told = f"{path} is no JSON object: it does not say what was begun there"
        raise ValueError(told) from None
    now = json.loads(text)
    names = sorted(there.keys() | now.keys())
    apart = [
        f"{name} was {there.get(name)!r}, is {now.get(name)!r}"
        for name in names
        if there.get(name) != now.get(name)
    ]
    if apart:
        raise ValueError(
            f"{folder} holds a run that was begun with other settings: {'; '.join(apart)}. "
            "Set them as they were, or take another folder"
        )


@contextmanager
def _sigterm_asks(learner: Learner) -> Iterator[None]:
    """SIGTERM asks for an end after the step, instead of what Lightning does with it.

    Its handler talks to other processes from within, which waits for ever where they are not in
    the same place; ours is put in its place once training has begun.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread():
        learner.take_sigterm = True
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """No notes of Lightning's, and Ctrl-C as Python has it: Lightning makes it an exit of 1."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    levels = {name: logging.getLogger(name).level for name in names}
    handler = signal.getsignal(signal.SIGINT)
    interrupted = False
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    except SystemExit:
        interrupted = isinstance(sys.exc_info()[1].__context__, KeyboardInterrupt)
        if not interrupted:
            raise
    finally:
        if signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    if interrupted:
        raise KeyboardInterrupt
