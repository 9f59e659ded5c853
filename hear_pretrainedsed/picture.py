"""A picture of a recording: its spectrogram, and its events below on the same time axis."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from hear_pretrainedsed.events import GRID, Event, whole_file
from hear_pretrainedsed.frontends import htk_filters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

MAX_CLASSES = 20

_N_FFT = 1024  # 64 ms
_HOP_SAMPLES = 160
_N_MELS = 128
_LOW_HZ, _HIGH_HZ = 30.0, 8000.0
_RANGE_DB = 70.0
_COLUMNS = 1600  # more cannot be seen in a picture of this width
_ROWS_AT_ONCE = 4096  # windows transformed together: 34 MB
_TICKS_HZ = (125, 250, 500, 1000, 2000, 4000, 8000)
_MAX_LABEL = 34  # characters


def draw(
    audio: torch.Tensor | np.ndarray,
    sample_rate: int,
    events: Iterable[Event],
    path: str | os.PathLike[str],
    scores: np.ndarray | torch.Tensor | None = None,
    labels: Sequence[str] | None = None,
    title: str | None = None,
) -> None:
    """Draw audio (samples,) at 16 kHz with its events as a PNG.

    Each class with events has a row, the first one heard on top; a bar's colour is its event's
    score. With more than `MAX_CLASSES` classes those with most score x duration are shown and the
    others counted. With `scores` (frames, classes) of `labels`, each row also has its score as a
    curve; without any event, the classes with the highest scores are shown.

    Raises `ValueError` for audio that is not (samples,), at another rate or empty.
    """
    samples = np.asarray(audio, dtype=np.float32)
    if samples.ndim != 1 or len(samples) == 0:
        raise ValueError(f"a picture shows audio (samples,), got {samples.shape}")
    if sample_rate != GRID.sample_rate:
        raise ValueError(f"a picture shows audio at {GRID.sample_rate} Hz, got {sample_rate} Hz")
    if (scores is None) != (labels is None):
        raise ValueError("a picture takes scores and labels together")
    figure = _figure(samples, list(events), _curves(scores, labels), title)
    with whole_file(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # then a box stands for it
        figure.savefig(file, format="png")


def _figure(
    samples: np.ndarray, events: list[Event], curves: dict[str, np.ndarray], title: str | None
) -> Figure:
    """The spectrogram above the rows of events, and a scale for their colours."""
    from matplotlib import colormaps  # slow to import, and not everyone draws
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    rows, n_hidden = _rows(events, curves)
    heights = (2.6, 0.5 + 0.26 * max(2, len(rows)))
    figure = Figure(figsize=(13, sum(heights) + 1.0), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    if title:
        above.set_title(title, fontsize=11, loc="left", parse_math=False)
    _draw_spectrogram(above, samples)
    visible = colormaps["YlGnBu"](np.linspace(0.25, 0.95, 256))  # its light end is hardly seen
    colours = LinearSegmentedColormap.from_list("score", visible)
    _draw_events(below, events, rows, curves, len(samples) / GRID.sample_rate, colours)
    if events:
        scale = figure.colorbar(
            ScalarMappable(cmap=colours),
            ax=(above, below),
            pad=0.01,
            shrink=0.35,
            aspect=25,
            anchor=(0, 0),
        )
        scale.set_label("score of event", fontsize=8)
        scale.ax.tick_params(labelsize=8)
    note, place = _note(bool(events), n_hidden, bool(curves)), (0, -32)
    below.annotate(note, (1, 0), place, "axes fraction", "offset points", ha="right", fontsize=8)
    return figure


def _curves(
    scores: np.ndarray | torch.Tensor | None, labels: Sequence[str] | None
) -> dict[str, np.ndarray]:
    if scores is None or labels is None:
        return {}
    if isinstance(scores, torch.Tensor):
        scores = scores.detach().float().cpu().numpy()
    if scores.ndim != 2 or scores.shape[1] != len(labels):
        raise ValueError(f"scores (frames, classes) {scores.shape} don't fit {len(labels)} labels")
    return dict(zip(labels, scores.T, strict=True))


def _rows(events: list[Event], curves: dict[str, np.ndarray]) -> tuple[list[str], int]:
    """Classes to show, top row first, and how many classes with events are not shown."""
    weight: dict[str, float] = {}
    for event in events:
        amount = event.score * (event.offset_s - event.onset_s)
        weight[event.label] = weight.get(event.label, 0.0) + amount
    if not weight:
        loudest = sorted(curves, key=lambda label: -float(curves[label].max()))
        return loudest[:5], 0
    chosen = set(sorted(weight, key=lambda label: (-weight[label], label))[:MAX_CLASSES])
    in_order = sorted(events, key=lambda event: (event.onset_s, event.label))
    rows = list(dict.fromkeys(event.label for event in in_order if event.label in chosen))
    return rows, len(weight) - len(rows)


def _note(has_events: bool, n_hidden: int, has_curves: bool) -> str:
    """What a reader would not guess."""
    parts = []
    if not has_events:
        parts.append("no events" + (": these are the highest scores" if has_curves else ""))
    if n_hidden:
        parts.append(f"and {n_hidden} more {'classes' if n_hidden > 1 else 'class'} with events")
    if has_curves:
        parts.append("gray: the class's score over time, 0 to 1 in its row")
    return "; ".join(parts)


def _spectrogram(samples: np.ndarray) -> tuple[np.ndarray, float]:
    """Log-mel power in dB (mels, columns), for the eye only, and how long a column is, in s.

    A column of a long recording is the mean power over all windows in its stretch of time.
    """
    # Windows every 10 ms; in long recordings so many a column that they still overlap by half.
    per_column = max(1, -(-len(samples) // (_COLUMNS * _N_FFT // 2)))
    hop = max(_HOP_SAMPLES, -(-len(samples) // (_COLUMNS * per_column)))
    n_columns = -(-len(samples) // (hop * per_column))
    half = _N_FFT // 2
    padded = np.pad(samples, (half, n_columns * per_column * hop - len(samples) + half))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _N_FFT)[::hop]
    windows = windows[: n_columns * per_column]
    filters = htk_filters(_N_MELS, _LOW_HZ, _HIGH_HZ, _N_FFT).numpy().T.astype(np.float32)
    filters /= np.maximum(filters.sum(axis=0), 1e-9)
    shape = np.hanning(_N_FFT).astype(np.float32)
    power = [
        np.abs(np.fft.rfft(windows[i : i + _ROWS_AT_ONCE] * shape)).astype(np.float32) ** 2
        @ filters
        for i in range(0, len(windows), _ROWS_AT_ONCE)
    ]
    mean = np.concatenate(power).reshape(n_columns, per_column, _N_MELS).mean(axis=1)
    return 10 * np.log10(np.maximum(mean, 1e-10)).T, hop * per_column / GRID.sample_rate


def _mel_row(hz: float) -> float:
    """Height of a frequency in the spectrogram, in rows from the bottom."""
    mel, low, high = (np.log1p(f / 700) for f in (hz, _LOW_HZ, _HIGH_HZ))
    return float((mel - low) / (high - low) * _N_MELS)


def _draw_spectrogram(axes: Axes, samples: np.ndarray) -> None:
    decibels, column_s = _spectrogram(samples)
    top = max(float(np.percentile(decibels, 99.9)), -60.0)  # silence stays dark
    axes.imshow(
        decibels,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=top - _RANGE_DB,
        vmax=top,
        extent=(0, decibels.shape[1] * column_s, 0, _N_MELS),
        interpolation="nearest" if decibels.shape[1] > 400 else "bilinear",
    )
    axes.set_yticks(
        [_mel_row(hz) for hz in _TICKS_HZ],
        [f"{hz // 1000}k" if hz >= 1000 else str(hz) for hz in _TICKS_HZ],
        fontsize=8,
    )
    axes.set_ylabel("Hz", fontsize=9)
    axes.tick_params(labelbottom=False)


def _draw_events(
    axes: Axes,
    events: list[Event],
    rows: list[str],
    curves: dict[str, np.ndarray],
    duration_s: float,
    colours: Colormap,
) -> None:
    shortest = duration_s / 500  # two pixels
    for place, label in enumerate(rows):
        found = [event for event in events if event.label == label]
        axes.broken_barh(
            [(e.onset_s, max(e.offset_s - e.onset_s, shortest)) for e in found],
            (place - 0.38, 0.76),
            facecolors=[colours(e.score) for e in found],
            linewidth=0,
        )
        if label in curves:
            _draw_curve(axes, curves[label], place, duration_s)
    axes.set_yticks(
        range(len(rows)), [_short(label) for label in rows], fontsize=9, parse_math=False
    )
    axes.set_ylim(max(len(rows), 2) - 0.4, -0.6)
    axes.set_xlim(0, duration_s)
    axes.set_xlabel("time (s)", fontsize=9)
    axes.tick_params(axis="x", labelsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _short(label: str) -> str:
    label = " ".join(label.split())
    return label if len(label) <= _MAX_LABEL else label[: _MAX_LABEL - 1] + "\u2026"


def _draw_curve(axes: Axes, curve: np.ndarray, place: int, duration_s: float) -> None:
    """A score over time within a row; of long recordings the highest score in each stretch."""
    per_point = max(1, len(curve) // _COLUMNS)
    n = -(-len(curve) // per_point)
    padded = np.pad(curve, (0, n * per_point - len(curve)), mode="edge")
    highest = padded.reshape(n, per_point).max(axis=1)
    times = np.minimum((np.arange(n) + 0.5) * per_point * GRID.hop_s, duration_s)
    height = place + 0.38 - 0.76 * highest
    axes.fill_between(times, place + 0.38, height, color="0.82", linewidth=0, zorder=0.5)
    if per_point == 1:  # of a longer recording it would hide the bars
        axes.plot(times, height, color="0.3", linewidth=0.7)
