"""One step of training, its validation, and all that it takes to go on after a kill."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.training.augment import mixup, wavmix
from hear_pretrainedsed.training.batch import Batch
from hear_pretrainedsed.training.chance import generator_for, seed_of
from hear_pretrainedsed.training.ema import Ema
from hear_pretrainedsed.training.param_groups import param_groups
from hear_pretrainedsed.training.pieces import GRID, Order, loader, own_rows
from hear_pretrainedsed.training.plan import Place, Plan
from hear_pretrainedsed.training.schedule import warmup_cosine

LAST = "last.ckpt"
_N_NAMED = 5

Loss = Callable[[Tensor, Tensor], Tensor]
Validate = Callable[[SEDModel], float]


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy (batch,) of logits and targets (batch, frames, classes)."""
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return losses.mean(dim=(1, 2))


@dataclass
class Progress:
    """How far a run is: its steps, and its validations as (step, score)."""

    step: int = 0
    loss: float = float("nan")
    scores: list[tuple[int, float]] = field(default_factory=list)
    best: tuple[int, float] | None = None
    n_stale: int = 0  # validations since the best one


class Learner(LightningModule):
    """Trains a model; `progress.step` and its weights are all that a run goes on from.

    The rows of a batch are divided between processes, and a process's rows into parts that fit
    memory. What is mixed is mixed before that, over the whole batch.
    """

    automatic_optimization = False

    def __init__(
        self,
        model: SEDModel,
        order: Order,
        plan: Plan,
        place: Place,
        validate: Validate,
        tell: Callable[[str], None],
        loss: Loss = bce,
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)  # convolutions train faster so
        self.order, self.plan, self.place = order, plan, place
        self.validate_model, self.tell, self.loss = validate, tell, loss
        self.progress = Progress()
        self.finished = False
        self.best_state: dict[str, Tensor] | None = None
        self.ema = Ema(model, plan.ema_decay) if plan.ema_decay is not None else None
        self.micro_pieces = place.micro

    # ---- set-up ----

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW over `param_groups`, warm-up and cosine."""
        plan = self.plan
        groups = param_groups(
            self.model,
            plan.lr,
            plan.weight_decay,
            plan.layer_decay,
            vector_decay=plan.vector_decay,
            backbone_lr=plan.backbone_lr,
        )
        optimizer = torch.optim.AdamW(groups)
        factor = warmup_cosine(plan.n_warmup_steps, plan.n_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """The rows of this process, from the present step on."""
        return loader(
            self.order,
            self.progress.step,
            self.plan.n_steps,
            rank=self.global_rank,
            world=self.trainer.world_size,
            n_workers=self.place.n_workers,
        )

    def on_train_start(self) -> None:
        """Training mode; the average goes where the weights went."""
        self._training_mode()
        if self.ema:
            self.ema.average = {k: v.to(self.device) for k, v in self.ema.average.items()}

    def _training_mode(self) -> None:
        self.model.train()
        if self.plan.freeze_norms:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, _: int) -> Batch:
        """Audio and targets go to the device."""
        audio, targets = batch.audio.to(device), batch.targets.to(device)
        return replace(batch, audio=audio, targets=targets)

    # ---- a step ----

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step of the optimiser on a whole batch."""
        if self.finished:
            return
        step = self.progress.step
        torch.manual_seed(seed_of(self.order.seed, "step", step, self.global_rank))  # dropout
        n = len(self.order.step(step))
        with torch.no_grad():
            whole = self._augmented(self._whole(batch, n), step)
        losses = self._gathered(self._backward(whole), n)
        norm = self._gradient_norm()
        self._check(losses, norm)
        optimizer = self.optimizers()
        lr = max(group["lr"] for group in optimizer.param_groups)
        optimizer.step()
        optimizer.zero_grad()
        self.lr_schedulers().step()
        if self.ema:
            self.ema.update(self.model)
        self.progress.step += 1
        self.progress.loss = losses.mean().item()
        self._log({"loss": self.progress.loss, "lr": lr, "gradient_norm": norm.item()})
        self.tell(f"step {step + 1} of {self.plan.n_steps}, loss {self.progress.loss:.4f}")

    def _whole(self, batch: Batch, n: int) -> Batch:
        """The rows of all processes."""
        audio, targets = self._gathered(batch.audio, n), self._gathered(batch.targets, n)
        return replace(batch, audio=audio, targets=targets)

    def _gathered(self, rows: Tensor, n: int) -> Tensor:
        """Rows of every process, one after the other, `n` of them."""
        world = self.trainer.world_size
        if world == 1:
            return rows
        size = own_rows(n, 0, world).stop
        filled = rows.new_zeros(size, *rows.shape[1:])
        filled[: len(rows)] = rows
        return self.all_gather(filled).flatten(0, 1)[:n]

    def _augmented(self, batch: Batch, step: int) -> Batch:
        """Audio mixed, made a spec, specs mixed; every process draws the same."""
        generator = generator_for(self.order.seed, "augment", step)
        if self.plan.wavmix is not None:
            batch = wavmix(batch, generator, self.plan.wavmix)
        own = batch.audio[own_rows(len(batch), self.global_rank, self.trainer.world_size)]
        frontend = self.model.frontend
        if self.plan.draw_mel_edges:
            frontend = frontend.with_drawn_edges(generator)
        given = own if len(own) else batch.audio[:1]  # one too many tells the shape
        spec = torch.cat([frontend(part) for part in given.split(self.micro_pieces)])[: len(own)]
        batch = replace(batch, spec=self._gathered(spec, len(batch)))
        if self.plan.mixup is not None:
            batch = mixup(batch, generator, self.plan.mixup)
        return batch

    def _backward(self, batch: Batch) -> Tensor:
        """Gradients of the mean loss of a whole batch; the losses of this process's rows."""
        while True:
            try:
                return self._accumulate(batch)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                one = self.micro_pieces == 1
            if one or self.trainer.world_size > 1:  # the others wait for this process
                raise ValueError(
                    f"not enough memory for {self.micro_pieces} pieces of 10 s at a time: "
                    "take a smaller --batch-size, or bf16"
                )
            self.micro_pieces //= 2
            self.optimizers().zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _accumulate(self, batch: Batch) -> Tensor:
        n, world = len(batch), self.trainer.world_size
        own = own_rows(n, self.global_rank, world)
        starts = range(own.start, own.stop, self.micro_pieces)
        parts = [slice(a, min(a + self.micro_pieces, own.stop)) for a in starts]
        share = world / n  # several processes: their gradients are averaged
        if not parts:  # fewer rows than processes: to take part, with nothing to say
            parts, share = [slice(0, 1)], 0.0
        losses = []
        for part in parts:
            with nullcontext() if part is parts[-1] else self._alone():
                row_losses = self.loss(self._logits(batch.spec[part]), batch.targets[part])
                self.manual_backward(row_losses.sum() * share)
            losses.append(row_losses.detach())
        return torch.cat(losses)[: own.stop - own.start]

    def _alone(self) -> AbstractContextManager[None]:
        """Gradients stay in this process."""
        if self.trainer.world_size == 1:
            return nullcontext()
        return self.trainer.strategy.block_backward_sync()

    def _logits(self, spec: Tensor) -> Tensor:
        tokens = self.model.backbone(spec)
        frames = self.model.sequence_model(self.model.grid.to_frames(tokens))
        return self.model.head(frames)

    def _gradient_norm(self) -> Tensor:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def _check(self, losses: Tensor, norm: Tensor) -> None:
        """Stop at a loss or gradient that is not finite, before the weights take it in."""
        if losses.isfinite().all() and norm.isfinite():
            return
        step = self.progress.step
        crops = self.order.step(step)
        bad = (~losses.isfinite()).nonzero().flatten().tolist()
        what = f"the loss is {losses[bad[0]].item()}" if bad else "the gradient is not finite"
        bad = bad or list(range(len(crops)))
        names = [
            f"{self.order.recordings[number].file} from {first * GRID.hop_s:.2f} s"
            for number, first in (crops[row] for row in bad[:_N_NAMED])
        ]
        more = ", ..." if len(bad) > _N_NAMED else ""
        raise ValueError(
            f"step {step + 1}: {what} for {len(bad)} of {len(crops)} pieces: {', '.join(names)}"
            f"{more}; what was saved before is kept. Listen to them, or take a lower lr"
        )

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

    def _validate(self) -> None:
        progress = self.progress
        with self.averaged(), torch.no_grad():
            self.model.eval()
            score = self.validate_model(self.model) if self.trainer.is_global_zero else 0.0
            score = float(self.trainer.strategy.broadcast(score))
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
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(values), step=self.progress.step)

    # ---- what a killed run goes on from ----

    def save(self) -> None:
        """Write `LAST` in the folder, whole or not at all; what was there stays until then."""
        path = self.place.folder / LAST
        part = path.with_name(f"{LAST}.part")
        try:
            self.trainer.save_checkpoint(part)
            if self.trainer.is_global_zero:
                os.replace(part, path)
        except OSError as error:  # a full disk names no file by itself
            raise OSError(error.errno, error.strerror, str(path)) from error
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
        self.best_state, self.micro_pieces = kept["best_state"], kept["micro_pieces"]
        if self.ema:
            self.ema.load_state_dict(kept["ema"])


def _out_of_memory(error: RuntimeError | MemoryError) -> bool:
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "allocate memory" in str(error)
