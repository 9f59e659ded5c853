"""HEAR's leaderboard: the row made of stock heareval's results, and our scores beside it."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from downstream.leaderboard import COLUMNS, beside, leaderboard_csv, read_stock
from downstream.report_cells import Collection
from downstream.report_data import make_report
from downstream.report_text import markdown
from downstream.tables import table
from hear_pretrainedsed import cli
from tests.downstream.example_results import example_cell, write

DCASE = ("dcase2016_task2", "hear2021", "full", "event_onset_200ms_fms")
MAESTRO = ("maestro", "v3.0.0", "5h", "event_onset_50ms_fms")
BEATS = "hear_pretrainedsed.beats_strong"


def stock(
    base: Path,
    task: tuple[str, str, str, str] = DCASE,
    results: Any = None,
    model: str = BEATS,
    made_by: Any = None,
) -> Path:
    """A folder as heareval leaves it."""
    name, version, mode, metric = task
    folder = base / model / f"{name}-{version}-{mode}"
    folder.mkdir(parents=True)
    facts = {"task_name": name, "version": version, "mode": mode, "evaluation": [metric, "other"]}
    (folder / "task_metadata.json").write_text(json.dumps(facts))
    results = results or {"test": {"test_score": 0.5128374659, f"test_{metric}": 0.5128374659}}
    text = results if isinstance(results, str) else json.dumps(results)
    (folder / "test.predicted-scores.json").write_text(text)
    if made_by:
        (folder / "made_by.json").write_text(json.dumps({"inputs": made_by}))
    return folder


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in arguments])
    return stop.value.code


def test_a_row_as_the_website_wants_it(tmp_path: Path) -> None:
    folds = {f"fold0{i}": {"test_score": i / 10} for i in range(5)}
    folds["aggregated_scores"] = {"test_score_mean": 0.2, "test_score_std": 0.1}
    stock(tmp_path)
    stock(tmp_path, MAESTRO, folds)
    text = leaderboard_csv(read_stock([tmp_path]))
    assert text.splitlines()[0] == (
        "Model,URL,Submission Date,Beehive,Beijing Opera,CREMA-D,DCASE 2016,ESC-50,FSD50K,"
        "GTZAN Genre,GTZAN Music/Speech,Gunshot,Libricount,Maestro 5h,Mridangam Stroke,"
        "Mridangam Tonic,NSynth Pitch 50h,NSynth Pitch 5h,Speech commands 5h,"
        "Speech commands full,Vocal Imitation,VoxLingua107 top 10"
    )
    (row,) = rows_of(text)
    assert row.pop("Model") == "beats.strong"
    assert row.pop("URL").endswith("/PretrainedSED")
    assert row.pop("Submission Date") == datetime.now(UTC).date().isoformat()
    given = {name: score for name, score in row.items() if score}
    assert given == {"DCASE 2016": "0.512837466", "Maestro 5h": "0.200000000"}


def test_every_column_has_its_task() -> None:
    tasks = [task for task in COLUMNS.values() if task]
    assert len(COLUMNS) == 19 and len(set(tasks)) == 18
    assert [name for name, task in COLUMNS.items() if task is None] == ["Beehive"]


def test_one_row_a_model(tmp_path: Path) -> None:
    stock(tmp_path)
    stock(tmp_path, model="wav2vec2")
    stock(tmp_path, model=f"{BEATS}-layer=all")
    stock(tmp_path, model="hear_pretrainedsed.fmn10_strong_tf_256", made_by={"weights": "rule"})
    models = {row["Model"]: row["URL"] for row in rows_of(leaderboard_csv(read_stock([tmp_path])))}
    assert set(models) == {
        "beats.strong",
        "wav2vec2",
        "beats.strong (layer=all)",
        "fmn10.strong+tf-256 (rule-made weights, not trained ones)",
    }
    assert models["wav2vec2"] == ""


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (("office_like", "v1", "small", "a"), "task 'office_like' has no column"),
        (("dcase2016_task2", "hear2021", "small", "a"), "mode 'small' .the leaderboard has full"),
        (("nsynth_pitch", "v2.2.3", "full", "a"), "the leaderboard has 50h, 5h"),
        (("beehive_states_fold0", "v2", "full", "a"), "not published: fill it in"),
    ],
)
def test_a_task_without_a_column(
    tmp_path: Path, task: tuple[str, str, str, str], message: str
) -> None:
    stock(tmp_path)
    stock(tmp_path, task)
    with pytest.warns(UserWarning, match=message):
        (row,) = rows_of(leaderboard_csv(read_stock([tmp_path])))
    assert row["DCASE 2016"] == "0.512837466"
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=f"none of.*: {task[0]}"):
        leaderboard_csv(read_stock([tmp_path / BEATS / "-".join(task[:3])]))


def test_a_score_that_is_not_defined_stays_empty(tmp_path: Path) -> None:
    stock(tmp_path, results='{"test": {"test_score": NaN}}')
    found = read_stock([tmp_path])
    assert math.isnan(found[0].score)
    with pytest.warns(UserWarning, match="not defined; left empty"):
        (row,) = rows_of(leaderboard_csv(found))
    assert row["DCASE 2016"] == ""


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ('{"test": {"test_sc', "no whole JSON"),
        ("[]", "no JSON object"),
        ({"valid": {}}, "neither 'aggregated_scores' nor 'test'"),
        ({"test": {"score": 0.1}}, "no number 'test_score' in 'test'"),
        ({"aggregated_scores": {"test_score_mean": "x"}}, "no number 'test_score_mean'"),
    ],
)
def test_broken_results_are_refused(tmp_path: Path, results: Any, message: str) -> None:
    stock(tmp_path, results=results)
    with pytest.raises(ValueError, match=f"test.predicted-scores.json: {message}"):
        read_stock([tmp_path])


def test_folders_that_are_none_of_heareval(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no results of heareval"):
        read_stock([tmp_path])
    folder = stock(tmp_path / "a")
    stock(tmp_path / "b")
    with pytest.raises(ValueError, match="are both of beats.strong on dcase2016_task2"):
        read_stock([tmp_path])
    assert len(read_stock([tmp_path / "a", folder])) == 1  # one folder, named twice
    (folder / "task_metadata.json").write_text('{"task_name": "x"}')
    with pytest.raises(ValueError, match="task_metadata.json: no 'version' in it"):
        read_stock([folder])
    (folder / "task_metadata.json").unlink()
    with pytest.raises(ValueError, match="no task_metadata.json in it"):
        read_stock([folder])


# ---- Ours beside it


def ours(**other: Any) -> Any:
    facts = ((DCASE[3], "segment_1s_er"), 14, "scene", 3)
    cell = example_cell(task=DCASE[0], facts=facts, **other)
    return replace(cell, task_version="hear2021")


def test_ours_is_the_same_task_checkpoint_protocol_and_mode(tmp_path: Path) -> None:
    stock(tmp_path)
    cells = [ours(seed=0), ours(seed=1), ours(mode="knn"), ours(protocol="paper")]
    cells += [ours(checkpoint="m2d.strong"), example_cell()]
    (found,) = beside(read_stock([tmp_path]), table(cells))
    values = [cell.metrics[DCASE[3]].value for cell in cells[:2]]
    assert found.ours.value == pytest.approx(sum(values) / 2)
    assert found.difference == pytest.approx(sum(values) / 2 - 0.5128374659)
    assert found.ours.n_seeds == 2


def test_each_configuration_of_ours_has_its_line(tmp_path: Path) -> None:
    stock(tmp_path)
    cells = [ours(), ours(config={"grid_points": 1})]
    found = beside(read_stock([tmp_path]), table(cells))
    assert [dict(one.ours.differing) for one in found] == [{"grid_points": 1}, {"grid_points": 8}]
    text = markdown(make_report(Collection()), found).splitlines()
    for line, n in zip(text[-2:], (1, 8), strict=True):
        assert f"dcase2016_task2 hear2021 full (grid_points {n})" in line


def test_other_weights_options_or_versions_are_not_ours(tmp_path: Path) -> None:
    cell = ours()
    known = {"weights": cell.weights_sha256}
    stock(tmp_path / "same", made_by=known)
    stock(tmp_path / "weights", made_by={"weights": "00" * 32})
    stock(tmp_path / "options", model=f"{BEATS}-layer=all")
    stock(tmp_path / "version", (DCASE[0], "v2", *DCASE[2:]))
    for name, is_ours in {"same": 1, "weights": 0, "options": 0, "version": 0}.items():
        (found,) = beside(read_stock([tmp_path / name]), table([cell]))
        assert (found.ours is not None) == is_ours, name


def test_maestro_has_another_name_here(tmp_path: Path) -> None:
    stock(tmp_path, MAESTRO)
    facts = ((MAESTRO[3],), 40, "piece", 3)
    cell = replace(example_cell(task="maestro_5hr", facts=facts), task_version="v3.0.0")
    (found,) = beside(read_stock([tmp_path]), table([cell]))
    assert found.ours is not None


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stock(tmp_path / "embeddings")
    folder = write(tmp_path / "r", [ours()])
    words = ["report", folder, "--leaderboard", "hear", tmp_path / "embeddings"]
    assert run(*words) == 0
    shown = capfd.readouterr().out
    assert "0.513" in shown and f"{ours().metrics[DCASE[3]].value:.3f}" in shown
    assert "\nbeats.strong,https" in shown
    assert run(*words, "-o", tmp_path / "row.csv") == 0
    assert "Model,URL" not in capfd.readouterr().out
    assert len(rows_of((tmp_path / "row.csv").read_text())) == 1
    for name, part in {"p.html": "<h2>Stock heareval</h2>", "p.md": "## Stock heareval"}.items():
        assert run(*words, "-o", tmp_path / name) == 0
        assert part in (tmp_path / name).read_text()


def test_the_command_without_ours_and_without_theirs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = stock(tmp_path / "embeddings").parents[1]
    assert run("report", base, "--leaderboard", "hear") == 0
    assert "0.512837466" in capfd.readouterr().out
    assert run("report", base, "--leaderboard", "hear", "-o", tmp_path / "p.html") == 0
    capfd.readouterr()
    assert run("report", base, "-o", tmp_path / "p.html") == 2
    assert "add --leaderboard hear" in capfd.readouterr().err
    assert run("report", write(tmp_path / "r", [ours()]), "--leaderboard", "hear") == 2
    assert "wants folders of heareval's results" in capfd.readouterr().err
