"""DESED: its parts, the folder in HEAR's layout, and PSDS of a stock heareval run."""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from downstream.build_task import build
from downstream.tasks import open_task
from downstream.tasks.checks import TaskWarning
from downstream.tasks.desed_stock import psds_from_stock
from hear_pretrainedsed.registry import read_labels
from tests.downstream.task_folders import noise

LABELS = read_labels("desed")
EVENTS = tuple((0.1 * i, 0.1 * i + 0.5, label) for i, label in enumerate(LABELS))
PARTS = {  # table, folder of audio, names
    "strong": ("train/audioset_strong.tsv", "train/strong_label_real", "Ya{}_0_10.wav", 20),
    "synthetic": (
        "train/synthetic21_train/soundscapes.tsv",
        "train/synthetic21_train/soundscapes_16k",
        "{}.wav",
        3,
    ),
    "synthetic_valid": (
        "validation/synthetic21_validation/soundscapes.tsv",
        "validation/synthetic21_validation/soundscapes",
        "{}.wav",
        3,
    ),
    "weak": ("train/weak.tsv", "train/weak", "Yw{}_0_10.wav", 3),
    "unlabeled": ("train/unlabel_in_domain.tsv", "train/unlabel_in_domain", "Yu{}_0_10.wav", 2),
    "validation": ("validation/validation.tsv", "validation/validation", "Yv{}_0_10.wav", 4),
    "public": ("eval/public.tsv", "eval/public", "p{}_0_10.wav", 3),
}


def raw_desed(folder: Path, *, without: tuple[str, ...] = (), seconds: float = 2.0) -> Path:
    """The parts of DESED as its package leaves them, few clips each."""
    for part, (table, audio, pattern, n) in PARTS.items():
        if part in without:
            continue
        names = [pattern.format(i) for i in range(n)]
        for name in names:
            noise(folder / "audio" / audio / name, seconds, 8_000)
        path = folder / "metadata" / table
        path.parent.mkdir(parents=True, exist_ok=True)
        if part == "unlabeled":
            rows = ["filename", *names]
        elif part == "weak":
            rows = ["filename\tevent_labels", *(f"{name}\tCat,Dog" for name in names)]
        else:
            rows = ["filename\tonset\toffset\tevent_label"]
            rows += [f"{name}\t{a:.3f}\t{b:.3f}\t{x}" for name in names[1:] for a, b, x in EVENTS]
            rows.append(f"{names[0]}\t\t\t")  # a clip in which nothing sounds
        path.write_text("\n".join([*rows, ""]))
    noise(folder / "audio/train/synthetic21_train/soundscapes_16k/0_events/foreground0.wav")
    return folder


def test_parts_of_desed(tmp_path: Path) -> None:
    folder = raw_desed(tmp_path / "dataset")
    task = open_task(folder, strict=True)
    assert (task.name, task.labels, task.facts.unit) == ("desed", LABELS, "clip")
    assert task.metrics[:4] == ("psds1", "psds2", "intersection_f1", "collar_f1")
    files = {split: [clip.file for clip in clips] for split, clips in task.splits.items()}
    assert len(files["train"]) == 23
    assert "synthetic_train_0.wav" in files["train"] and "Ya0_0_10.wav" in files["train"]
    assert sorted(files["valid"]) == [f"synthetic_valid_{i}.wav" for i in range(3)]
    assert sorted(files["test"]) == [f"Yv{i}_0_10.wav" for i in range(4)]
    clips = {clip.file: clip for clip in task.clips(task.splits)}
    assert clips["Yv0_0_10.wav"].events == ()
    assert clips["synthetic_valid_1.wav"].events == tuple(
        (round(a, 3), round(b, 3), label) for a, b, label in EVENTS
    )
    assert {clip.duration_s for clip in clips.values()} == {2.0}
    assert {clip.labels for clip in task.extra["weak"]} == {("Cat", "Dog")}
    assert [clip.labels for clip in task.extra["unlabeled"]] == [None, None]
    assert task.hear["evaluation"] == ["event_onset_200ms_fms", "segment_1s_er"]


def test_public_evaluation_is_kept_apart(tmp_path: Path) -> None:
    folder = raw_desed(tmp_path / "dataset")
    task = open_task("desed_public", folder)
    assert task.name == "desed_public"
    assert {clip.file for clip in task.clips("test")} == {f"p{i}_0_10.wav" for i in range(3)}
    assert task.splits["train"] == open_task(folder).splits["train"]
    built = build("desed_public", [folder], tmp_path / "o")
    assert open_task(built).name == "desed_public"
    with pytest.raises(ValueError, match="holds the task 'desed_public', not desed"):
        open_task("desed", built)


def test_valid_without_a_synthetic_set(tmp_path: Path) -> None:
    folder = raw_desed(tmp_path / "dataset", without=("synthetic_valid", "unlabeled"))
    task = open_task(folder)
    valid = {clip.file for clip in task.clips("valid")}
    assert len(valid) == 2 and all(file.startswith("Ya") for file in valid)  # a tenth of 20
    assert len(task.clips("train")) == 21
    assert valid.isdisjoint(clip.file for clip in task.clips("train"))
    assert {clip.file for clip in open_task(folder).clips("valid")} == valid
    assert list(task.extra) == ["weak"]
    assert "unlabeled" not in build_metadata(folder, tmp_path / "o")["metadata_tsv"]


def test_valid_is_drawn_of_what_is_not_trained_on(tmp_path: Path) -> None:
    folder = raw_desed(tmp_path / "dataset", without=("synthetic_valid",))
    table = folder / "metadata/train/weak.tsv"
    names = [f"Ya{i}_0_10.wav" for i in range(10)]
    table.write_text("\n".join([table.read_text() + f"{names[0]}\tCat", *names[1:], ""]))
    for name in names:  # encoded again: other bytes
        noise(folder / "audio/train/weak" / name, 2.0, 8_000)
    task = open_task(folder)
    valid = {clip.file for clip in task.clips("valid")}
    assert valid and valid.isdisjoint(names)
    noise(folder / "audio/train/weak/Yv1_0_10.wav", 2.0, 8_000)
    table.write_text(table.read_text() + "Yv1_0_10.wav\tCat\n")
    with pytest.raises(ValueError, match="the clip Yv1_0_10.wav is in 'test' and in 'weak'"):
        open_task(folder)


def build_metadata(folder: Path, out: Path) -> dict:
    return json.loads((build("desed", [folder], out) / "task_metadata.json").read_text())


def test_parts_that_are_not_there(tmp_path: Path) -> None:
    folder = raw_desed(tmp_path / "dataset", without=("strong", "synthetic", "public"))
    with pytest.raises(ValueError, match="desed: nothing to train on: neither .*audioset_strong"):
        open_task(folder)
    with pytest.raises(ValueError, match="desed_public: no table .*public"):
        open_task("desed_public", folder)


def test_recordings_that_are_gone(tmp_path: Path) -> None:
    folder = raw_desed(tmp_path / "dataset")
    (folder / "audio/train/strong_label_real/Ya3_0_10.wav").unlink()
    shutil.rmtree(folder / "audio/train/unlabel_in_domain")
    with pytest.warns(TaskWarning) as caught:
        task = open_task(folder)
    told = sorted(str(warning.message).split("metadata/", 1)[1] for warning in caught)
    assert told == [
        "train/audioset_strong.tsv: 1 of 20 clips have no audio in audio/train/strong_label_real: "
        "Ya3_0_10.wav; left out",
        "train/unlabel_in_domain.tsv: 2 of 2 clips have no audio in audio/train/unlabel_in_domain:"
        " Yu0_0_10.wav, Yu1_0_10.wav; left out",
    ]
    assert len(task.clips("train")) == 22 and "unlabeled" not in task.extra
    with pytest.raises(ValueError, match="left out.*because of strict"):
        open_task(folder, strict=True)
    (folder / "audio/validation/validation/Yv3_0_10.wav").unlink()
    with pytest.raises(ValueError, match="validation.tsv: 1 of 4 clips have no audio.*Yv3_0_10"):
        open_task(folder)


@pytest.mark.parametrize(
    ("table", "row", "match"),
    [
        ("validation/validation.tsv", "Yv0_0_10.wav\t0\t1\tCow", "outside the vocab.*Cow"),
        ("validation/validation.tsv", "Yv0_0_10.wav\t0\tx\tCat", "wanted onset, offset"),
        ("validation/validation.tsv", "Yv0_0_10.wav\t0\t1\t", "or none of them; got .*Yv0_0_10"),
        ("validation/validation.tsv", "Yv0_0_10.wav\t0\t1", "or none of them; got .*Yv0_0_10"),
        ("train/audioset_strong.tsv", "Ya0_0_10.wav\t0\t\tCat", "or none of them; got .*Ya0_0_10"),
        ("train/audioset_strong.tsv", "Ya0_0_10.wav\t\t\tCat", "or none of them; got .*Ya0_0_10"),
        ("train/weak.tsv", "Yw0_0_10.wav\tCat,Cow", "unknown label 'Cow'"),
    ],
)
def test_wrong_rows(tmp_path: Path, table: str, row: str, match: str) -> None:
    folder = raw_desed(tmp_path / "dataset")
    path = folder / "metadata" / table
    heading, *rest = path.read_text().splitlines()
    rest = [line for line in rest if not line.startswith(row.split("\t")[0])]
    path.write_text("\n".join([heading, row, *rest, ""]))
    with pytest.raises(ValueError, match=match):
        open_task(folder)


def test_real_tables(shared: Path, tmp_path: Path) -> None:
    """DESED's own tables, with 10 s of something under each name of both test sets."""
    folder = raw_desed(tmp_path / "dataset", without=("validation", "public", "weak"))
    wanted = {"validation": (1168, 4224), "public": (692, 2765)}
    for name, (table, audio, *_) in PARTS.items():
        if name in wanted:
            source = shared / "data" / "meta" / "desed" / f"{name}.tsv"
            target = folder / "metadata" / table
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
            with source.open() as file:
                names = {row["filename"] for row in csv.DictReader(file, delimiter="\t")}
            one = noise(tmp_path / f"{name}.wav", 10.0, 8_000)
            (folder / "audio" / audio).mkdir(parents=True)
            for row in names:  # within a split recordings may be equal
                os.link(one, folder / "audio" / audio / row)
    for name, task_name in (("validation", "desed"), ("public", "desed_public")):
        with pytest.warns(TaskWarning, match="events reach beyond their clip"):
            task = open_task(task_name, folder)
        clips = task.clips("test")
        assert (len(clips), sum(len(clip.events) for clip in clips)) == wanted[name]
        assert {label for clip in clips for *_, label in clip.events} == set(LABELS)


# ---- in HEAR's layout


def test_desed_in_hears_layout(tmp_path: Path) -> None:
    folder = raw_desed(tmp_path / "dataset")
    raw, task = open_task(folder), open_task(build("desed", [folder], tmp_path / "o"), strict=True)
    assert (task.name, task.version, task.labels) == (raw.name, raw.version, raw.labels)
    assert task.metrics == raw.metrics
    assert task.hear["metadata_tsv"] == raw.hear["metadata_tsv"] | {
        "weak": "metadata/weak.tsv",
        "unlabeled": "metadata/unlabeled.tsv",
    }
    for split, clips in task.splits.items():
        assert {c.file: c.events for c in clips} == {
            c.file: tuple((pytest.approx(a), pytest.approx(b), x) for a, b, x in c.events)
            for c in raw.clips(split)
        }
        assert {clip.duration_s for clip in clips} == {10.0}
    for kind, extra in raw.extra.items():
        assert [(c.file, c.labels) for c in task.extra[kind]] == [(c.file, c.labels) for c in extra]
    table = (task.folder / "metadata" / "test_strong.tsv").read_text().splitlines()
    assert table[0].split("\t") == ["filename", "onset", "offset", "event_label"]
    assert "Yv0_0_10.wav\t\t\t" in table and len(table) == 1 + 1 + 3 * len(LABELS)


# ---- a stock run

HOP_MS = 40.0


def stock_folder(
    folder: Path, scores: dict[str, np.ndarray], events: dict[str, list], labels: tuple[str, ...]
) -> Path:
    """What a finished run leaves of what is read."""
    folder.mkdir()
    rows = [f"{i},{label}\n" for i, label in enumerate(labels)]
    (folder / "labelvocabulary.csv").write_text("idx,label\n" + "".join(rows))
    frames = [
        (f"/x/test/{f}", (i + 0.5) * HOP_MS) for f, s in scores.items() for i in range(len(s))
    ]
    (folder / "test.filename-timestamps.json").write_text(json.dumps(frames))
    content = {
        "target": torch.zeros(2),
        "prediction": torch.from_numpy(np.concatenate(list(scores.values()))),
        "target_events": events,
        "predicted_events": {"a": [{"start": np.float64(1.0)}]},
        "timestamp": torch.zeros(2, dtype=torch.float64),
    }
    (folder / "test.predictions.pkl").write_bytes(pickle.dumps(content))
    return folder


def perfect(n_frames: int = 250) -> tuple[dict, dict]:
    """Scores that are 1 where an event is and 0 elsewhere."""
    scores, events = {}, {}
    for i, file in enumerate(("a.wav", "b.wav", "c.wav")):
        scores[file] = np.zeros((n_frames, 2), np.float32)
        events[file] = []
        for k, label in enumerate(("x", "y")):
            first = 20 * i + 50 * k
            scores[file][first : first + 25, k] = 1
            start, end = HOP_MS * first, HOP_MS * (first + 25)
            events[file].append({"label": label, "start": start, "end": end})
    return scores, events


def test_psds_of_stored_scores(tmp_path: Path) -> None:
    scores, events = perfect()
    found = psds_from_stock(stock_folder(tmp_path / "a", scores, events, ("x", "y")))
    assert (found["psds1"].micro, found["psds2"].micro) == (1.0, 1.0)
    shifted = {file: np.roll(one, 60, axis=0) for file, one in scores.items()}
    found = psds_from_stock(stock_folder(tmp_path / "b", shifted, events, ("x", "y")))
    assert found["psds1"].micro < 0.5
    late = {file: one[:, ::-1].copy() for file, one in scores.items()}  # one class as the other
    found = psds_from_stock(stock_folder(tmp_path / "c", late, events, ("x", "y")))
    assert found["psds1"].per_class["x"] < 0.5


def test_runs_that_cannot_be_scored(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a finished run of heareval"):
        psds_from_stock(tmp_path)
    scores, events = perfect()
    folder = stock_folder(tmp_path / "a", scores, events, ("x", "y"))
    times = folder / "test.filename-timestamps.json"
    rows = json.loads(times.read_text())
    times.write_text(json.dumps(rows[:-1]))
    with pytest.raises(ValueError, match="749 frames, of which 750 have scores"):
        psds_from_stock(folder)
    times.write_text(json.dumps([(file, time_ms - 20) for file, time_ms in rows]))
    with pytest.raises(ValueError, match="a.wav: timestamps are no centres of frames of 40.0 ms"):
        psds_from_stock(folder)
    times.write_text(json.dumps(rows))
    (folder / "test.predictions.pkl").write_bytes(pickle.dumps({"target": torch.zeros(1)}))
    with pytest.raises(ValueError, match="no target_events in it"):
        psds_from_stock(folder)
    (folder / "test.predictions.pkl").write_bytes(pickle.dumps(Path("x")))
    with pytest.raises(ValueError, match="pathlib.PosixPath is not expected in it"):
        psds_from_stock(folder)


LOUD = (("Blender", 2, 8), ("Frying", 1, 6))  # noise, and a tone


def make_loud(folder: Path) -> None:
    """One event in each clip, easily heard: of clips in turn a loud noise and a tone."""

    def turn(file: str) -> int:
        return int(re.findall(r"\d+", file)[0]) % 2

    for audio in sorted((folder / "audio").rglob("*.wav")):
        samples, rate = soundfile.read(audio)
        _, onset_s, offset_s = LOUD[turn(audio.name)]
        part = slice(onset_s * rate, offset_s * rate)
        tone = 0.5 * np.sin(np.arange(len(samples))[part] * 2 * np.pi * 1_000 / rate)
        samples[part] += 7 * samples[part] if turn(audio.name) == 0 else tone
        soundfile.write(audio, samples, rate)
    for table in (folder / "metadata").rglob("*.tsv"):
        heading, *rows = table.read_text().splitlines()
        names = sorted({row.split("\t")[0] for row in rows})
        made = [(name, *LOUD[turn(name)]) for name in names]
        rows = [f"{name}\t{onset}\t{offset}\t{label}" for name, label, onset, offset in made]
        table.write_text("\n".join([heading, *rows, ""]))


@pytest.mark.hear
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:desed. classes without an event")
def test_stock_heareval_runs_on_desed(tmp_path: Path) -> None:
    """Built, embedded and scored by stock tools; PSDS as sed_scores_eval has it of one file."""
    import pandas as pd
    from sed_scores_eval.intersection_based import psds as oracle

    from tests.test_hear_stock import MN, score

    raw = raw_desed(tmp_path / "dataset", without=("weak", "unlabeled"), seconds=10.0)
    make_loud(raw)
    task = open_task(build("desed", [raw], tmp_path / "tasks" / "desed-2023-full"))
    printed = score(MN, tmp_path / "tasks", tmp_path / "out")
    assert "event_onset_200ms_fms" in printed and "segment_1s_er" in printed
    (folder,) = (tmp_path / "out" / "rule" / MN / "default").glob("*/desed-2023-full")
    found = psds_from_stock(folder)

    content = pickle.loads((folder / "test.predictions.pkl").read_bytes())
    rows = json.loads((folder / "test.filename-timestamps.json").read_text())
    edges, labels = np.arange(251) * 0.04, [label for label, *_ in LOUD]
    clips = {}
    for clip in task.clips("test"):
        mine = [i for i, (file, _) in enumerate(rows) if file.endswith(f"/{clip.file}")]
        frames = content["prediction"].numpy()[mine].astype(float)
        table = np.column_stack((edges[:-1], edges[1:], frames))
        one = pd.DataFrame(table, columns=["onset", "offset", *task.labels])
        clips[clip.file] = one[["onset", "offset", *labels]]  # it refuses classes without events
    truth = {clip.file: [list(e) for e in clip.events] for clip in task.clips("test")}
    lengths = {clip.file: 10.0 for clip in task.clips("test")}
    for name, more in (
        ("psds1", {"dtc_threshold": 0.7, "gtc_threshold": 0.7}),
        (
            "psds2",
            {"dtc_threshold": 0.1, "gtc_threshold": 0.1, "cttc_threshold": 0.3, "alpha_ct": 0.5},
        ),
    ):
        value, per_class, *_ = oracle(clips, truth, lengths, alpha_st=1.0, max_efpr=100, **more)
        assert found[name].micro == pytest.approx(value, abs=1e-9)
        for label in labels:
            assert found[name].per_class[label] == pytest.approx(per_class[label], abs=1e-9)
    values = [x for one in found.values() for x in one.per_class.values() if not math.isnan(x)]
    assert max(values) > 0  # the two are equal in more than nothing
