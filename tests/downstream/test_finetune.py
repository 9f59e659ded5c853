"""Mode finetune: plans of the recipes, what is chosen, what is kept, what goes on after a kill."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import hear_pretrainedsed as hps
from downstream import finetune
from downstream.calibration import decode
from downstream.embeddings import FrameSource
from downstream.finetune import Job, predict, save, tune
from downstream.finetune_recipes import BEST, PAPER, RECIPES
from downstream.protocols import PROTOCOLS, Found, Settings, paper
from downstream.scoring import score_task
from downstream.tasks import Task, open_task
from hear_pretrainedsed.audio import read_audio
from hear_pretrainedsed.decoding import Decoding
from hear_pretrainedsed.model import build_model
from hear_pretrainedsed.training.fit import Fitted
from hear_pretrainedsed.training.new_head import with_head
from hear_pretrainedsed.training.pieces import Order, Recording
from hear_pretrainedsed.training.plan import Place
from tests.downstream.probe_task import LABELS, made_up_task
from tests.downstream.tone_task import CHECKPOINT, tone_folder, tone_source

QUICK = Settings(max_steps=2)


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return open_task(tone_folder(tmp_path_factory.mktemp("tones") / "own"))


@pytest.fixture
def source(
    task: Task, release_file: Callable[[str], Path], tmp_path: Path
) -> Iterator[FrameSource]:
    with warnings.catch_warnings(action="ignore"):  # of the first load
        yield tone_source(task, release_file, tmp_path / "cache")


def order_of(n_pieces: int, batch_pieces: int) -> Order:
    targets = np.zeros((250 * n_pieces, 2), np.uint8)
    return Order([Recording("a.wav", Path("a.wav"), targets)], batch_pieces, 0)


# ---- plans


def test_paper_is_the_released_script() -> None:
    plan = PAPER.plan(order_of(528, 256), 1.06e-4, Settings(), 12)  # DCASE 2016's train
    assert (plan.n_steps, plan.n_warmup_steps, plan.batch_pieces) == (900, 4000, 256)
    assert (plan.lr, plan.backbone_lr, plan.layer_decay) == (1.06e-4, 1.06e-4, 1.0)
    assert (plan.weight_decay, plan.vector_decay) == (1e-3, 1e-3)
    mixed = PAPER.augmentation
    assert (mixed.wavmix, mixed.mixup, plan.patience, plan.ema_decay) == (0.5, 0.5, None, None)
    assert plan.valid_every_steps is None and 1.06e-4 in PAPER.lrs


@pytest.mark.parametrize(
    ("settings", "n_steps", "n_warmup"),
    [
        (Settings(steps_scale=0.5), 450, 2000),
        (Settings(max_steps=90), 90, 400),
        (Settings(max_steps=9000), 900, 4000),
        (Settings(steps_scale=0.01, max_steps=90), 9, 40),
        (Settings(steps_scale=1e-9), 1, 0),
    ],
)
def test_steps_and_warmup_shrink_alike(settings, n_steps, n_warmup) -> None:
    plan = PAPER.plan(order_of(528, 256), 1e-4, settings, 12)
    assert (plan.n_steps, plan.n_warmup_steps) == (n_steps, n_warmup)


@pytest.mark.parametrize(("n_pieces", "n_steps"), [(3, 500), (32 * 20, 800), (32 * 1000, 8000)])
def test_best_has_enough_steps_and_not_too_many(n_pieces: int, n_steps: int) -> None:
    plan = BEST.plan(order_of(n_pieces, 32), 1e-4, Settings(), 12)
    assert (plan.n_steps, plan.n_warmup_steps) == (n_steps, n_steps // 10)
    assert plan.valid_every_steps == n_steps // 20 and plan.lr == 10 * plan.backbone_lr


@pytest.mark.parametrize("n_blocks", [12, 17, 23])
def test_first_blocks_learn_alike_whatever_the_depth(n_blocks: int) -> None:
    plan = BEST.plan(order_of(3, 32), 1e-4, Settings(), n_blocks)
    assert plan.layer_decay**n_blocks == pytest.approx(0.75**12)
    assert PAPER.plan(order_of(3, 32), 1e-4, Settings(), n_blocks).layer_decay == 1.0


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_wrong_scales(scale: float) -> None:
    with pytest.raises(ValueError, match="--steps-scale is .*; it is finite and above 0"):
        PAPER.plan(order_of(1, 256), 1e-4, Settings(steps_scale=scale), 12)
    with pytest.raises(ValueError, match="--max-steps is 0; it is at least 1"):
        PAPER.plan(order_of(1, 256), 1e-4, Settings(max_steps=0), 12)


def test_finetune_is_a_mode_of_paper_and_best_alone() -> None:
    assert [name for name, one in PROTOCOLS.items() if "finetune" in one.modes] == list(RECIPES)
    config = PROTOCOLS["best"].config("finetune", Settings(max_steps=3, grid_points=5))
    assert config == {"precision": "fp32", "steps_scale": None, "max_steps": 3}


def test_what_norms_are_taken_from() -> None:
    job = job_of(made_up_task())
    assert replace(job, protocol="best").norms == {}
    for place, n in (
        (Place(Path()), 8),
        (Place(Path(), device="cuda"), 64),
        (Place(Path(), device="cuda", n_devices=4, n_nodes=2), 32),  # a process's part of 256
        (Place(Path(), micro_pieces=3), 3),
    ):
        assert replace(job, place=place).norms == {"norm_pieces": n}


# ---- the head


def test_a_new_head_is_drawn_by_seed_and_replaces_the_old_one() -> None:
    model = build_model("fmn04", head="linear", labels=("x",))
    model.decoding = Decoding((0.5,), (1,))
    one = with_head(model, LABELS, 0).head.strong.weight.clone()
    assert model.labels == LABELS and model.head.weak is None and model.decoding is None
    assert one.shape == (3, 384) and one.abs().max() <= 1 / math.sqrt(384)
    assert torch.equal(with_head(model, LABELS, 0).head.strong.weight, one)
    assert not torch.equal(with_head(model, LABELS, 1).head.strong.weight, one)


# ---- what is chosen, with trainings that are made up


def pretend(
    monkeypatch: pytest.MonkeyPatch, scores: dict[tuple[int, float], float]
) -> list[tuple[int, float]]:
    """Trainings that give these validation scores, by rotation and lr, and models that say so."""
    calls = []

    def train(job: Job, number: int, order: Order, lr: float) -> tuple[object, Fitted]:
        calls.append((number, lr))
        model = with_head(build_model("fmn04", head="linear", labels=("x",)), job.task.labels, 0)
        model.trained = (number, lr)
        return model, Fitted(7, 5, scores[number, lr], (), 0.1, 2)

    def predict(model: object, clips: object) -> dict[str, np.ndarray]:
        number, lr = model.trained
        return {c.file: np.full((500, 3), -9 + number + lr, np.float32) for c in clips}

    monkeypatch.setattr(finetune, "train", train)
    monkeypatch.setattr(finetune, "predict", predict)
    return calls


def job_of(task: Task, protocol: str = "paper", folder: Path = Path(".")) -> Job:
    from downstream.embeddings import Weights

    weights = Weights(CHECKPOINT, Path("none.pt"), "0" * 64)
    return Job(protocol, task, weights, QUICK, 0, Place(folder))


def test_the_lr_is_chosen_on_the_first_rotation_s_valid(monkeypatch) -> None:
    task = made_up_task(folds=3)
    low, middle, high = PAPER.lrs
    scores = {(0, low): 0.2, (0, middle): 0.5, (0, high): 0.4, (1, middle): 0.0, (2, middle): 0.9}
    calls = pretend(monkeypatch, scores)
    tuned = tune(job_of(task))
    assert calls == list(scores)
    found = tuned.found
    assert [c["lr"] for c in found.chosen] == [middle] * 3
    assert found.chosen[0]["valid_score_of_lr"] == {str(lr): scores[0, lr] for lr in PAPER.lrs}
    assert "valid_score_of_lr" not in found.chosen[1]
    assert [len(fold) for fold in found.folds] == [4, 4, 4]
    for number, fold in enumerate(found.folds):  # each rotation's test clips by its own model
        for file in fold:
            wanted = 1 / (1 + math.exp(9 - number - middle))
            assert found.scores[file] == pytest.approx(wanted, rel=1e-5)
    assert len(tuned.models) == 3 and tuned.models[1].provenance["origin"]["chosen"]["lr"] == middle


def test_equal_lrs_leave_the_lowest_and_none_is_no_winner(monkeypatch) -> None:
    task = made_up_task()
    low, middle, high = PAPER.lrs
    pretend(monkeypatch, {(0, low): 0.0, (0, middle): 0.0, (0, high): -math.inf})
    assert tune(job_of(task)).found.chosen[0]["lr"] == low
    pretend(monkeypatch, {(0, low): -math.inf, (0, middle): -math.inf, (0, high): -1.0})
    assert tune(job_of(task)).found.chosen[0]["lr"] == high  # an error rate, the less the better


def test_what_lrs_were_chosen_by_is_named(monkeypatch) -> None:
    low, middle, high = PAPER.lrs
    pretend(monkeypatch, {(0, low): -0.9, (0, middle): -0.7, (0, high): -math.inf})
    (chosen,) = tune(job_of(made_up_task(metrics=("segment_1s_er",)))).found.chosen
    assert chosen["lr"] == middle
    rates = {str(low): 0.9, str(middle): 0.7, str(high): math.nan}
    assert chosen["valid_score_of_lr"] == pytest.approx(rates, nan_ok=True)
    pretend(monkeypatch, {(0, lr): 0.1 + lr for lr in BEST.lrs})
    (chosen,) = tune(job_of(made_up_task(), "best")).found.chosen
    assert chosen["valid_frame_map_of_lr"] == {str(lr): 0.1 + lr for lr in BEST.lrs}
    assert "valid_score" in chosen and "valid_score_of_lr" not in chosen


def test_what_is_scaled_says_so(monkeypatch) -> None:
    task = made_up_task()
    pretend(monkeypatch, {(0, lr): 0.0 for lr in (*PAPER.lrs, *BEST.lrs)})
    job = job_of(task)
    assert tune(job).found.config["protocol"] == "paper-scaled"
    assert tune(replace(job, protocol="best")).found.config["protocol"] == "best-scaled"
    whole = replace(job, settings=Settings(max_steps=10**9))
    assert tune(whole).found.config["protocol"] == "paper"
    config = tune(job).found.config
    assert config["max_steps"] == 2 and 0 < config["steps_scale"] < 1
    assert (config["median_frames"], config["min_duration_s"]) == (6, 0.125)


def test_one_rotation_that_is_scaled_marks_all(monkeypatch) -> None:
    task = made_up_task(folds=3)
    longer = tuple(replace(clip, duration_s=6000.0) for clip in task.splits["fold00"])
    task = replace(task, splits=task.splits | {"fold00": longer})  # in train of the second alone
    middle = PAPER.lrs[1]
    scores = {(0, lr): float(lr == middle) for lr in PAPER.lrs}
    pretend(monkeypatch, scores | {(1, middle): 0.0, (2, middle): 0.0})
    job = job_of(task)
    steps = [PAPER.all_steps(job.order(rotation)) for rotation in task.rotations]
    assert steps[0] == steps[2] < steps[1]
    some = replace(job, settings=Settings(max_steps=steps[0]))
    config = tune(some).found.config
    assert config["protocol"] == "paper-scaled"
    assert config["steps_scale"] == steps[0] / steps[1]
    whole = replace(job, settings=Settings(max_steps=steps[1]))
    assert tune(whole).found.config["protocol"] == "paper"


# ---- whole runs


def checked(task: Task, found: Found) -> None:
    """Scores and events of the test clip, of a shape and kind that can be scored."""
    (fold,) = found.folds
    assert fold == ("4.wav",)
    scores = found.scores["4.wav"]
    assert scores.shape == (300, 2) and scores.min() >= 0 and scores.max() <= 1
    assert set(score_task(task, found)) == set(task.metrics)


def test_paper_from_weights_to_found(task, source, monkeypatch) -> None:
    monkeypatch.setitem(RECIPES, "paper", replace(PAPER, lrs=(1e-4, 1e-3)))
    # Between the logits of the new head's class `high`, below those of `low`.
    monkeypatch.setattr(paper, "RECIPE", replace(paper.RECIPE, threshold_logit=-9.2))
    found = PROTOCOLS["paper"].modes["finetune"](task, source, QUICK, 0)
    checked(task, found)
    (chosen,) = found.chosen
    assert chosen["n_steps"] == chosen["kept_step"] == 2
    assert list(chosen["valid_score_of_lr"]) == ["0.0001", "0.001"]
    scores = found.scores["4.wav"]
    limit = 1 / (1 + math.exp(9.2))
    wanted = []
    for column, label in enumerate(task.labels):
        for above, group in itertools.groupby(range(300), lambda i, c=column: scores[i, c] > limit):
            first, *_, last = (*group,) * 2
            if above and last - first >= 4:  # 0.125 s from centre to centre
                wanted.append((first / 25 + 0.02, last / 25 + 0.02, label))
    events = found.events["4.wav"]
    assert {label for *_, label in events} == {"high", "low"} and len(events) > 2
    assert sorted(events) == [(pytest.approx(a), pytest.approx(b), c) for a, b, c in sorted(wanted)]
    assert not list((source.cache / "finetune").iterdir())


@pytest.mark.slow
def test_best_from_weights_to_a_file(task, source, tmp_path, monkeypatch) -> None:
    """The file decodes by itself as the run did."""
    monkeypatch.setitem(RECIPES, "best", replace(BEST, lrs=(5e-4,)))
    place = Place(tmp_path / "runs")
    settings = Settings(max_steps=6)
    job = Job("best", task, source.weights, settings, 0, place)
    tuned = tune(job)
    checked(task, tuned.found)
    (chosen,) = tuned.found.chosen
    assert set(chosen["thresholds"]) == set(chosen["median_frames"]) == set(task.labels)
    (path,) = save(tuned, tmp_path)
    assert path.name == "model.safetensors"
    model = hps.load_model(path)
    assert model.options.windowing == BEST.windowing == "overlap"
    decoding = Decoding(*(tuple(chosen[k].values()) for k in ("thresholds", "median_frames")))
    assert model.decoding == decoding and model.labels == ("high", "low")
    clip = task.clips("test")[0]
    scores = {"4.wav": model.scores(read_audio(clip.path)[None])[0].detach().numpy()}
    smooth, events = decode(scores, decoding, task.labels)
    np.testing.assert_allclose(smooth["4.wav"], tuned.found.scores["4.wav"], atol=1e-5)
    detected = [event[:3] for event in hps.detect(clip.path, model)]
    assert detected == sorted(events["4.wav"], key=lambda e: (e[0], e[2]))
    assert sorted(events["4.wav"]) == sorted(tuned.found.events["4.wav"])
    origin = model.provenance["origin"]
    assert origin["weights_sha256"] == source.weights.sha256
    assert origin["task_digest"] == task.digest() and origin["recipe"]["layer_decay"] == 0.75
    assert (origin["protocol"], origin["seed"], origin["max_steps"]) == ("best", 0, 6)
    embedded, _ = hps.get_timestamp_embeddings(torch.zeros(1, 16_000), model)
    assert embedded.shape == (1, 25, 384)
    hear = hps.fmn04_strong.load_model(str(path))
    assert hear.timestamp_embedding_size == 384


@pytest.mark.slow
def test_it_learns_the_tones(task, source, tmp_path, monkeypatch) -> None:
    """All of it alike, since the stand-in's lower blocks know nothing."""
    recipe = replace(BEST, lrs=(1e-3,), batch_pieces=3, layer_decay=1.0)
    monkeypatch.setitem(RECIPES, "best", recipe)
    job = Job("best", task, source.weights, Settings(max_steps=40), 0, Place(tmp_path / "runs"))
    found = tune(job).found
    assert found.chosen[0]["valid_frame_map"] > 0.9
    assert score_task(task, found)["frame_map"].value > 0.8


@pytest.mark.slow
def test_an_interrupted_cell_goes_on_where_it_was(task, source, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(RECIPES, "paper", replace(PAPER, lrs=(1e-4, 1e-3)))
    run = PROTOCOLS["paper"].modes["finetune"]
    wanted = run(task, replace(source, cache=tmp_path / "other"), QUICK, 0)
    told: list[str] = []

    def stops(line: str) -> None:
        told.append(line)
        if "lr 0.001: step 2" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(task, source, replace(QUICK, tell=stops), 0)
    assert len(told) == 4 and len(list((source.cache / "finetune").iterdir())) == 1
    again: list[str] = []
    found = run(task, source, replace(QUICK, tell=again.append), 0)
    assert all("lr 0.001" in line for line in again)  # the first lr was finished
    assert found.chosen == wanted.chosen and found.events == wanted.events
    for file, scores in wanted.scores.items():
        assert np.array_equal(scores, found.scores[file])
    other: list[str] = []
    run(task, source, replace(QUICK, tell=other.append), 1)  # another seed shares nothing
    assert len(other) == 4


def test_predictions_are_the_model_s_logits(task) -> None:
    model = with_head(build_model("fmn04", head="linear", labels=("x",)), task.labels, 0).eval()
    clips = task.clips(task.splits)
    found = predict(model, clips)
    assert list(found) == [clip.file for clip in clips]
    wanted = model.logits(read_audio(clips[3].path)[None])[0].detach()
    assert np.array_equal(found[clips[3].file], wanted.numpy())


def test_predictions_take_fewer_windows_when_memory_runs_out(task, tmp_path) -> None:
    model = with_head(build_model("fmn04", head="linear", labels=("x",)), task.labels, 0).eval()
    long = [replace(task.clips(task.splits)[0], path=tmp_path / "long.wav")]
    audio = np.random.default_rng(0).normal(0, 0.1, 16_000 * 25)
    soundfile.write(long[0].path, audio, 16_000)
    whole = predict(model, long)
    sizes = []

    def short_of_memory(module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    model.frontend.register_forward_pre_hook(short_of_memory)
    found = predict(model, long)
    assert sizes == [3, 1, 1, 1] and model.options.batch_size == 1
    assert np.allclose(found[long[0].file], whole[long[0].file], atol=1e-4)
