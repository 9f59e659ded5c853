"""`hear-pretrainedsed report`: folders of results as a page, as Markdown or as CSV."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from rich.console import Console

from downstream.leaderboard import (
    BOARDS,
    Beside,
    beside,
    beside_table,
    has_scores,
    leaderboard_csv,
    read_stock,
)
from downstream.report_cells import LINES, Collection, read_cells
from downstream.report_data import Report, make_report
from downstream.report_html import page
from downstream.report_text import csv_text, markdown
from hear_pretrainedsed.cli_options import Argument, Option, say
from hear_pretrainedsed.events import whole_file
from hear_pretrainedsed.registry import unknown

Folders = Annotated[
    list[Path],
    Argument(metavar="RESULTS", help="Folders; with --leaderboard also heareval's result folders."),
]
OutFile = Annotated[Path | None, Option("--out", "-o", help="A .html, .md or .csv file.")]
Leaderboard = Annotated[
    str | None,
    Option(help="hear: the row for HEAR's leaderboard (-o: .csv) and our scores beside it."),
]

WRITERS: dict[str, Callable[[Report, Sequence[Beside]], str]] = {
    ".html": page,
    ".md": markdown,
    ".csv": lambda report, _: csv_text(report),
}


def report(folders: Folders, out: OutFile = None, leaderboard: Leaderboard = None) -> None:
    """Results as one page (-o report.html), as Markdown (.md) or as CSV (.csv)."""
    if out is not None:
        _check_out(out)
    if leaderboard is None:
        if out is None:
            raise ValueError("give the file to be written as -o: report.html, report.md or .csv")
        _write(out, WRITERS[out.suffix.lower()](make_report(read_cells(folders)), ()))
    elif leaderboard not in BOARDS:
        raise ValueError(unknown("leaderboard", leaderboard, BOARDS))
    else:
        _leaderboard(folders, out)


def _leaderboard(folders: Sequence[Path], out: Path | None) -> None:
    """The row, and the comparison with ours on stdout or on the page."""
    ours = [folder for folder in folders if (folder / LINES).exists()]
    theirs = [folder for folder in folders if folder not in ours or has_scores(folder)]
    if not theirs:
        raise ValueError("--leaderboard hear wants folders of heareval's results beside ours")
    stock = read_stock(theirs)
    made = make_report(read_cells(ours) if ours else Collection())
    rows = [row for section in made.sections for row in section.values.values()]
    found = beside(stock, rows)
    if out is not None and out.suffix.lower() != ".csv":
        _write(out, WRITERS[out.suffix.lower()](made, found))
        return
    Console().print(beside_table(found))
    row = leaderboard_csv(stock)
    if out is None:
        sys.stdout.write(row)
    else:
        _write(out, row)


def _check_out(out: Path) -> None:
    """Refuse what cannot be written, before anything is read."""
    if out.is_dir():
        raise ValueError(f"-o takes a file, and {out} is a folder")
    if out.suffix.lower() not in WRITERS:
        raise ValueError(f"-o {out}: {unknown('ending', out.suffix, WRITERS)}")
    if not out.parent.is_dir():
        raise ValueError(f"-o {out}: no folder {str(out.parent)!r}")


def _write(out: Path, text: str) -> None:
    with whole_file(out) as file:
        file.write(text.encode("utf-8", "replace"))
    say(f"wrote {out}")
