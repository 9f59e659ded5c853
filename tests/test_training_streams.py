"""Streams: their gradients are summed, each seen alone; teachers see what the student sees."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.training.augmentation import Augmentation
from hear_pretrainedsed.training.batch import Batch
from hear_pretrainedsed.training.chance import generator_for
from hear_pretrainedsed.training.curve import Curve, read_curve
from hear_pretrainedsed.training.fit import Fitted, fit
from hear_pretrainedsed.training.optimizer import groups
from hear_pretrainedsed.training.pieces import Order, Recording
from hear_pretrainedsed.training.plan import Place, Plan
from hear_pretrainedsed.training.stream import Stream, bce, logits_of
from tests.tiny_model import tiny_model, tones

PLAN = Plan(n_steps=2, n_warmup_steps=0, batch_pieces=2, lr=0.05, weight_decay=1e-3)
PLAIN = Augmentation()


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    return tones(tmp_path_factory.mktemp("tones"), (31.0, 10.0, 4.0))


def soft(model: SEDModel, batch: Batch) -> Tensor:
    return bce(model, replace(batch, targets=batch.pseudo))


def run(
    streams: list[Stream], folder: Path, plan: Plan = PLAN, model: SEDModel | None = None, **more
) -> tuple[SEDModel, Fitted]:
    model = tiny_model() if model is None else model
    place = Place(folder, **more)
    return model, fit(model, streams, plan, place, validate=lambda model: 0.0)


def same(one: SEDModel, two: SEDModel, tolerance: float = 1e-6) -> None:
    states = one.state_dict(), two.state_dict()
    for name, value in states[0].items():
        assert (value - states[1][name]).abs().max() <= tolerance, name


def test_two_streams_are_a_weighted_sum_by_hand(recordings, tmp_path) -> None:
    orders = Order(recordings, 2, 0), Order(recordings[:1], 3, 1)
    streams = [Stream(orders[0], PLAIN, bce, 0.25), Stream(orders[1], PLAIN, bce, 2.0)]
    plan = replace(PLAN, optimizer="adam", betas=(0.5, 0.6), gradient_clip=0.1)
    model, fitted = run(streams, tmp_path, plan, tiny_model(norm=True), micro_pieces=2)
    other = tiny_model(norm=True).train()
    optimizer = torch.optim.Adam(groups(other, plan), betas=(0.5, 0.6))
    lrs = [group["lr"] for group in optimizer.param_groups]
    for step, batches in enumerate(zip(*(o.loader(0, 2) for o in orders), strict=True)):
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / 2))
        optimizer.zero_grad()
        total = 0.0
        for batch, weight in zip(batches, (0.25, 2.0), strict=True):
            for rows in torch.arange(len(batch)).split(2):  # norms see two at a time
                spec = other.frontend(batch.audio[rows])
                part = Batch(batch.audio[rows], batch.targets[rows], spec=spec)
                loss = weight * bce(other, part).sum() / len(batch)
                loss.backward()
                total += loss.item()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        optimizer.step()
    same(model, other)
    assert fitted.loss == pytest.approx(total, rel=1e-5)


def test_streams_of_one_material_draw_apart(recordings, tmp_path) -> None:
    seen: list[Tensor] = []

    def loss(model: SEDModel, batch: Batch) -> Tensor:
        seen.append(batch.spec.clone())
        return bce(model, batch)

    order = Order(recordings, 4, 0)
    stream = Stream(order, Augmentation(mixup=1.0), loss)
    run([stream, stream], tmp_path, replace(PLAN, n_steps=1, batch_pieces=4))
    assert seen[0].shape == seen[1].shape and not torch.equal(*seen)


def test_a_teacher_sees_the_same_augmented_audio(recordings, tmp_path) -> None:
    """Its scores come after augmentation, from its own front end; it is not trained or saved."""
    teacher = tiny_model(5)
    before = copy.deepcopy(teacher.state_dict())
    seen: list[Batch] = []

    def loss(model: SEDModel, batch: Batch) -> Tensor:
        seen.append(batch)
        return soft(model, batch)

    augmentation = Augmentation(wavmix=0.5, mixup=1.0, time_mask=0.3)
    order = Order(recordings, 4, 0)
    plan = replace(PLAN, n_steps=1, batch_pieces=4)
    run([Stream(order, augmentation, loss, 1.0, teacher)], tmp_path, plan, micro_pieces=2)
    (batch,) = order.loader(0, 1)
    generator = generator_for(0, "augment", 0)
    batch = augmentation.on_audio(batch, generator)
    spec = teacher.frontend(batch.audio)
    batch = augmentation.on_spec(replace(batch, spec=spec, teacher_spec=spec), generator)
    scores = logits_of(teacher, batch.teacher_spec).sigmoid()
    assert torch.allclose(torch.cat([part.pseudo for part in seen]), scores, atol=1e-6)
    assert torch.equal(torch.cat([part.spec for part in seen]), batch.spec)
    assert not seen[0].pseudo.requires_grad and not teacher.training
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


def test_weights_of_validations_are_kept(recordings, tmp_path) -> None:
    plan = replace(PLAN, n_steps=5, valid_every_steps=2, ema_decay=0.9)
    stream = Stream(Order(recordings, 2, 0), PLAIN, bce)
    model, _ = run([stream], tmp_path, plan, keep_from_step=4)
    kept = sorted((tmp_path / "kept").iterdir())
    assert [path.name for path in kept] == ["step-00000004.pt", "step-00000005.pt"]
    last = torch.load(kept[-1], weights_only=True)  # the average, as it was validated
    assert all(torch.equal(last[k], v) for k, v in model.state_dict().items())


def test_every_stream_is_in_the_config(recordings, tmp_path) -> None:
    order = Order(recordings, 2, 0)
    streams = [Stream(order, PLAIN, bce), Stream(order, PLAIN, bce, 0.5)]
    run(streams, tmp_path)
    other = Stream(order, Augmentation(mixup=0.5), bce, 0.25)
    with pytest.raises(ValueError, match=r"2: mixup was None, is 0.5; stream 2: weight was 0.5"):
        run([streams[0], other], tmp_path)


def test_a_curve_goes_on_from_a_step(tmp_path) -> None:
    curve = Curve(tmp_path / "log" / "curve.csv")
    curve.go_on_from(0)
    values = {1: 1 / 3, 2: 0.1, 3: 1e-17}
    for step, loss in values.items():
        curve.add(step, {"loss": loss, "lr": 0.5, "gradient_norm": 2.0})
    curve.add(3, {"valid_score": 0.25})
    with curve.path.open("a") as file:
        file.write("4,0.12")  # cut off by a kill
    rows = read_curve(curve.path)
    assert [row["step"] for row in rows] == ["1", "2", "3", "3"]
    assert [float(row["loss"]) for row in rows[:3]] == list(values.values())
    curve.go_on_from(2)
    curve.add(3, {"loss": 0.7})
    assert [(r["step"], r["loss"]) for r in read_curve(curve.path)][1:] == [
        ("2", "0.1"),
        ("3", "0.7"),
    ]


def test_tensorboard_s_curve_is_one_after_a_kill(recordings, tmp_path) -> None:
    """What was logged after the last saving is told to be void."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")

    def killed(line: str) -> None:
        if line.startswith("step 4 "):
            raise KeyboardInterrupt

    stream = Stream(Order(recordings, 2, 0), PLAIN, bce)
    plan = replace(PLAN, n_steps=6)
    place = Place(tmp_path, logger="tensorboard", save_every_steps=2)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_model(), [stream], plan, place, validate=lambda model: 0.0, tell=killed)
    (first,) = (tmp_path / "log").glob("events*")
    first.rename(tmp_path / "first")  # its name is of the second
    fit(tiny_model(), [stream], plan, place, validate=lambda model: 0.0)
    (after,) = (tmp_path / "log").glob("events*")
    data, events = after.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    starts = [event.step for event in events if event.HasField("session_log")]
    losses = [e.step for e in events if any(v.tag == "loss" for v in e.summary.value)]
    assert starts == [3] and losses == [3, 4, 5, 6]
    rows = read_curve(tmp_path / "log" / "metrics.csv")
    assert [int(row["step"]) for row in rows if row["loss"]] == list(range(1, 7))


def test_a_full_disk_names_the_curve() -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        Curve(Path("/dev/full")).add(1, {"loss": 0.5})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adm"}, "unknown optimizer 'adm'; did you mean 'adam'"),
        ({"schedule": "step"}, "unknown schedule 'step'; did you mean 'steps'"),
        ({"schedule": "steps"}, "needs halve_from_step and halve_every_steps"),
    ],
)
def test_wrong_plans(change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PLAN, **change)
