"""Protocol `best`: the recipe on made-up frames, its layout of blocks, what is chosen where."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.block_heads import plain
from downstream.block_heads import BlockHeads, Layout, Statistics
from downstream.embeddings import FrameSpec
from downstream.protocols import best
from downstream.protocols.base import Found, Settings
from downstream.protocols.best import RECIPE, ChangePoints, Kit, specs
from downstream.scoring import score_task
from downstream.tasks import Task
from tests.downstream.probe_task import MadeUpSource, made_up_task
from tests.downstream.test_probe import data

QUICK = {"steps_from_to": (24, 24), "n_checks": 3}
CHECKPOINT = "fmn04.strong"


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    """A small network gains nothing from more, and waits for them on a busy machine."""
    torch.set_num_threads(1)


def source(task: Task, folder: Path) -> MadeUpSource:
    with torch.device("meta"):
        model = best.build_checkpoint(best.get_checkpoint(CHECKPOINT))
    made_up = MadeUpSource(task, folder, widths=model.backbone.block_dims)
    made_up.final_dim = model.frame_dim
    made_up.weights = SimpleNamespace(checkpoint=CHECKPOINT)
    return made_up


def run(task: Task, folder: Path, mode: str = "probe", seed: int = 0) -> Found:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best, "RECIPE", replace(RECIPE, **QUICK))
        return best.PROTOCOL.modes[mode](task, source(task, folder), Settings(), seed)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    torch.set_num_threads(1)
    return run(made_up_task(), tmp_path_factory.mktemp("frames"))


def test_finds_what_is_there_and_writes_down_what_it_chose(found: Found) -> None:
    task = made_up_task()
    assert score_task(task, found)["event_onset_200ms_fms"].value > 0.9
    (chosen,) = found.chosen
    assert chosen["lr"] in RECIPE.lrs and chosen["step"] in (8, 16, 24)
    maps = chosen["valid_frame_map_of_lr"]
    assert chosen["valid_frame_map"] == maps[str(chosen["lr"])] == max(maps.values())
    assert set(chosen["thresholds"]) == set(task.labels) == set(chosen["median_frames"])
    assert sum(chosen["block_shares"]) == pytest.approx(1, abs=1e-3)
    assert len(chosen["block_shares"]) == 17
    json.dumps([found.chosen, found.config])


def test_the_lr_is_searched_on_the_first_rotation_only(tmp_path: Path) -> None:
    task = made_up_task(n_clips=2, folds=3)
    found = run(task, tmp_path)
    assert ["valid_frame_map_of_lr" in one for one in found.chosen] == [True, False, False]
    assert len({one["lr"] for one in found.chosen}) == 1
    assert found.scores.keys() == found.events.keys() == {c.file for c in task.clips(task.splits)}


@pytest.mark.parametrize("mode", ["probe", "knn"])
def test_the_test_split_changes_nothing_that_is_chosen(tmp_path: Path, mode: str) -> None:
    task = made_up_task(n_clips=2)
    silent = tuple(replace(clip, events=(), events_ms=None) for clip in task.clips("test"))
    blind = replace(task, splits={**task.splits, "test": silent})
    frames = source(task, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best, "RECIPE", replace(RECIPE, **QUICK))
        one = best.PROTOCOL.modes[mode](task, frames, Settings(), 0)
        two = best.PROTOCOL.modes[mode](blind, frames, Settings(), 0)
    assert one.chosen == two.chosen and one.events == two.events


def test_knn_is_calibrated_too(tmp_path: Path) -> None:
    task = made_up_task()
    found = run(task, tmp_path, "knn")
    assert score_task(task, found)["event_onset_200ms_fms"].value > 0.8
    assert set(found.chosen[0]["thresholds"]) == set(task.labels)


def test_specs_of_transformers_mobilenets_and_sequence_models() -> None:
    wanted, layout = specs("atst_f.strong", replace(RECIPE, windowing="overlap"), "bf16")
    assert layout.groups == ((12, 768),)
    assert wanted == [
        FrameSpec(tuple(range(12)), "overlap", "bf16", concat_mel=False, stored="float16")
    ]
    _, layout = specs("fmn10.strong", RECIPE, "fp32")
    assert layout.groups == ((2, 16), (2, 24), (3, 40), (4, 80), (2, 112), (3, 160), (1, 960))
    assert (layout.n_blocks, layout.out_dim) == (17, 1392)
    wanted, layout = specs("fmn10.strong+tf-256", RECIPE, "fp32")
    assert layout.groups[-1] == (1, 256)
    assert [spec.layer is None for spec in wanted] == [False, True]
    wanted, layout = specs("beats.ssl", replace(RECIPE, layer_sum=False, concat_mel=True), "fp32")
    assert layout.groups == ((1, 768), (1, 128)) and wanted[0].concat_mel
    same, layout = specs("beats.ssl", replace(RECIPE, n_dropped=2), "fp32")
    assert layout.groups == ((10, 768),) and same[0].layer == tuple(range(12))
    with pytest.raises(ValueError, match="12 blocks dropped"):
        specs("beats.ssl", replace(RECIPE, n_dropped=12), "fp32")


def test_dropped_blocks_are_not_read(tmp_path: Path) -> None:
    task = made_up_task(n_clips=1)
    made_up = source(task, tmp_path)
    recipe = replace(RECIPE, **QUICK, n_dropped=2)
    kit = Kit.of(task, made_up, recipe, Settings(), 0)
    clip = task.clips("train")[0]
    (whole,) = Kit.of(task, made_up, replace(recipe, n_dropped=0), Settings(), 0).sources
    n_kept = sum(made_up.widths[:-2])
    np.testing.assert_array_equal(kit.sources[0].clip(clip.file), whole.clip(clip.file)[:, :n_kept])
    model, _ = kit.fit(task.rotations[0], (1e-2,))
    assert model.convex().shape == (1, 15)


def statistics(dim: int, n_classes: int = 2) -> Statistics:
    generator = torch.Generator().manual_seed(3)
    mean, std = torch.randn(2, dim, generator=generator)
    return Statistics(mean, std.abs() + 0.5, torch.full((n_classes,), 0.1))


def block_heads(layout: Layout, n_prototypes: int | None, n_heads: int = 2) -> BlockHeads:
    generator = torch.Generator().manual_seed(4)
    model = BlockHeads(layout, statistics(layout.in_dim), n_heads, n_prototypes, generator)
    with torch.no_grad():
        for parameter in model.parameters():  # away from the start, each head its own way
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("n_prototypes", [None, 1, 3])
def test_heads_are_what_a_loop_computes(n_prototypes: int | None) -> None:
    layout = Layout.of([4, 4, 6, 5, 5], apart=[5])
    assert layout.groups == ((2, 4), (1, 6), (2, 5), (1, 5))
    assert (layout.n_blocks, layout.in_dim, layout.out_dim) == (6, 29, 20)
    model = block_heads(layout, n_prototypes)
    x = torch.randn(7, 29, generator=torch.Generator().manual_seed(5))
    facts = statistics(29)
    z = (x - facts.mean) / facts.std
    assert model.standard is not None
    model.standard.apply(x)
    torch.testing.assert_close(x, z)
    found = model(x)
    for h in range(2):
        share = model.shares[h].exp() / model.shares[h].exp().sum()
        for row in range(7):
            a, b, c, d, e, f = z[row].split([4, 4, 6, 5, 5, 5])
            parts = [share[0] * a + share[1] * b, share[2] * c, share[3] * d + share[4] * e]
            total = torch.cat([*parts, share[5] * f])
            for k in range(2):
                if n_prototypes is None:
                    wanted = model.weights[h][k] @ total + model.biases[h][k]
                else:
                    mine = model.weights[h][k * n_prototypes : (k + 1) * n_prototypes]
                    cosines = torch.cosine_similarity(mine, total[None])
                    pooled = (model.sharpness[h][k].exp() * cosines).exp().mean().log()
                    wanted = pooled + model.biases[h][k]
                assert found[row, h, k].item() == pytest.approx(wanted.item(), abs=1e-4)


@pytest.mark.parametrize("n_prototypes", [None, 1, 3])
@pytest.mark.parametrize("layout", [Layout.of([8] * 3), Layout.of([4, 4, 6], apart=[5])])
def test_gradients_are_those_of_the_formulas(layout: Layout, n_prototypes: int | None) -> None:
    model = block_heads(layout, n_prototypes).double()
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(9, layout.in_dim, generator=generator, dtype=torch.float64)
    down = torch.randn(9, 2, 2, generator=generator, dtype=torch.float64)
    wanted = torch.autograd.grad((plain(model, x) * down).sum(), list(model.parameters()))
    assert model.standard is not None
    model.standard.apply(x)
    found = torch.autograd.grad((model(x) * down).sum(), list(model.parameters()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("n_prototypes", [None, 3])
def test_heads_learn_in_bfloat16(n_prototypes: int | None) -> None:
    layout = Layout.of([8] * 3)
    model = block_heads(layout, n_prototypes)
    x = torch.randn(50, layout.in_dim, generator=torch.Generator().manual_seed(7))
    wanted = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).float().square().mean()
    found = torch.autograd.grad(loss, list(model.parameters()))
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.05 * b.norm()


def test_heads_begin_at_how_often_a_class_is_active() -> None:
    generator = torch.Generator().manual_seed(0)
    model = BlockHeads(Layout.of([4]), statistics(4), 1, None, generator)
    torch.testing.assert_close(model(torch.randn(3, 4)).sigmoid(), torch.full((3, 1, 2), 0.1))


def test_keep_leaves_one_head() -> None:
    model, x = block_heads(Layout.of([4, 4]), 3), torch.randn(5, 8)
    both = model(x)
    model.keep([p.detach() for p in model.groups[1]])
    torch.testing.assert_close(model(x), both[:, 1:])
    assert len(model.groups) == 1 and model.convex().shape == (1, 2)


def test_statistics_are_those_of_the_frames() -> None:
    some = data((250, 250))  # no choice of crops
    found = Statistics.of(some, torch.Generator().manual_seed(0))
    rows, targets = some.gather([(0, 0), (1, 0)], some.buffer(2))
    torch.testing.assert_close(found.mean, rows.mean(dim=0), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.std, rows.std(dim=0, correction=0), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found.prior, (targets.sum(dim=0) + 1) / 502)


def test_the_best_check_of_each_head_is_kept() -> None:
    fit = best.Fit(block_heads(Layout.of([4]), None))
    for step, values in ((1, [0.3, -np.inf]), (2, [0.1, 0.2]), (3, [0.2, 0.2])):
        with torch.no_grad():
            for parameter in fit.model.biases:
                parameter.fill_(step)
        fit.see(step, values)
    assert (fit.best, fit.step) == ([0.3, 0.2], [1, 2])
    place = fit.model.names.index("biases")
    assert [state[place][0].item() for state in fit.state] == [1, 2]


def test_change_points_and_no_calibration(tmp_path: Path) -> None:
    task = made_up_task(n_clips=1)
    recipe = replace(RECIPE, layer_sum=False, calibrated=False, change_points=ChangePoints())
    kit = Kit.of(task, source(task, tmp_path), recipe, Settings(), 0)
    scores = {"a": np.full((100, 3), 0.05, np.float32)}
    scores["a"][20:50, 1] = 0.9
    assert kit.decoding(task.clips("valid"), scores) is None
    smooth, events = kit.decode(scores, None)
    assert len(np.unique(smooth["a"][:, 1])) == 2
    assert [label for *_, label in events["a"]] == ["dog"]
