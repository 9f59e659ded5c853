"""Rows of HEAR's leaderboard from stock heareval's result folders, and our scores beside them.

heareval writes `<model>/<task>/test.predicted-scores.json`, and copies the task's metadata beside
it. A row of `docs/leaderboard.csv` of HEAR's website is a model's name, its address, a date, and a
score a task: a fraction with nine decimals, empty where a task was not run. It is the score of the
test split, or the mean over folds, under each task's first metric.
"""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from downstream.tables import Row
from hear_pretrainedsed.registry import CHECKPOINTS

SCORES = "test.predicted-scores.json"
BOARDS = ("hear",)
_HEAD = ("Model", "URL", "Submission Date")
_MODULE = "hear_pretrainedsed."
_OURS = {"maestro": "maestro_5hr"}  # HEAR's name of a task -> ours, where they differ

#: column -> (HEAR's task name, mode)
COLUMNS: dict[str, tuple[str, str] | None] = {
    "Beehive": None,  # two tasks of HEAR: how the column is made of them is not published
    "Beijing Opera": ("beijing_opera", "full"),
    "CREMA-D": ("tfds_crema_d", "full"),
    "DCASE 2016": ("dcase2016_task2", "full"),
    "ESC-50": ("esc50", "full"),
    "FSD50K": ("fsd50k", "full"),
    "GTZAN Genre": ("tfds_gtzan", "full"),
    "GTZAN Music/Speech": ("tfds_gtzan_music_speech", "full"),
    "Gunshot": ("gunshot_triangulation", "full"),
    "Libricount": ("libricount", "full"),
    "Maestro 5h": ("maestro", "5h"),
    "Mridangam Stroke": ("mridangam_stroke", "full"),
    "Mridangam Tonic": ("mridangam_tonic", "full"),
    "NSynth Pitch 50h": ("nsynth_pitch", "50h"),
    "NSynth Pitch 5h": ("nsynth_pitch", "5h"),
    "Speech commands 5h": ("speech_commands", "5h"),
    "Speech commands full": ("speech_commands", "full"),
    "Vocal Imitation": ("vocal_imitation", "full"),
    "VoxLingua107 top 10": ("vox_lingua_top10", "full"),
}


@dataclass(frozen=True)
class Stock:
    """One score of stock heareval.

    model: its name on the leaderboard. checkpoint: of this package, else None. weights: sha256, or
    `rule` for stand-ins, where the folder says it. options: of the model, in words.
    """

    model: str
    checkpoint: str | None
    weights: str | None
    options: str
    task: str
    version: str
    mode: str
    metric: str
    score: float
    path: Path

    @property
    def column(self) -> str | None:
        """Its column of the leaderboard, if it has one."""
        wanted = (self.task, self.mode)
        return next((name for name, task in COLUMNS.items() if task == wanted), None)


@dataclass(frozen=True)
class Beside:
    """A score of stock heareval, and our row of the same checkpoint and task, if there is one."""

    stock: Stock
    ours: Row | None

    @property
    def difference(self) -> float | None:
        """Ours less heareval's."""
        return None if self.ours is None else self.ours.value - self.stock.score


def has_scores(folder: Path) -> bool:
    """Whether a folder holds results of heareval."""
    return folder.is_dir() and next(folder.rglob(SCORES), None) is not None


def read_stock(folders: Iterable[Path]) -> list[Stock]:
    """Every result of heareval in or below folders.

    Raises `ValueError` for a folder without one, for a file that holds no score, and for two
    results of one model and task.
    """
    found: dict[tuple[str, str, str], Stock] = {}
    for folder in folders:
        paths = sorted(Path(folder).rglob(SCORES))
        if not paths:
            raise ValueError(f"{str(folder)!r} holds no results of heareval ({SCORES})")
        for path in paths:
            one = _read(path)
            known = found.setdefault((one.model, one.task, one.mode), one)
            if known.path.resolve() != one.path.resolve():
                raise ValueError(
                    f"{known.path} and {one.path} are both of {one.model} on {one.task}: "
                    "leave one of them out"
                )
    return list(found.values())


def _read(path: Path) -> Stock:
    results, metadata = _object(path), _object(path.with_name("task_metadata.json"))
    made_by = path.with_name("made_by.json")
    inputs = _object(made_by).get("inputs", {}) if made_by.is_file() else {}
    missing = [name for name in ("task_name", "version", "evaluation") if name not in metadata]
    if missing:
        raise ValueError(f"{path.with_name('task_metadata.json')}: no {missing[0]!r} in it")
    checkpoint, options = _model(path.parent.parent.name)
    weights = inputs.get("weights")
    marks = [options] if options else []
    marks += ["rule-made weights, not trained ones"] if weights == "rule" else []
    name = checkpoint or path.parent.parent.name
    return Stock(
        model=f"{name} ({', '.join(marks)})" if checkpoint and marks else name,
        checkpoint=checkpoint,
        weights=weights,
        options=options,
        task=str(metadata["task_name"]),
        version=str(metadata["version"]),
        mode=str(metadata.get("mode", "")),
        metric=str(metadata["evaluation"][0]),
        score=_score(results, path),
        path=path,
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent}: no {path.name} in it") from None
    except ValueError as error:
        raise ValueError(f"{path}: no whole JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: no JSON object")
    return content


def _score(results: Mapping[str, Any], path: Path) -> float:
    places = (("aggregated_scores", "test_score_mean"), ("test", "test_score"))
    for part, name in places:
        if part in results:
            try:
                return float(results[part][name])
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"{path}: no number {name!r} in {part!r}") from None
    raise ValueError(f"{path}: neither 'aggregated_scores' nor 'test' in it")


def _model(folder: str) -> tuple[str | None, str]:
    """The checkpoint of a folder that heareval named after our module, and options in its name."""
    if not folder.startswith(_MODULE):
        return None, ""
    module, _, options = folder.removeprefix(_MODULE).partition("-")
    return next((c.name for c in CHECKPOINTS.values() if c.module == module), None), options


def beside(stock: Sequence[Stock], rows: Iterable[Row]) -> list[Beside]:
    """Each score of heareval with our rows of it: protocol `hear`, mode `probe`, main metric."""
    ours = [
        row
        for row in rows
        if (row.protocol, row.mode) == ("hear", "probe") and row.metric == row.cells[0].main_metric
    ]
    out = []
    for one in stock:
        found = [row for row in ours if _is_of(row, one)]
        out += [Beside(one, row) for row in found] or [Beside(one, None)]
    return out


def _is_of(row: Row, one: Stock) -> bool:
    cell = row.cells[0]
    task = (_OURS.get(one.task, one.task), one.version, one.metric)
    if one.options or (cell.task, cell.task_version, row.metric) != task:
        return False
    known = one.weights not in (None, "rule")
    return row.checkpoint == one.checkpoint and (not known or one.weights == cell.weights_sha256)


def leaderboard_csv(stock: Sequence[Stock]) -> str:
    """The leaderboard's heading and a row a model, dated today.

    Warns of results that have no column there and of scores that are not defined; `ValueError`
    where no result has a column.
    """
    rows: dict[str, dict[str, str]] = {}
    for one in stock:
        if one.column is None:
            warnings.warn(f"{one.path}: {_without_column(one)}", stacklevel=2)
            continue
        if not math.isfinite(one.score):
            warnings.warn(f"{one.path}: its score is not defined; left empty", stacklevel=2)
        row = rows.setdefault(one.model, _row_head(one))
        row[one.column] = f"{one.score:.9f}" if math.isfinite(one.score) else ""
    if not rows:
        names = ", ".join(sorted({one.task for one in stock}))
        raise ValueError(f"none of these tasks has a column on HEAR's leaderboard: {names}")
    text = io.StringIO()
    table = csv.DictWriter(text, (*_HEAD, *COLUMNS), restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows.values())
    return text.getvalue()


def _row_head(one: Stock) -> dict[str, str]:
    known = CHECKPOINTS.get(one.checkpoint or "")
    url = (known.release or "").split("/releases/")[0] if known else ""
    day = datetime.now(UTC).date().isoformat()
    return dict(zip(_HEAD, (one.model, url, day), strict=True))


def _without_column(one: Stock) -> str:
    if one.task.startswith("beehive"):
        return "how the column Beehive is made of HEAR's two tasks is not published: fill it in"
    modes = [task[1] for task in COLUMNS.values() if task and task[0] == one.task]
    wanted = f" of mode {one.mode!r} (the leaderboard has {', '.join(modes)})" if modes else ""
    return f"task {one.task!r}{wanted} has no column on HEAR's leaderboard"


def beside_table(found: Sequence[Beside]) -> Table:
    """The comparison for a terminal."""
    out = Table(title=Text("stock heareval, and protocol hear, probe, here"), title_justify="left")
    for name in ("model", "task"):
        out.add_column(name, overflow="fold")
    for name in ("heareval", "ours", "difference", "seeds"):
        out.add_column(name, justify="right", no_wrap=True)
    for one in found:
        out.add_row(Text(one.stock.model), Text(beside_task(one)), *beside_numbers(one))
    return out


def beside_task(one: Beside) -> str:
    """The task, and which settings of ours it is beside, in words."""
    task = f"{one.stock.task} {one.stock.version} {one.stock.mode}".strip()
    settings = ", ".join(f"{k} {v}" for k, v in (one.ours.differing if one.ours else ()))
    return task + (f" ({settings})" if settings else "")


def beside_numbers(one: Beside) -> tuple[str, str, str, str]:
    """heareval's score, ours, the difference and our number of seeds, in words."""
    stock = "none" if math.isnan(one.stock.score) else f"{one.stock.score:.3f}"
    if one.ours is None:
        return stock, "", "", ""
    ours = "none" if math.isnan(one.ours.value) else f"{one.ours.value:.3f}"
    known = not math.isnan(one.difference)
    return stock, ours, f"{one.difference:+.3f}" if known else "", str(one.ours.n_seeds)
