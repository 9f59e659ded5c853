"""One step of training, its validation, and all that it takes to go on after a kill."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from hear_pretrainedsed.events import disk_errors, whole_file
from hear_pretrainedsed.memory import out_of_memory
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.training.batch import Batch
from hear_pretrainedsed.training.chance import generator_for, seed_of
from hear_pretrainedsed.training.curve import Curve
from hear_pretrainedsed.training.ema import Ema
from hear_pretrainedsed.training.finite import check_finite
from hear_pretrainedsed.training.mask_value import mask_value
from hear_pretrainedsed.training.material import own_rows
from hear_pretrainedsed.training.optimizer import make_optimizer
from hear_pretrainedsed.training.plan import Place, Plan
from hear_pretrainedsed.training.stream import (
    Stream,
    Together,
    map_tensors,
    rows_of,
    with_pseudo,
)

LAST = "last.ckpt"
CURVE = "log/metrics.csv"
KEPT = "kept"

Validate = Callable[[SEDModel], float]


@dataclass
class Progress:
    """How far a run is: its steps, and its validations as (step, score)."""

    step: int = 0
    loss: float = float("nan")
    scores: list[tuple[int, float]] = field(default_factory=list)
    best: tuple[int, float] | None = None
    n_stale: int = 0  # validations since the best one


class Stopped(Exception):  # noqa: N818 - nothing is wrong: the run was asked to stop
    """The run was told to end (SIGTERM), and has saved what it goes on from."""


class Learner(LightningModule):
    """Trains a model; `progress.step` and its weights are all that a run goes on from.

    The rows of a batch are divided between processes, and a process's rows into parts that fit
    memory. What is mixed is mixed before that, over the whole batch.
    """

    automatic_optimization = False

    def __init__(
        self,
        model: SEDModel,
        streams: Sequence[Stream],
        plan: Plan,
        place: Place,
        validate: Validate,
        tell: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)  # convolutions train faster so
        self.streams, self.plan, self.place = tuple(streams), plan, place
        self.seed = streams[0].material.seed
        self.validate_model, self.tell = validate, tell
        self.progress = Progress()
        self.finished = self.asked_to_stop = self.take_sigterm = False
        self.best_state: dict[str, Tensor] | None = None
        self.ema = Ema(model, plan.ema_decay) if plan.ema_decay is not None else None
        self.micro_pieces = place.micro
        self.curve = Curve(place.folder / CURVE) if place.logger else None

    # ---- set-up ----

    def configure_optimizers(self) -> dict[str, Any]:
        """The plan's optimiser and schedule over `param_groups`."""
        optimizer, factor = make_optimizer(self.model, self.plan)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def train_dataloader(self) -> Together:
        """The rows of this process, a batch of each stream, from the present step on."""
        loaders = [
            stream.material.loader(
                self.progress.step,
                self.plan.n_steps,
                rank=self.global_rank,
                world=self.trainer.world_size,
                n_workers=self.place.n_workers,
            )
            for stream in self.streams
        ]
        return Together(loaders)

    def on_train_start(self) -> None:
        """Training mode; averages and teachers go where the weights went."""
        if self.take_sigterm:
            signal.signal(signal.SIGTERM, self._asked_to_stop)
        self._training_mode()
        if self.ema:
            self.ema.average = {k: v.to(self.device) for k, v in self.ema.average.items()}
        for stream in self.streams:
            if stream.teacher is not None:
                stream.teacher.to(self.device).eval().requires_grad_(False)
        if self.curve and self.trainer.is_global_zero:
            self.curve.go_on_from(self.progress.step)

    def _asked_to_stop(self, *_: object) -> None:
        self.asked_to_stop = True

    def _training_mode(self) -> None:
        self.model.train()
        if self.plan.freeze_norms:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def transfer_batch_to_device(
        self, batch: Sequence[Batch], device: torch.device, _: int
    ) -> list[Batch]:
        """Audio and labels go to the device."""
        return [map_tensors(one, lambda value: value.to(device)) for one in batch]

    # ---- a step ----

    def training_step(self, batches: Sequence[Batch], batch_idx: int) -> None:
        """One step of the optimiser on a whole batch of each stream."""
        if self.finished:
            return
        step = self.progress.step
        torch.manual_seed(seed_of(self.seed, "step", step, self.global_rank))  # dropout
        with torch.no_grad():
            whole = [self._augmented(i, batch, step) for i, batch in enumerate(batches)]
        own = self._backward(whole)
        losses = [self._gathered(rows, len(b)) for rows, b in zip(own, whole, strict=True)]
        norm = self._gradient_norm()
        check_finite(self.streams, step, losses, norm, self._folder())
        optimizer = self.optimizers()
        lr = max(group["lr"] for group in optimizer.param_groups)
        optimizer.step()
        optimizer.zero_grad()
        self.lr_schedulers().step()
        if self.ema:
            self.ema.update(self.model)
        self.progress.step += 1
        weighted = zip(self.streams, losses, strict=True)
        self.progress.loss = sum(stream.weight * x.mean().item() for stream, x in weighted)
        self._log({"loss": self.progress.loss, "lr": lr, "gradient_norm": norm.item()})
        self.tell(f"step {step + 1} of {self.plan.n_steps}, loss {self.progress.loss:.4f}")

    def _gathered(self, rows: Tensor, n: int) -> Tensor:
        """Rows of every process, one after the other, `n` of them."""
        world = self.trainer.world_size
        if world == 1:
            return rows
        size = own_rows(n, 0, world).stop
        filled = rows.new_zeros(size, *rows.shape[1:])
        filled[: len(rows)] = rows
        return self.all_gather(filled).flatten(0, 1)[:n]

    def _augmented(self, number: int, batch: Batch, step: int) -> Batch:
        """A stream's batch of all processes, mixed, made a spec; every process draws the same."""
        stream = self.streams[number]
        n = len(stream.material.step(step))
        batch = map_tensors(batch, lambda rows: self._gathered(rows, n))
        if batch.n_samples is not None and not self.model.pools_tokens:
            batch = replace(batch, n_samples=None)  # frames in silence are as good as others
        what = "augment" if number == 0 else f"augment {number}"
        generator = generator_for(stream.material.seed, what, step)
        augmentation = stream.augmentation
        batch = augmentation.on_audio(batch, generator)
        frontend = self.model.frontend
        if augmentation.draw_mel_edges:
            frontend = frontend.with_drawn_edges(generator)
        batch = replace(batch, spec=self._spec(frontend, batch))
        if stream.teacher is not None:
            heard = replace(batch, n_samples=None)
            batch = replace(batch, teacher_spec=self._spec(stream.teacher.frontend, heard))
        augmentation = augmentation.with_mask_value(mask_value(self.model.frontend))
        return augmentation.on_spec(batch, generator)

    def _spec(self, frontend: nn.Module, batch: Batch) -> Tensor:
        """The spec of a whole batch, of which each process computes its rows."""
        own = rows_of(batch, own_rows(len(batch), self.global_rank, self.trainer.world_size))
        given = own if len(own) else rows_of(batch, slice(0, 1))  # one too many tells the shape
        starts = range(0, len(given), self.micro_pieces)
        parts = (rows_of(given, slice(start, start + self.micro_pieces)) for start in starts)
        spec = torch.cat([self._heard(frontend, part) for part in parts])[: len(own)]
        return self._gathered(spec, len(batch))

    def _heard(self, frontend: nn.Module, batch: Batch) -> Tensor:
        """The spec of some rows, filled up after each clip where it is known to end."""
        if batch.n_samples is None:
            return frontend(batch.audio)
        return frontend.clips(batch.audio, batch.n_samples, self.model.clip_samples)

    def _backward(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Gradients of the mean losses of whole batches; the losses of this process's rows."""
        while True:
            try:
                return [self._accumulate(i, batch) for i, batch in enumerate(batches)]
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                one = self.micro_pieces == 1
            if one or self.trainer.world_size > 1:  # the others wait for this process
                raise ValueError(self._no_memory())
            self.micro_pieces //= 2
            self.optimizers().zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _no_memory(self) -> str:
        """What to do about it; the precision of a run that goes on cannot be another one."""
        ways = ["take a smaller --batch-size"] if self.micro_pieces > 1 else []
        if self.plan.precision == "fp32":
            ways.append("begin anew in another folder with --precision bf16")
        ways = ways or ["take a device with more"]
        line = f"not enough memory for {self.micro_pieces} pieces at a time"
        return f"{line}: {', or '.join(ways)}"

    def _accumulate(self, number: int, batch: Batch) -> Tensor:
        stream = self.streams[number]
        n, world = len(batch), self.trainer.world_size
        own = own_rows(n, self.global_rank, world)
        starts = range(own.start, own.stop, self.micro_pieces)
        parts = [slice(a, min(a + self.micro_pieces, own.stop)) for a in starts]
        share = stream.weight * world / n  # several processes: their gradients are averaged
        if not parts:  # fewer rows than processes: to take part, with nothing to say
            parts, share = [slice(0, 1)], 0.0
        losses = []
        for part in parts:
            last = part is parts[-1] and stream is self.streams[-1]
            with nullcontext() if last else self._alone():
                row_losses = self._losses(stream, rows_of(batch, part))
                self.manual_backward(row_losses.sum() * share)
            losses.append(row_losses.detach())
        return torch.cat(losses)[: own.stop - own.start]

    def _losses(self, stream: Stream, batch: Batch) -> Tensor:
        """Losses of the rows of a part that fits memory."""
        return stream.loss(self.model, with_pseudo(batch, stream.teacher))

    def _alone(self) -> AbstractContextManager[None]:
        """Gradients stay in this process."""
        if self.trainer.world_size == 1:
            return nullcontext()
        return self.trainer.strategy.block_backward_sync()

    def _gradient_norm(self) -> Tensor:
        """The norm of the whole gradient, which is then clipped if the plan says so."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if self.plan.gradient_clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.plan.gradient_clip, norm)
        return norm

    def _folder(self) -> Any:
        return self.place.folder if self.trainer.is_global_zero else None

    # ---- after a step ----

    def on_train_batch_end(self, *_: object) -> None:
        """Validate, stop, save."""
        if self.finished:
            return
        step, every = self.progress.step, self.plan.valid_every_steps
        self.finished = step == self.plan.n_steps
        if self.finished or (every is not None and step % every == 0):
            self._validate()
            patience = self.plan.patience
            if patience is not None and self.progress.n_stale >= patience:
                self.finished = True
        if self.finished:
            self.trainer.should_stop = True
        elif step % self.place.save_every == 0:
            self.save()
        if not self.finished and self._any(self.asked_to_stop):
            self.save()
            raise Stopped

    def _any(self, asked: bool) -> bool:
        """Whether any process was asked."""
        if self.trainer.world_size == 1:
            return asked
        return bool(self.trainer.strategy.reduce_boolean_decision(asked, all=False))

    def _validate(self) -> None:
        progress = self.progress
        with self.averaged(), torch.no_grad():
            self.model.eval()
            score = self.validate_model(self.model) if self.trainer.is_global_zero else 0.0
            score = float(self.trainer.strategy.broadcast(score))
            self._keep()
            progress.scores.append((progress.step, score))
            if progress.best is None or score > progress.best[1]:
                progress.best, progress.n_stale = (progress.step, score), 0
                if self.plan.patience is not None:
                    state = self.model.state_dict()
                    self.best_state = {k: v.detach().cpu().clone() for k, v in state.items()}
            else:
                progress.n_stale += 1
        self._training_mode()
        self._log({"valid_score": score})

    def _keep(self) -> None:
        """The weights as they were validated, in a file of their own."""
        first, step = self.place.keep_from_step, self.progress.step
        if first is None or step < first or not self.trainer.is_global_zero:
            return
        path = self.place.folder / KEPT / f"step-{step:08d}.pt"
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as file:
            torch.save(self.model.state_dict(), file)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The weights that are validated and kept, for a while."""
        with self.ema.in_place_of(self.model) if self.ema else nullcontext():
            yield

    def write_result(self) -> None:
        """The weights that are kept, in the model, for good."""
        if self.best_state is not None:
            self.model.load_state_dict(self.best_state)
        elif self.ema:
            self.ema.write(self.model)
        self.model.to(memory_format=torch.contiguous_format).eval()

    def _log(self, values: Mapping[str, float]) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for logger in self.trainer.loggers if finite else ():  # tensorboardX complains of others
            logger.log_metrics(finite, step=self.progress.step)
        if self.curve and self.trainer.is_global_zero:
            self.curve.add(self.progress.step, values)

    # ---- what a killed run goes on from ----

    def save(self) -> None:
        """Write `LAST` in the folder, whole or not at all; what was there stays until then."""
        path = self.place.folder / LAST
        part = path.with_name(f"{LAST}.part")
        try:
            with disk_errors(path):
                self.trainer.save_checkpoint(part)
                if self.trainer.is_global_zero:
                    os.replace(part, path)
        finally:
            if self.trainer.is_global_zero:
                part.unlink(missing_ok=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Progress and averages; Lightning keeps weights, optimiser and schedule."""
        checkpoint["learner"] = {
            "progress": vars(self.progress).copy(),
            "ema": self.ema and self.ema.state_dict(),
            "best_state": self.best_state,
            "micro_pieces": self.micro_pieces,
        }

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """From what `on_save_checkpoint` wrote."""
        kept = checkpoint["learner"]
        self.progress = Progress(**kept["progress"])
        self.best_state = kept["best_state"]
        self.micro_pieces = min(kept["micro_pieces"], self.place.micro)  # what fits, if less is set
        if self.ema:
            self.ema.load_state_dict(kept["ema"])
