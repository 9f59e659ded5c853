"""fit: learns, accumulates exactly, stops when it should, refuses what it should."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.training import fit as fit_module
from hear_pretrainedsed.training import learner as learner_module
from hear_pretrainedsed.training.augmentation import Augmentation
from hear_pretrainedsed.training.batch import Batch
from hear_pretrainedsed.training.fit import Fitted, check_logger, default_logger, fit
from hear_pretrainedsed.training.learner import LAST
from hear_pretrainedsed.training.param_groups import param_groups
from hear_pretrainedsed.training.pieces import Order, Recording
from hear_pretrainedsed.training.plan import Place, Plan
from hear_pretrainedsed.training.stream import Loss, Stream, bce
from tests.tiny_model import tiny_model, tones

PLAN = Plan(
    n_steps=6,
    n_warmup_steps=2,
    batch_pieces=5,
    lr=0.05,
    weight_decay=1e-3,
    layer_decay=0.8,
)
MIXED = Augmentation(wavmix=0.5, mixup=0.5)
PLAIN = Augmentation()


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    """Threads wait for each other longer than this model takes."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    return tones(tmp_path_factory.mktemp("tones"), (31.0, 10.0, 4.0))


def run(
    recordings: list[Recording],
    folder: Path,
    plan: Plan = PLAN,
    model: SEDModel | None = None,
    validate: Callable[[SEDModel], float] = lambda model: 0.0,
    seed: int = 0,
    augmentation: Augmentation = MIXED,
    loss: Loss = bce,
    **more: object,
) -> tuple[SEDModel, Fitted]:
    place = {k: more.pop(k) for k in ("micro_pieces", "logger", "save_every_steps") if k in more}
    model = tiny_model() if model is None else model
    order = Order(recordings, plan.batch_pieces, seed, plan.balanced)
    streams = [Stream(order, augmentation, loss)]
    fitted = fit(model, streams, plan, Place(folder, **place), validate=validate, **more)
    return model, fitted


def state(model: SEDModel) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def close(one: SEDModel, two: SEDModel, tolerance: float) -> None:
    for a, b in zip(state(one), state(two), strict=True):
        assert (a - b).abs().max() <= tolerance * (1 + b.abs().max())


def test_a_score_that_is_none_is_logged_without_a_word(recordings, tmp_path, capfd, caplog) -> None:
    logger = default_logger()
    _, fitted = run(recordings, tmp_path, validate=lambda model: -math.inf, logger=logger)
    assert fitted.valid_score == -math.inf
    assert capfd.readouterr() == ("", "")
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
    curve = (tmp_path / "log/metrics.csv").read_text().splitlines()
    assert curve[-1].endswith(",-inf") and len(curve) == 1 + PLAN.n_steps + 1


def test_it_learns(recordings, tmp_path) -> None:
    plan = replace(PLAN, n_steps=100, n_warmup_steps=5, batch_pieces=2)
    lines: list[str] = []
    model, fitted = run(recordings, tmp_path, plan, augmentation=PLAIN, tell=lines.append)
    first, last = (float(line.rsplit(" ", 1)[1]) for line in (lines[0], lines[-1]))
    assert first > 0.5 and last < 0.15 and fitted.loss == pytest.approx(last, abs=1e-4)
    assert lines[0].startswith("step 1 of 100, loss ") and len(lines) == 100
    assert not model.training and (fitted.n_steps, fitted.kept_step) == (100, 100)


def test_one_step_is_adamw_by_hand(recordings, tmp_path) -> None:
    plan = replace(PLAN, n_steps=3, n_warmup_steps=0)
    model, _ = run(recordings, tmp_path, plan, augmentation=PLAIN)
    other = tiny_model().train()
    groups = param_groups(other, plan.lr, plan.weight_decay, plan.layer_decay)
    optimizer = torch.optim.AdamW(groups)
    lrs = [group["lr"] for group in optimizer.param_groups]
    for step, batch in enumerate(Order(recordings, 5, 0).loader(0, 3)):
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / 3))
        logits = other.head(other(batch.audio))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    close(model, other, 1e-6)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_parts_of_a_batch_give_the_whole_batch_s_step(recordings, tmp_path, micro) -> None:
    """Wavmix and mixup included: they are drawn over the whole batch."""
    whole, _ = run(recordings, tmp_path / "whole", micro_pieces=8)
    parts, fitted = run(recordings, tmp_path / "parts", micro_pieces=micro)
    close(parts, whole, 2e-5)
    assert fitted.micro_pieces == micro
    drift = max((a - b).abs().max() for a, b in zip(state(whole), state(tiny_model()), strict=True))
    assert drift > 0.01


def test_frozen_norms_make_parts_exact_and_keep_statistics(recordings, tmp_path) -> None:
    plan = replace(PLAN, freeze_norms=True)
    models = [
        run(recordings, tmp_path / str(n), plan, tiny_model(norm=True), micro_pieces=n)[0]
        for n in (1, 8)
    ]
    close(*models, 2e-5)
    norm = models[0].backbone.blocks[0][1]
    assert norm.running_mean.eq(0).all() and norm.running_var.eq(1).all()
    plain, _ = run(recordings, tmp_path / "plain", PLAN, tiny_model(norm=True))
    assert not plain.backbone.blocks[0][1].running_mean.eq(0).all()


def test_the_average_is_validated_and_kept(recordings, tmp_path) -> None:
    seen: list[Tensor] = []

    def validate(model: SEDModel) -> float:
        assert not model.training and not torch.is_grad_enabled()
        seen.append(model.head.strong.weight.clone())
        return 0.0

    plan = replace(PLAN, ema_decay=0.99, valid_every_steps=3)
    model, _ = run(recordings, tmp_path / "average", plan, validate=validate)
    assert len(seen) == 2 and torch.equal(seen[1], model.head.strong.weight)
    plain, _ = run(recordings, tmp_path / "plain", replace(PLAN, valid_every_steps=3))
    start = tiny_model().head.strong.weight
    assert (model.head.strong.weight - start).norm() < (plain.head.strong.weight - start).norm()
    assert not torch.equal(plain.head.strong.weight, model.head.strong.weight)


def test_it_stops_when_validation_brings_nothing(recordings, tmp_path) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.9])
    seen: list[list[Tensor]] = []

    def validate(model: SEDModel) -> float:
        seen.append(state(model))
        return next(scores)

    plan = replace(PLAN, n_steps=40, valid_every_steps=2, patience=2)
    model, fitted = run(recordings, tmp_path, plan, validate=validate)
    assert fitted.valid_scores == ((2, 0.1), (4, 0.5), (6, 0.4), (8, 0.5))
    assert (fitted.n_steps, fitted.kept_step, fitted.valid_score) == (8, 4, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(state(model), seen[1], strict=True))


def test_a_run_that_never_scores_keeps_something(recordings, tmp_path) -> None:
    plan = replace(PLAN, valid_every_steps=1, patience=2)
    _, fitted = run(recordings, tmp_path, plan, validate=lambda model: -math.inf)
    assert (fitted.n_steps, fitted.kept_step) == (3, 1)


def test_a_finished_run_is_not_run_again(recordings, tmp_path) -> None:
    model, fitted = run(recordings, tmp_path)

    def never(model: SEDModel) -> float:
        raise AssertionError("it was validated again")

    again, known = run(recordings, tmp_path, validate=never)
    assert known == fitted and all(
        torch.equal(a, b) for a, b in zip(state(model), state(again), strict=True)
    )
    assert not (tmp_path / LAST).exists()


def test_another_config_is_refused_with_the_difference(recordings, tmp_path) -> None:
    run(recordings, tmp_path, config={"task": "a"})
    with pytest.raises(ValueError, match=r"other settings: lr was 0.05, is 0.1; task was 'a', is"):
        run(recordings, tmp_path, replace(PLAN, lr=0.1), config={"task": "b"})
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        run(recordings, tmp_path, seed=1, config={"task": "a"})
    with pytest.raises(ValueError, match="extra was None, is 3"):
        run(recordings, tmp_path, config={"task": "a", "extra": 3})
    for text in ("{", "[1]", "3"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json is no JSON object: it does not say"):
            run(recordings, tmp_path)


def test_nan_stops_and_names_the_pieces(recordings, tmp_path) -> None:
    """The weights that were saved before are kept as they were."""

    def loss(model: SEDModel, batch: Batch) -> Tensor:
        rows = bce(model, batch)
        return rows * math.nan if batch.targets.eq(0).all() else rows

    quiet = replace(recordings[2], targets=recordings[2].targets * 0, file="quiet.wav")
    both = [recordings[0], quiet]
    seed = next(i for i in range(9) if Order(both, 1, i).step(0)[0][0] == 0)  # not at once
    plan = replace(PLAN, batch_pieces=1, n_steps=20)
    message = r"step \d+: the loss is nan for 1 of 1 pieces: quiet.wav from 0.00 s"
    with pytest.raises(ValueError, match=message):
        more = {"loss": loss, "save_every_steps": 1, "augmentation": PLAIN}
        run(both, tmp_path, plan, seed=seed, **more)
    assert (tmp_path / "bad_batch.txt").read_text() == "quiet.wav from 0.00 s\n"
    kept = torch.load(tmp_path / LAST, weights_only=True)
    values = kept["state_dict"].values()
    assert kept["learner"]["progress"]["step"] >= 1 and all(v.isfinite().all() for v in values)


def test_a_gradient_that_is_not_finite_stops_too(recordings, tmp_path) -> None:
    def loss(model: SEDModel, batch: Batch) -> Tensor:
        rows = bce(model, batch)
        return torch.where(rows < 0, rows * math.nan, rows)  # never, but for the gradient

    message = r"step 1: the gradient is not finite for 5 of 5 pieces: \d.wav from"
    with pytest.raises(ValueError, match=message):
        run(recordings, tmp_path, loss=loss)


def test_many_bad_pieces_are_named_in_short(recordings, tmp_path) -> None:
    plan = replace(PLAN, batch_pieces=8, lr=1e30, backbone_lr=1e30, n_warmup_steps=0)
    with pytest.raises(ValueError, match=r"for \d of 5 pieces: (\d.wav from [\d.]+ s(, )?){1,5}"):
        run(recordings, tmp_path, plan, augmentation=Augmentation(wavmix=0.5))


def test_out_of_memory_halves_what_is_in_memory(recordings, tmp_path) -> None:
    def tight(model: SEDModel, batch: Batch) -> Tensor:
        if len(batch) > 2:
            raise RuntimeError("can't allocate memory: you tried to allocate 9 bytes")
        return bce(model, batch)

    def none(model: SEDModel, batch: Batch) -> Tensor:
        raise RuntimeError("can't allocate memory: you tried to allocate 9 bytes")

    whole, _ = run(recordings, tmp_path / "whole")
    model, fitted = run(recordings, tmp_path / "tight", loss=tight)
    assert fitted.micro_pieces == 2
    close(model, whole, 2e-5)
    line = "not enough memory for 1 pieces at a time: "
    with pytest.raises(ValueError, match=f"{line}begin anew in another folder with .* bf16$"):
        run(recordings, tmp_path / "none", loss=none)
    with pytest.raises(ValueError, match=f"{line}take a device with more$"):
        run(recordings, tmp_path / "half", replace(PLAN, precision="bf16"), loss=none)


def test_errors_of_other_kinds_are_not_memory(recordings, tmp_path) -> None:
    def broken(model: SEDModel, batch: Batch) -> Tensor:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run(recordings, tmp_path, loss=broken)


def test_bf16_is_near_fp32(recordings, tmp_path) -> None:
    half, _ = run(recordings, tmp_path / "half", replace(PLAN, precision="bf16"))
    whole, _ = run(recordings, tmp_path / "whole")
    assert all(value.dtype == torch.float32 for value in half.parameters())
    close(half, whole, 0.05)
    assert not torch.equal(half.head.strong.weight, whole.head.strong.weight)


def test_dropout_is_drawn_by_seed_and_step(recordings, tmp_path) -> None:
    models = []
    for name, noise in (("a", 1), ("b", 2)):
        torch.manual_seed(noise)  # whatever was drawn before
        models.append(run(recordings, tmp_path / name, model=tiny_model(dropout=0.5))[0])
    assert all(torch.equal(a, b) for a, b in zip(*map(state, models), strict=True))
    other, _ = run(recordings, tmp_path / "c", model=tiny_model(dropout=0.5), seed=1)
    assert not torch.equal(other.head.strong.weight, models[0].head.strong.weight)


def test_a_full_disk_leaves_what_was_there(recordings, tmp_path, monkeypatch) -> None:
    real = os.replace
    plan = replace(PLAN, n_steps=4)
    saves = []

    def full(source: object, target: object) -> None:
        if str(target).endswith(LAST):
            saves.append(Path(source).stat().st_size)
            if len(saves) == 2:
                raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(learner_module.os, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device: .*last.ckpt"):
        run(recordings, tmp_path, plan, save_every_steps=1)
    assert torch.load(tmp_path / LAST, weights_only=True)["learner"]["progress"]["step"] == 1
    assert not list(tmp_path.glob("*.part"))
    monkeypatch.undo()
    model, fitted = run(recordings, tmp_path, plan)
    assert fitted.n_steps == 4
    whole, _ = run(recordings, tmp_path / "whole", plan)
    assert all(torch.equal(a, b) for a, b in zip(state(model), state(whole), strict=True))


@pytest.mark.parametrize("when", ["step 2 ", "step 4 "])
def test_a_file_that_cannot_grow_is_as_a_full_disk(recordings, tmp_path, when) -> None:
    """In the middle of a run, and while its result is written."""
    plan = replace(PLAN, n_steps=4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limits(line: str) -> None:
        if line.startswith(when):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))

    try:
        with pytest.raises(OSError, match=str(tmp_path)):
            run(recordings, tmp_path, plan, tell=limits, save_every_steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {"config.json", LAST}
    model, fitted = run(recordings, tmp_path, plan)
    whole, wanted = run(recordings, tmp_path / "whole", plan)
    assert fitted == wanted
    assert all(torch.equal(a, b) for a, b in zip(state(model), state(whole), strict=True))


def test_logs(recordings, tmp_path) -> None:
    plan = replace(PLAN, n_steps=3, valid_every_steps=2)
    run(recordings, tmp_path / "csv", plan, logger="csv")
    text = (tmp_path / "csv" / "log" / "metrics.csv").read_text()
    assert all(name in text for name in ("loss", "lr", "valid_score"))
    run(recordings, tmp_path / "board", plan, logger=default_logger())
    assert any((tmp_path / "board" / "log").iterdir())
    with pytest.raises(ValueError, match="unknown logger 'cvs'; did you mean 'csv'"):
        check_logger("cvs")


def test_loggers_whose_package_is_missing(monkeypatch) -> None:
    monkeypatch.setattr(fit_module, "find_spec", lambda name: None)
    assert default_logger() == "csv"
    with pytest.raises(ValueError, match="the logger wandb needs the package wandb"):
        check_logger("wandb")


def test_nothing_is_said(recordings, tmp_path, capfd) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(recordings, tmp_path, save_every_steps=2)
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_is_ctrl_c(recordings, tmp_path) -> None:
    def interrupted(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recordings, tmp_path, tell=interrupted)
    import signal

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_wrong_plans_and_places(tmp_path) -> None:
    for name in ("n_steps", "batch_pieces", "valid_every_steps", "patience"):
        with pytest.raises(ValueError, match=f"{name} is 0; it is at least 1"):
            replace(PLAN, **{name: 0})
    with pytest.raises(ValueError, match="unknown precision 'fp16'"):
        replace(PLAN, precision="fp16")
    with pytest.raises(ValueError, match="n_devices is 0"):
        Place(tmp_path, n_devices=0)
    with pytest.raises(ValueError, match="device is cuda:1, which is one, and n_devices 2"):
        Place(tmp_path, device="cuda:1", n_devices=2)
    Place(tmp_path, device="cuda:1", n_nodes=2)  # that one of each node


def test_every_field_of_a_plan_is_in_the_config(recordings, tmp_path) -> None:
    run(recordings, tmp_path)
    kept = json.loads((tmp_path / "config.json").read_text())
    of_a_stream = {"seed", "n_pieces", "weight", *Augmentation.__dataclass_fields__}
    assert set(Plan.__dataclass_fields__) | of_a_stream == set(kept)
