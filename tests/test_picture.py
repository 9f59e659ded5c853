"""picture.py: a PNG for every length of recording, and its time axis tells the truth."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from hear_pretrainedsed import picture
from hear_pretrainedsed.events import Event

PNG = b"\x89PNG\r\n\x1a\n"


def clip(duration_s: float, seed: int = 0) -> torch.Tensor:
    n = max(1, round(duration_s * 16_000))
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 0.1


def check_png(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    assert path.read_bytes().startswith(PNG)
    pixels = imread(path)
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 1000
    return pixels


@pytest.mark.parametrize("duration_s", [0.0, 0.03, 3.0, 61.0])
@pytest.mark.parametrize("with_scores", [True, False])
def test_any_length_and_awkward_names(tmp_path, duration_s, with_scores) -> None:
    audio = clip(duration_s)
    length = len(audio) / 16_000
    labels = ["$x^{$ \\frac", "a_b {c}", "very long " * 20, "tab\tname 音"]
    n_frames = max(1, (len(audio) + 319) // 640)
    scores = torch.rand(n_frames, 4) if with_scores else None
    events = [Event(0.0, length, label, 0.7) for label in labels]
    path = tmp_path / "a.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture.draw(
            audio, 16_000, events, path, scores, labels if with_scores else None, title="$_{.wav"
        )
    check_png(path)
    assert os.listdir(tmp_path) == ["a.png"]


def test_silence_no_events_and_no_scores(tmp_path) -> None:
    picture.draw(torch.zeros(16_000), 16_000, [], tmp_path / "a.png")
    picture.draw(torch.zeros(16_000), 16_000, [], tmp_path / "b.png", np.zeros((25, 2)), ["x", "y"])
    check_png(tmp_path / "a.png")
    check_png(tmp_path / "b.png")


def test_a_bar_is_where_its_event_is(tmp_path) -> None:
    """The same recording with and without an event at 1..2 of 4 s differs there only."""
    audio = clip(4.0)
    events = [Event(0.0, 0.5, "a", 0.9), Event(3.5, 4.0, "a", 0.9)]
    picture.draw(audio, 16_000, events, tmp_path / "a.png")
    picture.draw(audio, 16_000, [*events, Event(1.0, 2.0, "a", 0.9)], tmp_path / "b.png")
    before, after = (check_png(tmp_path / name) for name in ("a.png", "b.png"))
    changed = np.flatnonzero((before != after).any(axis=(0, 2)))
    picture.draw(audio, 16_000, [Event(0.0, 4.0, "a", 0.9)], tmp_path / "c.png")
    row = np.flatnonzero((before != after).any(axis=(1, 2))).mean().astype(int)
    bar = np.flatnonzero((check_png(tmp_path / "c.png")[row] == after[row, changed[9]]).all(axis=1))
    start, width = bar[0], bar[-1] - bar[0] + 1
    assert changed[0] == pytest.approx(start + width / 4, abs=3)
    assert changed[-1] == pytest.approx(start + width / 2, abs=3)


@pytest.mark.parametrize("duration_s", [0.3, 5.0, 100.01])
def test_spectrogram_and_rows_share_a_true_time_axis(duration_s) -> None:
    audio = clip(duration_s).numpy()
    above, below, *_ = picture._figure(audio, [Event(0, 1, "a", 0.5)], {}, None).axes
    assert above.get_xlim() == below.get_xlim() == (0, pytest.approx(duration_s))
    decibels, column_s = picture._spectrogram(audio)
    assert above.images[0].get_extent()[:2] == [0, pytest.approx(decibels.shape[1] * column_s)]
    assert decibels.shape[1] * column_s == pytest.approx(duration_s, abs=column_s)


@pytest.mark.parametrize("duration_s", [2.0, 5.0, 700.0])
def test_a_tone_is_at_its_time_and_pitch_in_the_spectrogram(duration_s) -> None:
    audio = np.zeros(round(duration_s * 16_000), np.float32)
    start, end = len(audio) // 2, len(audio) // 2 + len(audio) // 4
    audio[start:end] = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(end - start) / 16_000)
    decibels, column_s = picture._spectrogram(audio)
    assert decibels.shape[1] <= picture._COLUMNS + 1
    loud = decibels.max(axis=0) > decibels.max() - 10
    columns = np.flatnonzero(loud) * column_s / duration_s
    assert columns[0] == pytest.approx(0.5, abs=0.03)
    assert columns[-1] == pytest.approx(0.75, abs=0.03)
    pitch = decibels[:, np.flatnonzero(loud)[len(columns) // 2]].argmax()
    assert pitch == pytest.approx(picture._mel_row(1000), abs=2)


def test_a_click_in_a_long_recording_is_seen() -> None:
    audio = np.zeros(600 * 16_000, np.float32)
    for at in (1_000_003, 7_000_017, len(audio) - 1):
        audio[at] = 1.0
    decibels, column_s = picture._spectrogram(audio)
    loud = np.flatnonzero(decibels.max(axis=0) > -90)
    found = loud * column_s * 16_000
    for at in (1_000_003, 7_000_017, len(audio) - 1):
        assert np.abs(found + column_s * 8000 - at).min() <= column_s * 16_000


def test_rows_are_the_weightiest_classes_in_order_of_onset() -> None:
    events = [Event(i, i + 1 + i / 100, f"class {i:02}", 0.5) for i in range(30)]
    rows, n_hidden = picture._rows(events[::-1], {})
    assert rows == [f"class {i:02}" for i in range(10, 30)]
    assert n_hidden == 10
    curves = {f"c{i}": np.float32([0.1 * i]) for i in range(8)}
    assert picture._rows([], curves) == (["c7", "c6", "c5", "c4", "c3"], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(1, 5), 16_000, []), r"\(samples,\), got \(1, 5\)"),
        ((torch.zeros(0), 16_000, []), r"got \(0,\)"),
        ((torch.zeros(5), 48_000, []), "at 16000 Hz, got 48000"),
    ],
)
def test_wrong_audio_is_refused(tmp_path, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        picture.draw(*arguments, tmp_path / "a.png")
    assert os.listdir(tmp_path) == []


def test_scores_have_to_fit_the_labels(tmp_path) -> None:
    with pytest.raises(ValueError, match="together"):
        picture.draw(torch.zeros(5), 16_000, [], tmp_path / "a.png", scores=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="don't fit 1 labels"):
        picture.draw(torch.zeros(5), 16_000, [], tmp_path / "a.png", torch.zeros(1, 2), ["a"])


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, hear_pretrainedsed.picture; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
