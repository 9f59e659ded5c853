"""Reports: what is read and refused, what stands in which column, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from downstream.cells import Cell
from downstream.intervals import compare, holm
from downstream.report_cells import Collection, read_cells
from downstream.report_data import Gain, Report, make_report, network
from downstream.report_text import csv_text, escaped, markdown
from downstream.tables import table
from hear_pretrainedsed import cli
from tests.downstream.example_results import example_cell, grid, write

CHECKPOINTS = ("beats.ssl", "beats.weak", "beats.strong", "fmn10.weak", "fmn10.strong+tf-256")


def collected(cells: list[Cell]) -> Collection:
    found = Collection()
    for i, cell in enumerate(cells):
        found.add(cell, f"line {i}")
    return found


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return grid(CHECKPOINTS, ("office_like", "domestic_like"), seeds=2)


@pytest.fixture(scope="module")
def report(cells: list[Cell]) -> Report:
    return make_report(collected(cells))


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in arguments])
    return stop.value.code


# ---- What stands where


def test_made_up_cells_are_read_back(cells: list[Cell]) -> None:
    assert Cell.from_line(cells[0].to_line()) == cells[0]


def test_protocols_never_share_a_column(report: Report, cells: list[Cell]) -> None:
    assert [section.protocol for section in report.sections] == ["hear", "paper", "best"]
    shown = []
    for section in report.sections:
        for (net, column), row in section.values.items():
            for cell in row.cells:
                assert cell.protocol == section.protocol == row.protocol
                assert (cell.checkpoint, cell.task, cell.mode) == (
                    net.checkpoint,
                    column.task,
                    column.mode,
                )
                shown.append((cell.id, column.metric))
    assert sorted(shown) == sorted((c.id, metric) for c in cells for metric in c.metrics)


def test_values_are_those_of_the_table(report: Report) -> None:
    rows = {
        (r.protocol, r.task, r.mode, r.metric, r.checkpoint): (r.value, r.interval, r.p)
        for protocol in ("hear", "paper", "best")
        for r in table([cell for cell in report.cells if cell.protocol == protocol])
    }
    lines = list(csv.DictReader(io.StringIO(csv_text(report))))
    assert len(lines) == len(rows)
    for line in lines:
        key = tuple(line[n] for n in ("protocol", "task", "mode", "metric", "checkpoint"))
        value, interval, p = rows[key]
        assert float(line["value"]) == pytest.approx(value)
        assert line["n_seeds"] == ("1" if line["mode"] == "knn" else "2")
        assert (line["p_holm"] == "") == (p is None)
        assert (float(line["low"]), float(line["high"])) == pytest.approx(interval)


def test_the_best_and_those_not_told_apart_from_it(report: Report) -> None:
    section = report.sections[0]
    for column in section.columns:
        marks, rows = section.marks(column), section.rows(column)
        values = [row.value for _, row in rows]
        assert values == sorted(values, reverse=column.maximize)
        assert marks[rows[0][0]] == "best"
        for net, row in rows[1:]:
            assert marks[net] == ("tied" if row.p >= 0.05 else "worse")


def test_networks_by_backbone_and_stage(report: Report) -> None:
    names = [net.checkpoint for net in report.sections[0].networks]
    assert names == list(CHECKPOINTS)
    net = network("fmn10.strong-akd+tf-256")
    assert (net.backbone, net.stage, net.variant) == ("fmn10", "strong", "-akd+tf-256")
    assert net.gmacs == pytest.approx(1.5, abs=0.3)
    mine = network("fmn04.strong-mine")
    assert (mine.stage, mine.gmacs) == ("strong", None)
    assert network("odd").stage == "" and network("odd.other").stage_order == 3


def test_gains_are_paired_and_corrected(report: Report) -> None:
    sections = [one for one in report.sections if one.protocol in ("paper", "best")]
    assert [set(one.gains) for one in sections] == [{"office_like", "domestic_like"}] * 2
    for gains in (gains for section in sections for gains in section.gains.values()):
        assert {gain.network.checkpoint for gain in gains} == set(CHECKPOINTS)
        raw = []
        for gain in gains:
            a, b = gain.finetune, gain.probe
            wanted = compare(a.value, a.draws, b.value, b.draws, a.cells[0].sampling)
            assert gain.comparison == wanted
            assert gain.comparison.difference == pytest.approx(a.value - b.value)
            raw.append(wanted.p)
        assert [gain.p for gain in gains] == holm(raw)
    assert not report.sections[0].gains  # hear has no fine-tuning


def test_settings_and_versions_stand_apart() -> None:
    cells = [
        example_cell("beats.ssl"),
        example_cell("beats.ssl", config={"grid_points": 1}),
        example_cell("beats.weak", version="0.0.9"),
        example_cell("beats.weak", task_digest="ab" * 32),
    ]
    (section,) = make_report(collected(cells)).sections
    columns = section.main_columns
    assert len(columns) == 4
    titles = " ".join(column.title for column in columns)
    for part in ("grid_points 1", "grid_points 8", "version 0.0.9", "data abababab"):
        assert part in titles
    assert all(len(section.rows(column)) == 1 for column in columns)


def test_probe_and_finetune_of_other_settings_are_no_pair() -> None:
    probe = example_cell(protocol="best")
    tuned = example_cell(protocol="best", mode="finetune", config={"precision": "bf16"})
    (section,) = make_report(collected([probe, tuned])).sections
    assert section.gains == {}
    told = "office_like: probe and fine-tuning are not compared where they differ in precision"
    assert section.notes == (told,)
    other = example_cell(protocol="best", mode="finetune")
    (section,) = make_report(collected([probe, tuned, other])).sections
    assert section.gains and not section.notes  # it has found its pair


def test_probe_and_finetune_of_other_shares_of_steps_are_no_pair() -> None:
    def gains(protocol: str, probe: float, tuned: float) -> dict[str, tuple[Gain, ...]]:
        cells = [
            example_cell(protocol=protocol, mode=mode, recipe={"steps_scale": scale})
            for mode, scale in (("probe", probe), ("finetune", tuned))
        ]
        (section,) = make_report(collected(cells)).sections
        told = any("differ in the share of steps" in note for note in section.notes)
        assert told == (not section.gains)
        return section.gains

    assert gains("paper", 1, 1) and gains("paper-scaled", 0.1, 0.1)
    assert not gains("paper-scaled", 0.1, 0.002)


def test_seeds_of_a_probe_and_a_fine_tuning_are_not_paired() -> None:
    """Values that differ by seed alone, by as much in both modes: their difference varies."""

    def cell(mode: str, seed: int) -> Cell:
        one = example_cell(protocol="best", mode=mode, seed=seed)
        value = 0.4 + 0.1 * seed + 0.2 * (mode == "finetune")
        draws = np.full(300, value, np.float32)
        measured = replace(one.metrics[one.main_metric], value=value, draws=draws)
        return replace(one, metrics=one.metrics | {one.main_metric: measured})

    cells = [cell(mode, seed) for mode in ("probe", "finetune") for seed in range(3)]
    (section,) = make_report(collected(cells)).sections
    (gain,) = section.gains["office_like"]
    deviations = [row.draws.std() for row in (gain.probe, gain.finetune)]
    difference = (gain.finetune.draws - gain.probe.draws).std()
    assert difference == pytest.approx(np.hypot(*deviations), rel=0.15)
    alone = table([one for one in cells if one.mode == "probe"])
    assert np.array_equal(alone[0].draws, gain.probe.draws)


def test_fine_tunings_of_one_probe_have_tables_of_their_own() -> None:
    cells = [example_cell(protocol="paper")] + [
        example_cell(protocol="paper", mode="finetune", config={"norm_pieces": n}) for n in (8, 64)
    ]
    (section,) = make_report(collected(cells)).sections
    titles = [f"office_like (norm_pieces {n})" for n in (64, 8)]
    assert sorted(section.gains) == titles
    assert [len(gains) for gains in section.gains.values()] == [1, 1]


def test_two_weights_of_one_name_have_two_lines() -> None:
    cells = [example_cell(), example_cell(weights_sha256="cd" * 32, shift=0.1)]
    made = make_report(collected(cells))
    (section,) = made.sections
    assert len(section.networks) == 2
    assert {net.weights for net in section.networks} == {c.weights_sha256[:8] for c in cells}
    assert "2 files of weights" in made.notes[0]


def test_what_a_column_was_made_with_is_said() -> None:
    cells = [
        example_cell("beats.ssl"),
        example_cell("beats.weak", commit="ff" * 20),
        example_cell("m2d.ssl", recipe={"lr": 0.1}),
    ]
    cells[1] = replace(cells[1], platform=cells[1].platform | {"device": "cuda"})
    (section,) = make_report(collected(cells)).sections
    notes = "\n".join(section.notes)
    assert "commit 01234567, ffffffff" in notes
    assert "device cpu, cuda" in notes
    assert "recipes differ between checkpoints in lr" in notes


def test_numbers_that_are_not_there() -> None:
    cell = example_cell("beats.ssl")
    one = cell.metrics[cell.main_metric]
    gone = replace(one, value=math.nan, micro=math.nan, interval=None, draws=one.draws * np.nan)
    cells = [replace(cell, metrics=cell.metrics | {cell.main_metric: gone}), example_cell()]
    made = make_report(collected(cells))
    (section,) = made.sections
    column = section.main_columns[0]
    assert [net.checkpoint for net, _ in section.rows(column)] == ["beats.strong", "beats.ssl"]
    assert "| none |" in markdown(made)
    line = csv_text(made).splitlines()[2]
    assert ",beats.ssl," in line and "nan" not in line


# ---- What is refused


def damaged(folder: Path, text: str) -> Path:
    with (folder / "results.jsonl").open("a") as file:
        file.write(text)
    return folder


def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    cells = [example_cell(), example_cell("m2d.ssl")]
    folder = write(tmp_path / "r", cells[:1])
    damaged(folder, cells[1].to_line()[:300])
    with pytest.warns(UserWarning, match="half a line"):
        found = read_cells([folder])
    assert list(found.cells) == [cells[0].id]
    assert "half a line" in found.notes[0]
    assert "half a line" in markdown(make_report(found))


def test_several_folders(tmp_path: Path) -> None:
    cells = [example_cell(), example_cell("m2d.ssl")]
    folders = [write(tmp_path / name, part) for name, part in (("a", cells), ("b", cells[:1]))]
    found = read_cells(folders)  # the same result twice is one result
    assert list(found.cells.values()) == cells
    assert found.places[cells[1].id].endswith("results.jsonl, line 2")


def test_one_cell_run_twice_with_other_numbers_is_refused(tmp_path: Path) -> None:
    one, other = example_cell(), example_cell(shift=0.01)
    assert one.id == other.id
    folders = [write(tmp_path / "a", [one]), write(tmp_path / "b", [other])]
    message = r"a/results.jsonl, line 1 and .*b/results.jsonl, line 1: beats.strong office_like"
    with pytest.raises(ValueError, match=message + ".*nothing that is recorded differs"):
        read_cells(folders)
    other = replace(other, commit="ff" * 20, platform=other.platform | {"device": "cuda"})
    folder = write(tmp_path / "c", [one, example_cell("m2d.ssl"), other])
    message = r"line 1 and .* line 3: .*differs in commit \(01234567 and ffffffff\), device \(cpu"
    with pytest.raises(ValueError, match=message):
        read_cells([folder])


def test_seeds_under_other_recipes_are_refused(tmp_path: Path) -> None:
    cells = [example_cell(), example_cell(seed=1, recipe={"lr": 0.001, "epochs": 3})]
    folder = write(tmp_path / "r", cells)
    with pytest.raises(ValueError, match=r"seed 1 and seed 0 differ in 'epochs' \(None and 3\)"):
        read_cells([folder])


def schema_2() -> str:
    return example_cell().to_line().replace('"schema": 1', '"schema": 2')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (schema_2() + "\n", r"results.jsonl, line 2: unknown schema 2 \(one of: 1\)"),
        ('{"a": 1}\n' + example_cell().to_line() + "\n", "line 2: unknown schema None"),
        (re.sub('"mode": "probe", ', "", example_cell().to_line()) + "\n", "line 2.*'mode'"),
        ("\x00\x01\n", "line 2"),
    ],
)
def test_lines_of_another_kind_are_refused(tmp_path: Path, text: str, message: str) -> None:
    folder = damaged(write(tmp_path / "r", [example_cell("m2d.ssl")]), text)
    with pytest.raises(ValueError, match=message):
        read_cells([folder])


def test_folders_without_results(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "results.jsonl").touch()
    (tmp_path / "a file").touch()
    for name, message in {
        "gone": "no folder '.*gone'",
        "empty": "'.*empty' has no results.jsonl",
        "nothing": "results.jsonl: no finished cell in it",
        "a file": "'.*a file' is a file",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_cells([tmp_path / name])


# ---- The command


def test_endings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "r", [example_cell(), example_cell("m2d.ssl")])
    starts = {"html": "<!doctype html>", "md": "# ", "csv": "protocol,task"}
    for ending, start in starts.items():
        out = tmp_path / f"report.{ending}"
        assert run("report", folder, "-o", out) == 0
        assert out.read_text().startswith(start)
        assert f"wrote {out}" in capsys.readouterr().err
    assert sorted(path.suffix for path in tmp_path.glob("*.*")) == [".csv", ".html", ".md"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["r"], "give the file to be written as -o"),
        (["r", "-o", "report.pdf"], "unknown ending '.pdf'"),
        (["r", "-o", "r"], "-o takes a file"),
        (["r", "-o", "gone/report.html"], "no folder 'gone'"),
        (["empty", "-o", "report.html"], "'empty' has no results.jsonl"),
        (["r", "--leaderboard", "haer"], "unknown leaderboard 'haer'; did you mean 'hear'"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "r", [example_cell()])
    (tmp_path / "empty").mkdir()
    assert run("report", *words) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.glob("report.*"))


# ---- Markdown


def test_markdown_is_a_table_a_protocol(report: Report) -> None:
    text = markdown(report)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Protocol hear",
        "## Protocol paper",
        "## Protocol best",
    ]
    assert "### Probe against fine-tune, office_like: event_onset_200ms_fms" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1


def test_names_are_no_markup_in_markdown() -> None:
    nasty = "a|b.<img src=x>\n# [x](y) `z` *q*"
    cells = [example_cell(nasty), example_cell("m2d.ssl")]
    text = markdown(make_report(collected(cells)))
    shown = [line for line in text.splitlines() if "img" in line]
    assert shown and all(escaped(nasty) in line for line in shown)
    assert "<img" not in text.replace("\\<img", "")
    assert not any(line.startswith("# [") for line in text.splitlines())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a_b", "a_b"),
        ("_a_ __b", "\\_a\\_ \\_\\_b"),
        ("- x", "\\- x"),
        ("1. x", "1\\. x"),
        ("0.061", "0.061"),
        ("+0.05", "\\+0.05"),
        ("# *b* `c` [d](e) <f> g|h", "\\# \\*b\\* \\`c\\` \\[d\\](e) \\<f\\> g\\|h"),
        ("a\\", "a\\\\"),
    ],
)
def test_text_in_markdown(text: str, wanted: str) -> None:
    assert escaped(text) == wanted


def test_csv_holds_names_as_they_are() -> None:
    nasty = 'x,"y".z\nw'
    made = make_report(collected([example_cell(nasty)]))
    (line, *_) = csv.DictReader(io.StringIO(csv_text(made)))
    assert line["checkpoint"] == nasty
    assert json.loads(line["settings"]) == {}
