"""A model's head on AudioSet Strong: streamed, against all at once; the command `reproduce`."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import typer
from scipy import ndimage
from torch import Tensor
from typer.testing import CliRunner

from downstream import reproduce as command
from downstream import strong_scores
from downstream.metrics import PSDS1, Score, psds, segment_auroc
from downstream.reproduce import PUBLISHED, published_psds1, reproduction
from downstream.strong_scores import StrongScores, decoded, evaluate_audioset_strong
from downstream.tasks.audioset_strong import (
    AUDIOSET_STRONG,
    StrongSet,
    read_strong_set,
    score_head,
    scored_labels,
)
from downstream.tasks.checks import TaskWarning
from downstream.tasks.task import Clip
from hear_pretrainedsed.api import load_model
from hear_pretrainedsed.audio import AudioError, read_audio
from hear_pretrainedsed.events import GRID
from hear_pretrainedsed.heads import NoHeadError
from hear_pretrainedsed.model import Options
from hear_pretrainedsed.registry import CHECKPOINTS, read_labels
from tests.downstream.metric_oracles import approx

pytest.importorskip("sed_scores_eval")

LABELS = read_labels("audioset_strong_train")
CLASSES = [LABELS.index(label) for label in scored_labels()[:6]]


class Model:
    """Knows, from a clip's first sample, what is in it; its logits are that and noise."""

    head = SimpleNamespace(emits="logits")
    labels = LABELS
    device = torch.device("cpu")
    provenance = {"checkpoint": "known.strong"}

    def __init__(self, clips: StrongSet) -> None:
        self.options = Options()
        self.clips = {float(read_audio(c.path)[0]): c for c in clips.clips if c.path.stat().st_size}
        self.batches: list[tuple[int, int]] = []

    def logits(self, audio: Tensor) -> Tensor:
        self.batches.append(tuple(audio.shape))
        n_frames = GRID.n_frames(audio.shape[1])
        out = []
        for one in audio:
            clip = self.clips[float(one[0])]
            rng = np.random.default_rng(len(clip.file) + sum(map(ord, clip.file)))
            values = rng.standard_normal((n_frames, len(LABELS))).astype(np.float32) - 2
            for onset_s, offset_s, label in clip.events:
                values[int(onset_s / 0.04) : int(offset_s / 0.04), LABELS.index(label)] += 1.5
            out.append(torch.from_numpy(values))
        return torch.stack(out)

    def scores(self, audio: Tensor) -> Tensor:
        return self.logits(audio).sigmoid()

    def n_windows(self, n_samples: int) -> int:
        return len(GRID.plan(n_samples, self.options.windowing))

    @property
    def batch_size(self) -> int:
        return self.options.batch_size or 4


def make_clips(folder: Path, n_clips: int = 24) -> StrongSet:
    """Recordings of three lengths, each with its number as its first sample."""
    rng = np.random.default_rng(0)
    clips = []
    for i in range(n_clips):
        n_samples = (160_000, 64_000, 100_123)[i % 3]
        path = folder / f"clip{i}.wav"
        audio = np.zeros(n_samples, np.float32)
        audio[0] = (i + 1) / 100
        soundfile.write(path, audio, 16_000, "FLOAT")
        onset_s = float(rng.uniform(0, 2))
        label = LABELS[CLASSES[i % len(CLASSES)]]
        events = ((onset_s, onset_s + float(rng.uniform(0.3, 1.8)), label),)
        clips.append(Clip(f"clip{i}", path, events, n_samples / 16_000, f"clip{i}"))
    return StrongSet(folder, scored_labels(), tuple(clips))


@pytest.fixture
def clips(tmp_path: Path) -> StrongSet:
    return make_clips(tmp_path)


def columns() -> list[int]:
    return [LABELS.index(label) for label in scored_labels()]


def plain(model: Model, clips: StrongSet, filtered: str) -> tuple[Score, Score]:
    """Clip by clip with SciPy's median, all scores in memory."""
    scores = {}
    for clip in clips.clips:
        values = getattr(model, filtered)(read_audio(clip.path)[None])[0].detach().numpy()
        scores[clip.file] = ndimage.median_filter(values[:, columns()], size=(9, 1))
    reference = {clip.file: clip.events for clip in clips.clips}
    durations = {clip.file: clip.duration_s for clip in clips.clips}
    sides = (scores, 0.04, clips.labels, reference, durations)
    return psds(*sides, **PSDS1), segment_auroc(*sides)


def _metrics(found: StrongScores) -> tuple[Score, Score]:
    return found.psds1, found.segment_auroc


def assert_same(found: StrongScores, psds1: Score, auroc: Score) -> None:
    for ours, theirs in ((found.psds1, psds1), (found.segment_auroc, auroc)):
        assert ours.micro == approx(theirs.micro)
        assert ours.macro == approx(theirs.macro)
        assert ours.per_class == approx(theirs.per_class)


@pytest.mark.parametrize("filtered", ["logits", "scores"])
def test_equal_to_all_clips_at_once(clips: StrongSet, filtered: str) -> None:
    model = Model(clips)
    wanted = plain(model, clips, filtered)
    told: list[tuple[int, int]] = []
    found = evaluate_audioset_strong(
        model, clips, filtered=filtered, progress=lambda *done: told.append(done)
    )
    assert_same(found, *wanted)
    assert 0.2 < found.psds1.macro < 0.99
    assert 0.2 < found.segment_auroc.macro < 0.999
    assert sum(not math.isnan(x) for x in found.psds1.per_class.values()) == len(CLASSES)
    assert (found.filtered, found.n_clips, found.failed) == (filtered, 24, {})
    assert told[-1] == (24, 24)
    assert told == sorted(told)


def test_filtering_logits_or_scores_gives_the_same(clips: StrongSet) -> None:
    on_logits, on_scores = (
        evaluate_audioset_strong(Model(clips), clips, filtered=what)
        for what in ("logits", "scores")
    )
    assert on_logits.psds1.macro == pytest.approx(on_scores.psds1.macro, abs=1e-3)
    assert on_logits.segment_auroc.macro == pytest.approx(on_scores.segment_auroc.macro, abs=1e-3)
    assert_same(evaluate_audioset_strong(Model(clips), clips), *_metrics(on_logits))


def test_the_median_is_used(clips: StrongSet) -> None:
    filtered, raw = (evaluate_audioset_strong(Model(clips), clips, median_frames=n) for n in (9, 1))
    assert filtered.psds1.macro > raw.psds1.macro + 0.1


def test_clips_of_one_length_are_computed_together(clips: StrongSet) -> None:
    model = Model(clips)
    evaluate_audioset_strong(model, clips)
    assert sorted(model.batches) == [(8, 64_000), (8, 100_123), (8, 160_000)]


def test_decoded_gives_every_clip_once(clips: StrongSet) -> None:
    for n_at_once in (1, 5, 100):
        found = [
            (clip, len(one))
            for group, audio in decoded(clips.clips, n_at_once)
            for clip, one in zip(group, audio, strict=True)
        ]
        assert len(found) == len(clips.clips)
        assert {clip.file: n for clip, n in found} == {
            clip.file: round(clip.duration_s * 16_000) for clip in clips.clips
        }


def test_later_clips_are_decoded_while_the_first_are_computed(
    clips: StrongSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, later = threading.Event(), threading.Event()
    ordered = sorted(clips.clips, key=lambda clip: clip.duration_s)

    def read(path: Path) -> Tensor:
        if path == ordered[4].path:
            taken.wait(timeout=30)
            later.set()
        return read_audio(path)

    monkeypatch.setattr(strong_scores, "read_audio", read)
    groups = decoded(clips.clips, 4)
    next(groups)
    taken.set()
    assert later.wait(timeout=30)  # and nobody has asked for its group
    groups.close()


def test_recordings_that_cannot_be_read_are_left_out(clips: StrongSet) -> None:
    broken = [clips.clips[i] for i in (0, 7, 23)]
    for clip in broken:
        clip.path.write_bytes(b"")
    found = evaluate_audioset_strong(Model(clips), clips)
    assert sorted(found.failed) == sorted(clip.file for clip in broken)
    assert all("empty file" in reason for reason in found.failed.values())
    rest = tuple(clip for clip in clips.clips if clip not in broken)
    again = evaluate_audioset_strong(Model(clips), replace(clips, clips=rest))
    assert found.n_clips == 21
    assert_same(found, *_metrics(again))
    for clip in clips.clips:
        clip.path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of 24 recordings can be read: .*empty file"):
        evaluate_audioset_strong(Model(clips), clips)


def test_fewer_windows_at_once_when_memory_runs_out(
    clips: StrongSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    model, wanted = Model(clips), evaluate_audioset_strong(Model(clips), clips)
    whole, limit = model.logits, 3

    def short_of_memory(audio: Tensor) -> Tensor:
        if min(len(audio), model.batch_size) > limit:
            raise torch.OutOfMemoryError("out of memory")
        return whole(audio)

    model.logits = short_of_memory
    assert_same(evaluate_audioset_strong(model, clips), *_metrics(wanted))
    assert model.options.batch_size == 2
    limit = 0
    with pytest.raises(MemoryError, match="not enough memory, even window by window"):
        evaluate_audioset_strong(model, clips)


def test_heads_that_do_not_fit(clips: StrongSet) -> None:
    model = Model(clips)
    model.labels = LABELS[:-1] + ("other",)
    with pytest.raises(ValueError, match="the head has 406 of the 407 classes, not '.*' for one"):
        evaluate_audioset_strong(model, clips)
    model.labels = None
    with pytest.raises(NoHeadError, match="known.strong has no trained head for AudioSet"):
        evaluate_audioset_strong(model, clips)
    model = Model(clips)
    with pytest.raises(ValueError, match="unknown filtered 'logit'; did you mean 'logits'"):
        evaluate_audioset_strong(model, clips, filtered="logit")
    model.head = SimpleNamespace(emits="probabilities")
    with pytest.raises(NoHeadError, match="emits probabilities: filter scores"):
        evaluate_audioset_strong(model, clips, filtered="logits")
    assert evaluate_audioset_strong(model, clips).filtered == "scores"


def test_an_error_in_the_counting_thread_is_raised(
    clips: StrongSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(clips)
    whole = model.logits
    model.logits = lambda audio: whole(audio) * float("nan")
    with pytest.raises(ValueError, match="NaN in the scores"):
        evaluate_audioset_strong(model, clips)


def test_presets() -> None:
    assert published_psds1("atst_f.strong") == 46.1
    assert published_psds1("fmn10.strong+tf-256") == 43.7
    assert published_psds1("beats.strong") == CHECKPOINTS["beats.strong"].psds1 == 46.5
    assert set(PUBLISHED) == {n for n, c in CHECKPOINTS.items() if c.psds1 is not None}
    with pytest.raises(ValueError, match="unknown preset 'beats.weak'; did you mean 'beats.str"):
        published_psds1("beats.weak")
    with pytest.raises(ValueError, match="unknown checkpoint 'beat.strong'"):
        published_psds1("beat.strong")


def test_a_cell_tells_of_recordings_that_cannot_be_read(clips: StrongSet) -> None:
    broken = clips.clips[3]
    broken.path.write_bytes(b"")
    splits = {"eval": clips.clips}
    metrics = AUDIOSET_STRONG.metrics
    task = SimpleNamespace(folder=clips.folder, labels=clips.labels, splits=splits, metrics=metrics)
    with pytest.warns(TaskWarning, match=f"^1 recordings .* left out: {broken.file}: .*empty file"):
        found = score_head(Model(clips), task)
    assert found.recipe["failed"].keys() == {broken.file}


def test_reproduction_in_per_cent(clips: StrongSet) -> None:
    found = evaluate_audioset_strong(Model(clips), clips)
    row = reproduction("atst_f.strong", clips, found)
    assert row.measured == 100 * found.psds1.macro
    assert row.difference == row.measured - 46.1
    assert row.clips == "24 of 16 996"


def app() -> typer.Typer:
    made = typer.Typer()
    made.command("reproduce")(command.reproduce)
    return made


@pytest.mark.parametrize("broken", [False, True])
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    clips = replace(make_clips(tmp_path), missing=("gone_0",), unlisted=("more.wav",))
    model = Model(clips)
    if broken:
        clips.clips[3].path.write_bytes(b"")
    monkeypatch.setattr(command, "load", lambda *a, **b: model)
    monkeypatch.setattr(command, "read_strong_set", lambda folder: clips)
    out = tmp_path / "out.json"
    given = ["atst_f.strong", "--corpus", str(tmp_path), "-o", str(out)]
    result = CliRunner().invoke(app(), given)
    assert result.exit_code == 0, result.output
    assert "1 have no recording and are left out: gone_0" in result.stderr
    assert "1 are not listed and are left out: more.wav" in result.stderr
    assert ("empty file" in result.stderr) == broken
    facts = json.loads(out.read_text())
    n_clips = 23 if broken else 24
    assert f"{n_clips} of 16 996 clips" in result.stdout
    assert "46.10" in result.stdout
    assert f"{facts['measured']:.2f}" in result.stdout
    assert f"{facts['difference']:+.2f}" in result.stdout
    assert (facts["protocol"], facts["n_clips"]) == ("paper", n_clips)
    assert facts["measured"] == 100 * facts["psds1"]["macro"]
    assert facts["missing"] == ["gone_0"]
    per_class = facts["psds1"]["per_class"]
    assert sum(value is not None for value in per_class.values()) == len(CLASSES)


def test_the_command_refuses_before_it_reads_anything(tmp_path: Path) -> None:
    for given, message in (
        (["beats.weak", "--corpus", "nowhere"], "unknown preset"),
        (["beats.strong", "--corpus", "nowhere", "--filtered", "x"], "unknown filtered 'x'"),
        (["beats.strong", "--corpus", str(tmp_path)], "wanted one file"),
    ):
        result = CliRunner().invoke(app(), given)
        assert isinstance(result.exception, ValueError)
        assert message in str(result.exception)


@pytest.mark.slow
def test_a_checkpoint_on_strong_mini(shared: Path, release_file: Callable[[str], Path]) -> None:
    model = load_model(release_file("fmn04.strong"))
    whole = read_strong_set(shared / "data" / "strong_mini-v1")
    few = replace(whole, clips=whole.clips[:6])
    found = evaluate_audioset_strong(model, few)
    wanted = plain(model, few, "logits")
    assert found.n_clips == 6
    assert 0 < found.segment_auroc.macro < 1
    assert found.segment_auroc.macro == pytest.approx(wanted[1].macro, abs=0.01)  # batches round
    assert found.psds1.macro == pytest.approx(wanted[0].macro, abs=0.01)


def test_what_decoding_raises_is_kept(clips: StrongSet) -> None:
    clips.clips[0].path.unlink()
    kinds = [audio for _, audio in decoded(clips.clips, 4) if isinstance(audio, AudioError)]
    assert len(kinds) == 1 and "no such file" in str(kinds[0])
    assert strong_scores.MEDIAN_FRAMES == 9
