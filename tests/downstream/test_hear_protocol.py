"""Protocol `hear` against stock heareval's own functions, piece by piece."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from downstream import mlp
from downstream.protocols import hear
from downstream.protocols.base import Settings
from downstream.targets import frame_targets
from downstream.tasks.hear_folder import rotations
from downstream.tasks.task import Clip, Facts, Rotation, Task

pytestmark = pytest.mark.hear
LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def stock():
    """heareval's module of predictions."""
    torch.set_num_threads(1)
    return pytest.importorskip("heareval.predictions.task_predictions")


def clip(file: str, in_ms: list[tuple[float, float, str]], duration_s: float = 4.0) -> Clip:
    events = tuple((a / 1000, b / 1000, label) for a, b, label in in_ms)
    return Clip(file, Path(file), events, duration_s, file, tuple(in_ms))


def task_of(splits: dict[str, list[Clip]], **hear_metadata: object) -> Task:
    facts = Facts("t", "1", "", "", ("event_onset_200ms_fms",), "clip", open=None)
    metadata = {"task_name": "t", "splits": list(splits)} | hear_metadata
    return Task(
        facts,
        "t",
        "1",
        Path(),
        LABELS,
        {name: tuple(clips) for name, clips in splits.items()},
        (Rotation(("train",), ("valid",), ("test",)),),
        metadata,
    )


# ---- the grid ----


@pytest.mark.parametrize("grid", sorted(hear.GRIDS))
@pytest.mark.parametrize("name", ["dcase2016_task2", "office"])
def test_the_grid_points_that_heareval_draws(stock, grid: str, name: str) -> None:
    params = dict(default="PARAM_GRID", fast="FAST_PARAM_GRID", faster="FASTER_PARAM_GRID")
    theirs = dict(getattr(stock, params[grid]))
    theirs.update(stock.TASK_SPECIFIC_PARAM_GRID.get(name, {}))
    theirs.update({"max_epochs": [7, 9]})
    random.seed(42)
    confs = list(stock.ParameterGrid(theirs))
    random.shuffle(confs)
    metadata = {
        "task_name": name,
        "evaluation_params": {"task_specific_param_grid": {"max_epochs": [7, 9]}},
    }
    ours = hear.drawn_points(metadata, Settings(grid=grid, grid_points=5))
    assert len(ours) == 5
    for mine, conf in zip(ours, confs, strict=False):
        named = {key: getattr(value, "__name__", value) for key, value in conf.items()}
        assert mine == {key: named[key] for key in mine}


def test_an_entry_of_the_grid_that_is_not_known() -> None:
    metadata = {"evaluation_params": {"task_specific_param_grid": {"dropuot": [0.5]}}}
    with pytest.raises(ValueError, match="dropuot.*dropout"):
        hear.drawn_points(metadata, Settings())
    with pytest.raises(ValueError, match="'fastest'.*fast"):
        hear.drawn_points({}, Settings(grid="fastest"))


def test_the_rotations_of_folds(stock) -> None:
    folds = [f"fold{i:02d}" for i in range(5)]
    theirs = stock.data_splits_from_folds(folds)
    ours = rotations({"split_mode": "new_split_kfold", "splits": folds[::-1]})
    assert [[list(r.train), list(r.valid), list(r.test)] for r in ours] == [
        [split["train"], split["valid"], split["test"]] for split in theirs
    ]


# ---- labels and order ----

times = st.floats(0, 4100, allow_nan=False) | st.integers(0, 200).map(lambda i: 20.0 * i)
events_ms = st.lists(st.tuples(times, times, st.sampled_from(LABELS)), max_size=8)


@settings(max_examples=100, deadline=None)
@given(events_ms)
def test_the_labels_of_frames(rows: list[tuple[float, float, str]]) -> None:
    embeddings = pytest.importorskip("heareval.embeddings.task_embeddings")
    rows = [(min(a, b), max(a, b), label) for a, b, label in rows]
    # float64: with numpy 2 float32 times would make heareval round the events' to float32 as well
    timestamps = hear.GRID.timestamps_ms(100).double().numpy()
    as_dicts = [{"start": a, "end": b, "label": label} for a, b, label in rows]
    theirs = embeddings.get_labels_for_timestamps([as_dicts], timestamps[None])[0]
    ours = frame_targets(clip("x", rows), LABELS, 100)
    assert [{LABELS[i] for i in np.flatnonzero(row)} for row in ours] == [set(r) for r in theirs]


def test_the_order_and_labels_of_stored_frames(tmp_path: Path) -> None:
    embeddings = pytest.importorskip("heareval.embeddings.task_embeddings")
    rng = np.random.default_rng(0)
    splits = {
        split: [clip(f"{split}{i}.wav", [(100.0 * i, 1000.0, "b")]) for i in range(n)]
        for split, n in (("train", 7), ("valid", 4), ("test", 5))
    }
    prng = random.Random()
    prng.seed(0)
    task = task_of(splits)
    order = hear.file_order(task)
    for split, clips in splits.items():
        folder = tmp_path / split
        folder.mkdir()
        listed = {}
        for one in clips:
            rows = [{"start": a, "end": b, "label": label} for a, b, label in one.in_ms()]
            listed[one.file] = rows
            stamps = hear.GRID.timestamps_ms(100).double().numpy()[None]
            labels = embeddings.get_labels_for_timestamps([rows], stamps)
            frames = rng.random((1, 100, 2)).astype(np.float32)
            embeddings.save_timestamp_embedding_and_labels(
                frames, stamps, labels, (one.file,), folder
            )
        metadata = {"embedding_type": "event"}
        embeddings.memmap_embeddings(folder, prng, metadata, split, tmp_path, listed)
        stored = json.loads((tmp_path / f"{split}.filename-timestamps.json").read_text())
        files = list(dict.fromkeys(Path(name).name for name, _ in stored))
        assert files == [one.file for one in order[split]]
        theirs = pickle.loads((tmp_path / f"{split}.target-labels.pkl").read_bytes())
        ours = np.concatenate([frame_targets(one, LABELS, 100) for one in order[split]])
        assert [[LABELS[i] for i in np.flatnonzero(row)] for row in ours] == theirs


# ---- scores to events ----


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_frames=st.integers(10, 70),  # a window of 8 clips or more is filtered wrongly by scipy 1.17
    median_ms=st.sampled_from([0, 62, 125, 150, 250, 1000, 3000]),
    min_ms=st.sampled_from([0, 50, 60.0, 80, 125, 250]),
)
def test_the_events_of_scores(seed: int, n_frames: int, median_ms: float, min_ms: float) -> None:
    stock = pytest.importorskip("heareval.predictions.task_predictions")
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(rng.normal(0, 0.3, (n_frames, 3)), axis=0)
    scores = (1 / (1 + np.exp(-smooth))).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = 0.5
    stamps = hear.GRID.timestamps_ms(n_frames)
    theirs = stock.create_events_from_prediction(
        {float(t): torch.from_numpy(row) for t, row in zip(stamps, scores, strict=True)},
        dict(enumerate(LABELS)),
        median_filter_ms=median_ms,
        min_duration=min_ms,
    )
    ours = hear.to_events(scores, LABELS, median_ms, min_ms)
    assert ours == [(e["start"] / 1000, e["end"] / 1000, e["label"]) for e in theirs]


# ---- training ----


class _Given(torch.nn.Module):
    """Dropout by masks that are given."""

    def __init__(self, masks: list[torch.Tensor]) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.masks.pop(0) / 0.9 if self.training else x


@pytest.mark.parametrize("hidden_layers", [0, 1, 2])
def test_the_losses_of_three_epochs(stock, hidden_layers: int) -> None:
    """The stock module, optimizer and loss in a plain loop, with the same masks."""
    rng, n, dim, batch = np.random.default_rng(1), 300, 24, 64
    x = torch.from_numpy(rng.normal(size=(n, dim)).astype(np.float32))
    y = torch.from_numpy((rng.random((n, 3)) < 0.3).astype(np.float32))
    shape = mlp.Shape(hidden_layers, 32, 0.1, batch)
    conf = dict(hidden_layers=hidden_layers, hidden_dim=32, dropout=0.1, lr=3e-3)
    conf |= dict(hidden_norm=torch.nn.BatchNorm1d, norm_after_activation=False)
    conf |= dict(initialization=torch.nn.init.xavier_uniform_)
    theirs = stock.FullyConnectedPrediction(dim, 3, "multilabel", conf)
    head = mlp.new_head((dim, 3), shape, 3e-3, "xavier_uniform_", torch.Generator())
    linear = [m for m in theirs.modules() if isinstance(m, torch.nn.Linear)]
    with torch.no_grad():
        for layer, weight, bias in zip(linear, head.weights, head.biases, strict=True):
            weight.copy_(layer.weight)
            bias.copy_(layer.bias)
    drawn, masks = [], mlp.Masks(0, 0.1, torch.float32, "cpu")

    def draw(rows: int, width: int) -> torch.Tensor:
        drawn.append(masks(rows, width))
        return drawn[-1]

    optimizer = torch.optim.Adam(theirs.parameters(), lr=3e-3)
    for _ in range(3):
        losses = mlp.epoch([head], x, y, shape, draw)[0]
        queue = list(drawn)
        drawn.clear()
        for i, module in enumerate(theirs.hidden.children()):
            if isinstance(module, torch.nn.Dropout | _Given):
                theirs.hidden[i] = _Given(queue)
        theirs.train()
        for i, ours in enumerate(losses):
            rows = slice(i * batch, (i + 1) * batch)
            optimizer.zero_grad()
            loss = theirs.logit_loss(theirs.forward_logit(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            assert ours.item() == pytest.approx(loss.item(), abs=1e-4)
        theirs.eval()
        with torch.no_grad():
            expected = theirs.forward_logit(x)
        # Biases before a batch norm have no gradient but rounding, which Adam makes steps of: the
        # stock kit's own predictions move as much from one number of threads to another.
        assert (mlp.logits(head, x) - expected).abs().max() < 2e-2


def test_new_weights_are_drawn_as_heareval_draws_them(stock) -> None:
    """Same spread, layer by layer: the gain is 1 for the first layer and sqrt 2 after a ReLU."""
    conf = dict(hidden_layers=2, hidden_dim=300, dropout=0.1, lr=1e-3)
    conf |= dict(hidden_norm=torch.nn.BatchNorm1d, norm_after_activation=False)
    shape = mlp.Shape(2, 300, 0.1, 64)
    for name, init in mlp.INITS.items():
        theirs = stock.FullyConnectedPrediction(
            200, 90, "multilabel", conf | {"initialization": init}
        )
        linear = [m for m in theirs.modules() if isinstance(m, torch.nn.Linear)]
        head = mlp.new_head((200, 90), shape, 1e-3, name, torch.Generator().manual_seed(3))
        for layer, weight, bias in zip(linear, head.weights, head.biases, strict=True):
            here, there = weight.detach(), layer.weight.detach()
            assert here.std().item() == pytest.approx(there.std().item(), rel=0.03)
            assert here.abs().max().item() == pytest.approx(there.abs().max().item(), rel=0.4)
            top = layer.bias.detach().abs().max().item()
            assert bias.detach().abs().max().item() == pytest.approx(top, rel=0.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_keep_as_many_as_they_should(dtype: torch.dtype) -> None:
    mask = mlp.Masks(0, 0.1, dtype, "cpu")(501, 1001)
    assert mask.dtype == dtype
    assert mask.unique().tolist() == [0, 1]
    assert mask.float().mean().item() == pytest.approx(0.9, abs=0.002)
    assert not torch.equal(mask, mlp.Masks(1, 0.1, dtype, "cpu")(501, 1001))


# ---- selection ----

SEQUENCES = [
    [0.1, 0.2, 0.2, 0.1, 0.15, 0.3],
    [0.1, 0.1, 0.1, 0.1, 0.1],
    [0.5, 0.4, 0.3, 0.2, 0.6],
    [float("nan"), 0.4, 0.5],
    [0.1, float("nan"), 0.5],
    [0.3, 0.30000000001, 0.2, 0.1, 0.1],
]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("scores", SEQUENCES)
def test_what_lightning_keeps_and_when_it_stops(
    tmp_path: Path, mode: str, scores: list[float]
) -> None:
    pl = pytest.importorskip("pytorch_lightning")

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch, _):
            return (self.weight * batch).sum()

        def validation_step(self, batch, _):
            return None

        def validation_epoch_end(self, _):
            self.log("v", scores[(self.current_epoch + 1) // 2 - 1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    keeper = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, monitor="v", mode=mode)
    stopper = pl.callbacks.EarlyStopping(
        "v", min_delta=0.0, patience=3, mode=mode, check_on_train_epoch_end=False
    )
    trainer = pl.Trainer(
        callbacks=[keeper, stopper],
        check_val_every_n_epoch=2,
        max_epochs=2 * len(scores),
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = torch.utils.data.DataLoader(torch.ones(2, 1))
    trainer.fit(Model(), data, data)
    stored = torch.load(keeper.best_model_path, weights_only=False)
    trial = hear.Trial({"patience": 3}, _NoHead(), 1 if mode == "max" else -1)
    for i, score in enumerate(scores):
        trial.validate(2 * i + 1, score, ())
        if trial.stopped:
            break
    assert trial.best_epoch == stored["epoch"]
    assert trial.best == pytest.approx(keeper.best_model_score.item())
    assert trainer.current_epoch == 2 * (i + 1)


class _NoHead:
    def state(self) -> list[torch.Tensor]:
        return []
