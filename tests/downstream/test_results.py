from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import re
import resource
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from downstream import cells, results
from downstream.embeddings import Weights
from downstream.intervals import compare, holm, interval
from downstream.protocols.base import Found, Settings
from downstream.results import Cell, Key, Store, append, key_of, make_cell, read, table
from downstream.scoring import METRICS, Sample, score_task
from downstream.tasks.task import Task
from hear_pretrainedsed import __version__
from tests.downstream.small_task import small_task, some_found

METRIC = "event_onset_200ms_fms"
SETTINGS = Settings()


def asked(task: Task, **other: Any) -> SimpleNamespace:
    facts = {"checkpoint": "beats.strong", "protocol": "hear", "mode": "probe", "seed": 0} | other
    weights = Weights(facts.pop("checkpoint"), Path("w.pt"), facts.pop("sha256", "ab" * 32))
    return SimpleNamespace(weights=weights, task=task, **facts)


def a_task(metrics: tuple[str, ...] = (METRIC, "segment_1s_er"), n_clips: int = 12) -> Task:
    return small_task(np.random.default_rng(0), metrics, n_clips=n_clips)


def a_run(
    task: Task, noise: float = 1.0, settings: Settings = SETTINGS, **other: Any
) -> tuple[Cell, Found]:
    what = asked(task, **other)
    found = some_found(np.random.default_rng(what.seed), task, noise)
    found = replace(found, config=other.get("recipe", {"k": 1}))
    scored = score_task(task, found)
    cell = make_cell(key_of(what, settings), what, found, scored, {"run_s": 1.5}, 2)
    return cell, found


def a_cell(task: Task | None = None, noise: float = 1.0, **other: Any) -> Cell:
    return a_run(task or a_task(), noise, **other)[0]


def key() -> Key:
    return key_of(asked(a_task()), SETTINGS)


def test_a_cell_says_what_it_is_of_and_can_be_repeated() -> None:
    task = a_task()
    cell = a_cell(task, seed=3)
    line = json.loads(cell.to_line())
    wanted = {"schema": 1, "checkpoint": "beats.strong", "weights_sha256": "ab" * 32, "seed": 3}
    wanted |= {"task": "small", "task_version": "1.0.0", "task_digest": task.digest()}
    wanted |= {"protocol": "hear", "mode": "probe", "main_metric": METRIC, "unit": "scene"}
    wanted |= {"version": __version__, "recipe": {"k": 1}, "chosen": [{"lr": 0.1}]}
    wanted |= {"seconds": {"run_s": 1.5}, "n_test_frames": 12 * 100, "commit": cells.commit()}
    assert {name: line[name] for name in wanted} == wanted
    assert line["config"] == {"precision": "fp32", "grid_points": 8, "grid": "default"}
    assert line["platform"]["device"] == "cpu" and line["platform"]["threads"] == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", line["created"])
    assert list(line["metrics"]) == [METRIC, "segment_1s_er"]
    score = line["metrics"][METRIC]
    assert score["value"] == score["micro"] and set(score["per_class"]) == set(task.labels)
    assert score["interval"][0] < score["value"] < score["interval"][1]


def test_a_line_is_read_back_as_it_was() -> None:
    cell = a_cell()
    again = Cell.from_line(cell.to_line())
    assert again == cell and again.to_line() == cell.to_line()
    for name, measured in cell.metrics.items():
        assert np.array_equal(again.metrics[name].draws, measured.draws)


def test_what_is_no_number_in_json_is_null_or_text() -> None:
    task = a_task(("event_onset_200ms_fms",))
    found = some_found(np.random.default_rng(0), task)
    silent: dict[str, list[Any]] = {file: [] for file in found.events}
    chosen = {"valid_score": -math.inf, "loss": np.float32("nan"), "n": np.int64(3), "p": Path("x")}
    found = replace(found, events=silent, chosen=(chosen | {"a": np.arange(2), "t": (1, None)},))
    what = asked(task)
    cell = make_cell(key(), what, found, score_task(task, found), {}, 1)
    line = cell.to_line()
    content = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    score = content["metrics"][METRIC]
    assert score["value"] is None and score["interval"] is None
    wanted = {"valid_score": "-inf", "loss": None, "n": 3, "p": "x", "a": [0, 1], "t": [1, None]}
    assert content["chosen"] == [wanted]
    again = Cell.from_line(line)
    assert math.isnan(again.metrics[METRIC].value) and again.to_line() == line
    with pytest.raises(ValueError, match="numbers, text, lists and dicts, got <object"):
        cells.plain({"a": object()})
    with pytest.raises(ValueError, match="NaN is not strict JSON"):
        Cell.from_line(line.replace("null", "NaN", 1))


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": "beats.weak"},
        {"weights_sha256": "cd" * 32},
        {"task": "other"},
        {"task_version": "2"},
        {"task_digest": "0"},
        {"protocol": "paper"},
        {"mode": "knn"},
        {"seed": 1},
        {"config": {"precision": "bf16"}},
        {"version": "9"},
    ],
)
def test_everything_that_is_set_makes_another_cell(change: dict[str, Any]) -> None:
    assert replace(key(), **change).id != key().id


def test_the_place_of_a_run_makes_no_other_cell() -> None:
    assert replace(key(), device="cuda:0").id == key().id
    assert key_of(asked(a_task()), Settings(tell=print)).id == key().id
    assert key_of(asked(a_task()), Settings(grid_points=1)).id != key().id
    assert key_of(asked(a_task()), Settings(steps_scale=0.5)).id == key().id  # not read by it


def test_a_finished_cell_is_found_again(tmp_path: Path) -> None:
    task = a_task()
    store = Store(tmp_path / "new" / "folder")
    cell, found = a_run(task)
    wanted = key_of(asked(task), SETTINGS)
    assert store.finished(wanted) is None
    store.append(cell, found)
    for each in (store, Store(store.folder)):
        assert each.finished(wanted) == cell
        assert each.finished(replace(wanted, seed=1)) is None
    assert (store.folder / "cells" / f"{wanted.id}.npz").is_file()


def test_a_protocol_marks_its_result_and_is_found_by_what_was_asked(tmp_path: Path) -> None:
    task, settings = a_task(), Settings(steps_scale=0.1)
    recipe = {"protocol": "paper-scaled"}
    cell, found = a_run(task, settings=settings, protocol="paper", recipe=recipe)
    store = Store(tmp_path)
    store.append(cell, found)
    assert cell.protocol == "paper-scaled"
    assert store.finished(key_of(asked(task, protocol="paper"), settings)) == cell
    assert store.finished(key_of(asked(task, protocol="paper"), SETTINGS)) is None


def test_arrays_suffice_to_score_again(tmp_path: Path) -> None:
    metrics = ("psds1", "psds2", "frame_map", "collar_f1")
    task = small_task(np.random.default_rng(1), metrics, n_clips=40, n_events=2, duration_s=10.0)
    cell, found = a_run(task, 0.5)
    Store(tmp_path).append(cell, found)
    scores, events = results.read_arrays(tmp_path, cell.id)
    assert events == found.events and list(scores) == list(found.folds[0])
    sample = Sample.of(task, task.splits["fold0"], scores, events)
    for name in metrics:
        value = METRICS[name].value(sample)
        assert value == pytest.approx(cell.metrics[name].value, abs=1e-3), name
        assert 0.1 < value < 0.999
    for file, score in found.scores.items():
        assert scores[file].dtype == np.float32
        assert np.abs(scores[file] - score).max() < 1e-3


def test_scores_at_the_ends_stay_there_and_others_are_refused(tmp_path: Path) -> None:
    scores = {"a": np.array([[0.0, 1.0], [1e-7, 1 - 1e-7], [0.05, 0.5]], np.float32)}
    found = Found(scores, {"a": []}, (("a",),), ({},))
    results.write_arrays(tmp_path, "x", found, ["c", "d"])
    again, events = results.read_arrays(tmp_path, "x")
    assert again["a"][0].tolist() == [0.0, 1.0] and events == {"a": []}
    assert again["a"] == pytest.approx(scores["a"], rel=0.01)
    assert np.all(np.diff(again["a"][:, 0]) != 0)
    for bad in (1.5, -0.1, np.nan):
        with pytest.raises(ValueError, match="'a': scores are from 0 to 1"):
            wrong = replace(found, scores={"a": np.full((3, 2), bad, np.float32)})
            results.write_arrays(tmp_path, "y", wrong, ["c", "d"])
    assert [path.name for path in (tmp_path / "cells").iterdir()] == ["x.npz"]
    with pytest.raises(ValueError, match="no arrays of this cell"):
        results.read_arrays(tmp_path, "y")


def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path: Path) -> None:
    cell = a_cell()
    append(tmp_path, cell)
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    torn = a_cell(seed=1).to_line().encode()
    for n in (1, len(torn) // 2, len(torn) - 1):
        path.write_bytes(whole + torn[:n])
        with pytest.warns(UserWarning, match="left out half a line"):
            assert read(tmp_path) == [cell]
        assert path.read_bytes() == whole + torn[:n]
        with pytest.warns(UserWarning, match="cut off half a line"):
            append(tmp_path, a_cell(seed=2))
        assert [one.seed for one in read(tmp_path)] == [0, 2]


def test_a_last_line_without_its_end_is_kept(tmp_path: Path, recwarn: Any) -> None:
    append(tmp_path, a_cell())
    path = tmp_path / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert len(read(tmp_path)) == 1
    append(tmp_path, a_cell(seed=1))
    assert [one.seed for one in read(tmp_path)] == [0, 1] and not recwarn.list


def test_no_results_are_no_error(tmp_path: Path) -> None:
    assert read(tmp_path) == [] and read(tmp_path / "nowhere") == []
    assert table([]) == []


def test_of_one_cell_twice_the_last_counts(tmp_path: Path) -> None:
    one = a_cell()
    append(tmp_path, one)
    append(tmp_path, replace(one, seconds={"run_s": 9.0}))
    (cell,) = read(tmp_path)
    assert cell.seconds == {"run_s": 9.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "unknown schema 2"),
        ({"schema": None}, "unknown schema None"),
        ({"more": 1}, "the field 'more' is none of this schema"),
        ({"seed": None}, "the field 'seed' is None; it has to be a whole number"),
        ({"seed": "a"}, "the field 'seed' is 'a'; it has to be a whole number"),
        ({"seed": True}, "the field 'seed' is True; it has to be a whole number"),
        ({"config": "a"}, "the field 'config' is 'a'; it has to be an object"),
        ({"protocol": None}, "the field 'protocol' is None; it has to be text"),
        ({"task": 3}, "the field 'task' is 3; it has to be text"),
        ({"commit": 3}, "the field 'commit' is 3; it has to be text"),
        ({"chosen": [1]}, r"the field 'chosen' is \[1\]; it has to be a list of objects"),
        ({"seconds": {"run_s": "a"}}, "the field 'seconds.run_s' is 'a'; it has to be a number"),
        ({"sampling": 3}, "the field 'sampling' is 3; it has to be an object"),
        ({"sampling": {"n_units": 3}}, "the field 'sampling.digest' is missing"),
        ({"metrics": {}}, "the field 'main_metric': unknown metric 'event_onset_200ms_fms'"),
        ({"main_metric": "nope"}, "the field 'main_metric': unknown metric 'nope'"),
        ({"main_metric": ["x"]}, r"the field 'main_metric' is \['x'\]; it has to be text"),
        ({"metrics": {METRIC: {}}}, f"the field 'metrics.{METRIC}.draws' is missing"),
        ({"metrics": {METRIC: 3}}, f"the field 'metrics.{METRIC}' is 3; it has to be an object"),
    ],
)
def test_lines_of_another_kind_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    append(tmp_path, a_cell())
    path = tmp_path / "results.jsonl"
    content = json.loads(path.read_text()) | change
    path.write_text(path.read_text() + json.dumps(content) + "\n")
    with pytest.raises(ValueError, match=rf"results\.jsonl, line 2: .*{message}") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "a"}, r"value' is 'a'; it has to be a number, null, "),
        ({"macro": [1]}, r"macro' is \[1\]; it has to be a number"),
        ({"per_class": 3}, "per_class' is 3; it has to be an object"),
        ({"per_class": {"dog": {}}}, r"per_class\.dog' is {}; it has to be a number"),
        ({"interval": [0.1]}, r"interval' is \[0\.1\]; it has to be two numbers, or null"),
        ({"interval": [0.1, "b"]}, "interval' is 'b'; it has to be a number"),
        ({"draws": 3}, "draws' is 3; it has to be text"),
        ({"draws": "AAA"}, "draws' is 'AAA'; it has to be base64 of float32"),
        ({"draws": "AAAA"}, "draws' is 'AAAA'; it has to be base64 of float32"),
        ({"draws": "é" * 99}, r"draws' is 'é{56}\.\.\.; it has to be base64 of float32"),
        ({"more": 1}, "more' is none of this schema"),
    ],
)
def test_metrics_of_another_kind_are_refused(change: dict[str, Any], message: str) -> None:
    content = json.loads(a_cell().to_line())
    content["metrics"][METRIC] |= change
    with pytest.raises(ValueError, match=rf"the field 'metrics\.{METRIC}\.{message}"):
        Cell.from_line(json.dumps(content))
    content["metrics"] |= {"psds9": content["metrics"].pop("segment_1s_er")}
    content["metrics"][METRIC] = json.loads(a_cell().to_line())["metrics"][METRIC]
    with pytest.raises(ValueError, match="the field 'metrics': unknown metric 'psds9'.*psds1"):
        Cell.from_line(json.dumps(content))


@pytest.mark.parametrize("line", ["", "{", "[1]", "\udcff"])
def test_lines_that_are_no_cells_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(ValueError, match="line 1: "):
        read(tmp_path)


def test_a_field_that_is_missing_is_named() -> None:
    content = json.loads(a_cell().to_line())
    del content["task_digest"]
    with pytest.raises(ValueError, match="the field 'task_digest' is missing"):
        Cell.from_line(json.dumps(content))


def _write_some(folder: Path, cell: Cell, number: int) -> None:
    for i in range(15):
        append(folder, replace(cell, id=f"{number}-{i}", seed=100 * number + i))


@pytest.mark.filterwarnings("error:.*half")
def test_several_processes_may_write_to_one_folder(tmp_path: Path) -> None:
    cell = a_cell()
    process = multiprocessing.get_context("fork").Process
    writers = [process(target=_write_some, args=(tmp_path, cell, n)) for n in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        read(tmp_path)  # never half a line: warnings are errors here
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert {c.seed for c in read(tmp_path)} == {100 * n + i for n in range(4) for i in range(15)}


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(tmp_path, a_cell())
    before = (tmp_path / "results.jsonl").read_bytes()

    def no_sync(number: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", no_sync)
    with pytest.raises(OSError, match="No space left"):
        append(tmp_path, a_cell(seed=1))
    monkeypatch.undo()
    assert (tmp_path / "results.jsonl").read_bytes() == before


def _append_below(limit: int, folder: Path, cell: Cell, found: Found) -> None:
    """In a process of its own, where no file may be larger than `limit` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        Store(folder).append(cell, found)
    except OSError as error:
        os._exit(error.errno)
    os._exit(0)


@pytest.mark.parametrize("limit", [0, 100, 2000])
def test_a_disk_that_is_full_amid_a_cells_arrays_leaves_nothing(tmp_path: Path, limit: int) -> None:
    task = a_task()
    cell, found = a_run(task)
    arguments = (limit, tmp_path, cell, found)
    writer = multiprocessing.get_context("fork").Process(target=_append_below, args=arguments)
    writer.start()
    writer.join()
    assert writer.exitcode == errno.EFBIG
    assert read(tmp_path) == []
    assert list((tmp_path / "cells").iterdir()) == []
    store = Store(tmp_path)
    assert store.finished(key_of(asked(task), SETTINGS)) is None  # so it is run again
    store.append(cell, found)
    assert (tmp_path / "cells" / f"{cell.id}.npz").stat().st_size > limit
    results.read_arrays(tmp_path, cell.id)


@pytest.mark.parametrize("n_bytes", [0, 10, 1000, -1])
def test_arrays_that_were_cut_are_told_as_such(tmp_path: Path, n_bytes: int) -> None:
    cell, found = a_run(a_task())
    Store(tmp_path).append(cell, found)
    path = tmp_path / "cells" / f"{cell.id}.npz"
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(ValueError, match=rf"{path} is damaged: remove it and the cell's line"):
        results.read_arrays(tmp_path, cell.id)


def test_the_commit_is_that_of_this_checkout_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = cells.commit.__wrapped__()
    assert known is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", known)
    monkeypatch.setattr(cells, "_ROOT", tmp_path)
    assert cells.commit.__wrapped__() is None
    (tmp_path / ".git").mkdir()  # no repository, though it looks like one
    assert cells.commit.__wrapped__() is None


def rows_of(*made: Cell) -> dict[tuple[str, ...], results.Row]:
    rows = table(made)
    return {(r.protocol, r.mode, r.metric, r.checkpoint): r for r in rows}


def test_rows_are_means_over_seeds_with_intervals_over_units_and_seeds() -> None:
    made = [a_cell(seed=seed) for seed in range(3)]
    row = rows_of(*made)["hear", "probe", METRIC, "beats.strong"]
    assert row.value == pytest.approx(np.mean([one.metrics[METRIC].value for one in made]))
    assert (row.n_seeds, row.n_units, row.unit, row.p) == (3, 12, "scene", None)
    assert row.interval[0] < row.value < row.interval[1]
    assert table(made) == table(made[::-1])
    few = rows_of(a_cell(a_task(n_clips=9)))["hear", "probe", METRIC, "beats.strong"]
    assert few.interval is None and few.value > 0 and few.n_units == 9


def test_the_table_is_the_same_in_whatever_order_cells_were_finished() -> None:
    kinds = [("best", "probe"), ("hear", "knn"), ("paper-scaled", "probe"), ("hear", "probe")]
    names = ["beats.strong", "asit.ssl"]
    made = [
        replace(a_cell(checkpoint=name, seed=seed), protocol=protocol, mode=mode)
        for protocol, mode in kinds
        for name in names
        for seed in range(2)
    ]
    rows, text = table(made), printed(made)
    for order in range(3):
        other = [made[i] for i in np.random.default_rng(order).permutation(len(made))]
        assert table(other) == rows
        assert printed(other) == text
    found = list(dict.fromkeys((row.protocol, row.mode) for row in rows))
    assert found == [kinds[3], kinds[1], kinds[2], kinds[0]]
    hear = [row for row in rows if row.protocol == "hear"]
    assert table([one for one in made if one.protocol == "hear"]) == hear  # alone or beside others


def test_numbers_of_two_protocols_modes_or_settings_are_kept_apart() -> None:
    made = [
        a_cell(),
        a_cell(checkpoint="m2d.weak", protocol="paper"),
        a_cell(checkpoint="asit.ssl", mode="knn"),
        a_cell(checkpoint="atst_f.ssl", settings=Settings(precision="bf16")),
        a_cell(a_task(n_clips=13), checkpoint="fpasst.ssl"),
    ]
    rows = [row for row in table(made) if row.metric == METRIC]
    assert len(rows) == 5 and all(row.p is None for row in rows)
    differing = {row.checkpoint: dict(row.differing) for row in rows}
    assert differing["m2d.weak"] == differing["asit.ssl"] == {}
    assert differing["atst_f.ssl"]["precision"] == "bf16"
    assert differing["beats.strong"]["precision"] == "fp32"
    assert differing["fpasst.ssl"]["data"] != differing["beats.strong"]["data"]


def test_settings_that_are_not_the_usual_ones_are_told() -> None:
    task = a_task()
    quick = Settings(grid="faster", grid_points=1, precision="bf16")
    assert "probe: precision bf16, grid faster, grid_points 1" in printed(
        [a_cell(task, settings=quick)]
    )
    scaled = {"settings": Settings(steps_scale=0.1), "recipe": {"protocol": "paper-scaled"}}
    for row in table([a_cell(task, protocol="paper", **scaled)]):
        assert row.differing == (("steps_scale", 0.1),)
    cell = a_cell(task, mode="finetune", protocol="paper")  # on this machine so many pieces
    other = replace(cell, protocol="paper-changed", config=cell.config | {"set": "n_epochs=5"})
    assert table([cell])[0].differing == () and "norm_pieces" in cell.config
    assert table([other])[0].differing == (("set", "n_epochs=5"),)


def test_p_is_against_the_best_and_corrected_over_all_pairs() -> None:
    task = a_task(n_clips=30)
    noises = {"best": 0.2, "next": 0.3, "other": 0.9, "worst": 2.5}
    made = [a_cell(task, noise, checkpoint=name) for name, noise in noises.items()]
    rows = [row for row in table(made[::-1]) if row.metric == METRIC]
    names = [row.checkpoint for row in rows]
    assert names == sorted(noises, key=lambda n: -rows[names.index(n)].value)
    assert rows[0].p is None and rows[-1].p < 0.001
    scores = {one.checkpoint: one.metrics[METRIC] for one in made}
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    parts = [[(scores[x].value, scores[x].draws.astype(float)) for x in pair] for pair in pairs]
    p = holm([compare(*a, *b, made[0].sampling).p for a, b in parts])
    assert [row.p for row in rows[1:]] == pytest.approx(p[:3])


def test_less_is_better_where_a_metric_says_so() -> None:
    task = a_task()
    made = [a_cell(task, 0.1, checkpoint="good"), a_cell(task, 2.0, checkpoint="bad")]
    for metric in task.metrics:
        assert [r.checkpoint for r in table(made) if r.metric == metric] == ["good", "bad"]


def test_checkpoints_of_one_name_and_other_weights_are_two_rows() -> None:
    made = [a_cell(), a_cell(seed=1, sha256="cd" * 32)]
    assert [r.n_seeds for r in table(made) if r.metric == METRIC] == [1, 1]


def printed(made: list[Cell]) -> str:
    console = Console(width=80, record=True, file=open(os.devnull, "w"))
    console.print(results.results_table(made))
    return console.export_text()


def test_the_table_fits_into_80_columns_and_says_how_it_was_made() -> None:
    names = ["fmn10.strong-akd+tf-256", "beats.strong"]
    made = [a_cell(checkpoint=name, noise=n + 0.2) for n, name in enumerate(names)]
    made.append(a_cell(protocol="paper", seed=1, recipe={"protocol": "paper-scaled"}))
    text = printed(made)
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    for wanted in (*names, "protocol hear", "protocol paper-scaled", METRIC, "12 scenes and one"):
        assert wanted in text
    assert "segment_1s_er (less is better)" in text and "Holm" in text
    assert f"{made[0].metrics[METRIC].value:.3f}" in text
    assert "9 scenes: no intervals." in printed([a_cell(a_task(n_clips=9))])


def test_seeds_widen_an_interval() -> None:
    task = a_task()
    made = [a_cell(task, noise, seed=seed) for seed, noise in enumerate((0.1, 0.1, 2.5, 2.5))]
    (row,) = (row for row in table(made) if row.metric == METRIC)
    draws = np.mean([one.metrics[METRIC].draws for one in made], axis=0)
    low, high = interval(row.value, draws, made[0].sampling)
    assert row.interval[1] - row.interval[0] > 1.5 * (high - low)
