"""Raw archives -> task folders: fake audio under the real names."""

from __future__ import annotations

import csv
import json
import zipfile
from itertools import product
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

from downstream.build_task import build, build_task
from downstream.tasks import dcase2016_task2, hear_folder, hear_splits, maestro_5hr, open_task
from downstream.tasks.sources import Sources
from tests.downstream.task_folders import noise
from tests.downstream.test_tasks_midi import midi, off, on, pedal, track

LABELS = "clearthroat cough doorslam drawer keyboard keys knock laughter pageturn phone speech"
STEMS = [
    f"{part}_ebr_{ebr}_nec_{nec}_poly_{poly}"
    for part, ebr in product(("dev_1", "test_1", "test_2", "test_3"), (-6, 0, 6))
    for nec, poly in ((1, 0), (2, 0), (3, 0), (3, 1), (4, 1), (5, 1))
]


@pytest.fixture
def short_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips of half a second, where the real ones have two minutes."""
    monkeypatch.setattr(dcase2016_task2, "CLIP_S", 0.5)
    monkeypatch.setattr(maestro_5hr, "CLIP_S", 0.5)


def dcase_folder(folder: Path) -> Path:
    """The two sets as their archives have them; events of a class follow each other."""
    for stem in STEMS:
        part = "dcase2016_task2_dev" if stem.startswith("dev") else "dcase2016_task2_test"
        noise(folder / part / "sound" / f"{stem}.wav", 0.5, 44_100)
        text = folder / part / "annotation" / f"{stem}.txt"
        text.parent.mkdir(exist_ok=True)
        rows = [f"{0.02 * i:.2f}\t{0.02 * i + 0.03:.2f}\t{x}" for i, x in enumerate(LABELS.split())]
        text.write_text("\n".join([*rows, "0.49\t0.79\tspeech", "0.60\t0.70\tphone", ""]))
    noise(folder / "dcase2016_task2_train" / "speech01.wav", 0.1)  # isolated events: not used
    return folder


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"top/{path.relative_to(folder).as_posix()}")
        archive.writestr("__MACOSX/top/._dev_1_ebr_-6_nec_1_poly_0.wav", b"x")
    return target


@pytest.fixture(scope="module")
def dcase_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dcase_folder(tmp_path_factory.mktemp("dcase"))


def test_dcase_from_archives(dcase_raw: Path, tmp_path: Path, short_clips: None) -> None:
    archives = [
        zipped(dcase_raw / f"dcase2016_task2_{part}", tmp_path / f"{part}.zip")
        for part in ("dev", "test", "train")
    ]
    seen = []
    out = build("dcase2016_task2", archives, tmp_path / "o", lambda *n: seen.append(n))
    assert seen == [(i + 1, 72) for i in range(72)]
    task = open_task(out, strict=True)
    assert (task.name, task.version, task.labels) == (
        "dcase2016_task2",
        "hear2021",
        tuple(LABELS.split()),
    )
    drawn = hear_splits.trainvaltest(STEMS)
    for split, stems in drawn.items():
        assert sorted(clip.file for clip in task.clips(split)) == sorted(f"{s}.wav" for s in stems)
    assert task.metrics[0] == "event_onset_200ms_fms"
    clip = task.clips("test")[0]
    assert clip.duration_s == 0.5
    assert clip.in_ms()[0] == (0.0, 30.0, "clearthroat")
    assert clip.in_ms()[-1] == (490.0, 500.0, "speech")  # cut; what begins later is left out
    assert len(clip.in_ms()) == 12
    audio, rate = soundfile.read(clip.path)
    assert (rate, len(audio)) == (16_000, 8_000)
    assert 0.01 < np.abs(audio).mean() < 0.1
    assert "evaluation_params" not in task.hear  # heareval's own: it knows the task by name
    assert not list(tmp_path.glob("*.part"))


def test_dcase_by_scene(dcase_raw: Path, tmp_path: Path, short_clips: None) -> None:
    folder = build("dcase2016_task2", [dcase_raw], tmp_path / "o")
    official = open_task(folder)
    apart = open_task("dcase2016_task2", folder, split="scene_disjoint")
    folds = open_task("dcase2016_task2", folder, split="scene_folds")
    names = [task.name for task in (official, apart, folds)]
    assert names == [f"dcase2016_task2{x}" for x in ("", ":scene_disjoint", ":scene_folds")]
    assert len({task.digest() for task in (official, apart, folds)}) == 3

    def scenes(task: object, *splits: str) -> set[str]:
        return {clip.unit for clip in task.clips(splits)}

    assert scenes(official, "test") <= scenes(official, "train", "valid")
    assert {s: len(clips) for s, clips in apart.splits.items()} == {
        "train": 48,
        "valid": 12,
        "test": 12,
    }
    found = [scenes(apart, split) for split in apart.splits]
    assert len(set.union(*found)) == sum(map(len, found)) == 24
    first = folds.rotations[0]
    assert (scenes(folds, *first.test), scenes(folds, *first.valid)) == (found[2], found[1])
    assert set(scenes(folds, *first.train)) == found[0]
    tested = [scene for r in folds.rotations for scene in scenes(folds, *r.test)]
    assert len(tested) == len(set(tested)) == 24
    for task in (official, apart, folds):
        assert task.hear["splits"] == list(task.splits)
        assert hear_folder.rotations(task.hear) == task.rotations
        assert task.hear["task_name"] == "dcase2016_task2"  # heareval's settings go by it
        assert {c.file for c in task.clips(task.splits)} == {f"{s}.wav" for s in STEMS}
    with pytest.raises(ValueError, match="'scene_disjont'; did you mean 'scene_disjoint'"):
        open_task(folder, split="scene_disjont")


def test_dcase_incomplete(dcase_raw: Path, tmp_path: Path, short_clips: None) -> None:
    out = tmp_path / "o"
    with pytest.raises(ValueError, match="108 of the 144 files .*: test_1_ebr_-6_nec_1_poly_0.txt"):
        build("dcase2016_task2", [dcase_raw / "dcase2016_task2_dev"], out)
    with pytest.raises(ValueError, match="there twice: dev_1_ebr_-6_nec_1_poly_0.txt"):
        build("dcase2016_task2", [dcase_raw, dcase_raw / "dcase2016_task2_dev"], out)
    text = tmp_path / "dev_1_ebr_0_nec_1_poly_0.txt"
    text.write_text("0.5 speech\n")
    with Sources([text]) as sources:
        with pytest.raises(ValueError, match="wanted onset, offset, label; got '0.5 speech'"):
            dcase2016_task2._events(sources, sources.members[0])
    assert not out.exists()


@pytest.mark.slow
def test_maestro_from_an_archive_and_its_table(tmp_path: Path, short_clips: None) -> None:
    """1276 performances in the table; of those that are not drawn no file is there."""
    stems = [f"MIDI-Unprocessed_{i:04d}_wav--1" for i in range(1276)]
    drawn = {stem for fold in maestro_5hr.draw(stems).values() for stem in fold}
    table = tmp_path / "maestro-v3.0.0.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["canonical_title", "midi_filename", "audio_filename"])
        rows.writerows(["Sonata, Op. 1", f"2018/{s}.midi", f"2018/{s}.wav"] for s in stems)
    notes = [(0, pedal(127)), (10, on(60)), (20, off(60)), (30, on(64)), (110, off(64))]
    (tmp_path / "raw" / "2018").mkdir(parents=True)
    for i, stem in enumerate(sorted(drawn)):
        more = [(120 + i, on(21 + i % 88)), (400, off(21 + i % 88))]
        data = midi(track([*notes, (110, pedal(0)), *more]))
        (tmp_path / "raw" / "2018" / f"{stem}.midi").write_bytes(data)
        noise(tmp_path / "raw" / "2018" / f"{stem}.wav", 0.4 if i else 0.6, 48_000)
    archive = zipped(tmp_path / "raw", tmp_path / "maestro-v3.0.0.zip")
    with pytest.raises(ValueError, match="maestro-v3.0.0.csv is not there"):
        build("maestro_5hr", [archive], tmp_path / "o")
    folder = build("maestro_5hr", [archive, table], tmp_path / "o")

    with pytest.warns(UserWarning, match="classes without an event"):
        task = open_task(folder)
    assert (task.name, task.facts.unit, task.hear["task_name"]) == (
        "maestro_5hr",
        "piece",
        "maestro",
    )
    assert task.labels == tuple(str(pitch) for pitch in range(21, 109))
    assert [len(clips) for clips in task.splits.values()] == [37] * 5
    assert len(task.rotations) == 5
    assert {clip.duration_s for clip in task.clips(task.splits)} == {0.5}  # cut, or padded
    clip = next(c for c in task.clips(task.splits) if c.path.stem == min(drawn))
    assert clip.in_ms() == ((50.0, 500.0, "60"), (150.0, 500.0, "64"))  # cut at 0.5 s
    assert task.hear["evaluation_params"]["event_postprocessing_grid"] == {
        "median_filter_ms": [150],
        "min_duration": [50],
    }
    raw = json.loads((folder / "fold00.json").read_text())
    assert next(iter(raw.values()))[0]["label"] == 60  # a number, as in HEAR's


def test_maestro_incomplete(tmp_path: Path) -> None:
    table = tmp_path / "maestro-v3.0.0.csv"
    table.write_text("audio_filename\n" + "".join(f"{i:03d}.wav\n" for i in range(200)))
    with pytest.raises(ValueError, match="370 of the 370 files that are wanted are not there"):
        build("maestro_5hr", [table], tmp_path / "o")
    table.write_text("title\nx\n")
    with pytest.raises(ValueError, match="no column audio_filename"):
        build("maestro_5hr", [table], tmp_path / "o")


def test_real_table_of_maestro(shared: Path) -> None:
    folder = shared / "data" / "meta" / "maestro"
    with Sources([folder / "maestro-v3.0.0.csv"]) as sources:
        stems = maestro_5hr._performances(sources)
    assert len(stems) == len(set(stems)) == 1276
    with (folder / "maestro-v3.0.0.csv").open() as file:
        names = {PurePosixPath(row["midi_filename"]).stem for row in csv.DictReader(file)}
    assert names == set(stems)


# ---- sources and output


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no zip")
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    for name, match in (
        ("a.zip", "no zip archive"),
        ("a.tar.gz", "unpack it and give the folder"),
        ("none", "no such file or folder"),
    ):
        with pytest.raises(ValueError, match=match):
            Sources([tmp_path / name])


def test_damaged_audio_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/a.wav", b"RIFF")
        archive.writestr("in/b.txt", "größe".encode("latin-1"))
    with Sources([tmp_path / "a.zip"]) as sources:
        audio, text = sources.members
        with pytest.raises(ValueError, match=r"a\.zip/in/a\.wav: not audio|a\.zip/in/a\.wav: dam"):
            sources.read_audio(audio)
        with pytest.raises(ValueError, match=r"b\.txt: no UTF-8 text"):
            sources.read_text(text)


def test_output_is_whole_or_not_there(dcase_raw: Path, tmp_path: Path, short_clips: None) -> None:
    out = tmp_path / "o"

    def stop(n_done: int, n_clips: int) -> None:
        if n_done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build("dcase2016_task2", [dcase_raw], out, stop)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "o.part" / "16000").mkdir(parents=True)  # of a run that was killed
    build("dcase2016_task2", [dcase_raw], out)
    assert out.is_dir() and not (tmp_path / "o.part").exists()
    with pytest.raises(ValueError, match="o: is there already"):
        build("dcase2016_task2", [dcase_raw], out)
    with pytest.raises(ValueError, match="unknown task to build 'own'"):
        build("own", [dcase_raw], tmp_path / "p")


def test_the_command(dcase_raw: Path, tmp_path: Path, short_clips: None) -> None:
    app = typer.Typer()
    app.command("build-task")(build_task)
    sources = [f"--source={dcase_raw / f'dcase2016_task2_{part}'}" for part in ("dev", "test")]
    done = CliRunner().invoke(app, ["dcase2016_task2", *sources, "--out", str(tmp_path / "o")])
    assert done.exit_code == 0, done.output
    assert len(open_task(tmp_path / "o").clips("train")) == 44
