"""What the pages on pre-training say: code that runs, and one number for one thing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pretraining.presets import PRESETS
from pretraining.run import Run

ROOT = Path(__file__).resolve().parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_the_python_on_the_page_begins_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", read("docs/pretraining.md"), re.S)
    begun: list[Run] = []
    monkeypatch.setattr("pretraining.run.run", begun.append)
    exec(compile(code, "docs/pretraining.md", "exec"), {})
    (job,) = begun
    assert (job.recipe.batch, job.recipe.precision) == (64, "fp32")
    assert job.sources.checkpoint == "fmn10.weak" and job.place.folder == job.out


def test_memory_of_two_million_clips_is_told_alike() -> None:
    told = re.compile(r"([\d.]+ \w+) of memory, libraries\s+and labels included")
    pages = ("docs/corpora.md", "benchmarks/README.md", "pretraining/sampling.py")
    assert [told.findall(read(page)) for page in pages] == [["1.2 GiB"]] * 3


def test_the_page_tells_the_readings_that_are_ours() -> None:
    student, teacher = (PRESETS[f"strong_{x}"].augmentation for x in ("student", "teacher"))
    _, _, departs = read("docs/pretraining.md").partition("## Where it departs")
    first = " ".join(departs.split("\n- ")[1].split())
    assert f"students' mixup {student.mixup}," in first
    assert f"warping {teacher.freq_warp}, filters {teacher.filter_augment}" in first
    assert f"mixstyle {teacher.mixstyle} and mixup {teacher.mixup}" in first
