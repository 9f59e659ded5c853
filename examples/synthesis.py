"""Synthetic recordings with known events: six kinds of sound over noise, drawn by a generator.

Everything is computed here from sines and noise; no recording of anybody's is used. The demo's task
(see `hear_task.py`) and the recording that it detects events in are made of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.signal import fftconvolve, lfilter

SAMPLE_RATE = 16_000

Random = np.random.Generator
Labelled = tuple[float, float, str]  # onset_s, offset_s, label


def _time(duration_s: float) -> np.ndarray:
    return np.arange(int(duration_s * SAMPLE_RATE)) / SAMPLE_RATE


def _phase(frequency_hz: np.ndarray) -> np.ndarray:
    """Phase of a tone whose frequency changes: its integral."""
    return 2 * np.pi * np.cumsum(frequency_hz) / SAMPLE_RATE


def _fade(x: np.ndarray, fade_s: float) -> np.ndarray:
    n = min(int(fade_s * SAMPLE_RATE), len(x) // 2)
    ramp = np.sin(0.5 * np.pi * np.arange(n) / max(n, 1)) ** 2
    x[:n] *= ramp
    x[len(x) - n :] *= ramp[::-1]
    return x


def bell(rng: Random) -> np.ndarray:
    """A struck bell: inharmonic partials, each with its own decay."""
    pitch_hz, decay_s = rng.uniform(500, 1300), rng.uniform(0.25, 0.7)
    t = _time(3 * decay_s)
    ratios = np.array([1, 1.19, 1.5, 2, 2.76, 4.1]) * rng.uniform(0.98, 1.02, 6)
    ratios = ratios[pitch_hz * ratios < 0.45 * SAMPLE_RATE]
    partials = [
        rng.uniform(0.4, 1) * np.exp(-t * r**0.7 / decay_s) * np.sin(2 * np.pi * pitch_hz * r * t)
        for r in ratios
    ]
    return _fade(np.sum(partials, axis=0), 0.003)


def siren(rng: Random) -> np.ndarray:
    """A siren: a tone with harmonics that rises and falls."""
    t = _time(rng.uniform(1.2, 3.0))
    low_hz = rng.uniform(400, 800)
    wave = 0.5 - 0.5 * np.cos(2 * np.pi * t / rng.uniform(0.4, 1.4) + rng.uniform(0, 6.28))
    phase = _phase(low_hz * (1 + rng.uniform(0.4, 1.0) * wave))
    return _fade(np.sin(phase) + 0.5 * np.sin(2 * phase) + 0.3 * np.sin(3 * phase), 0.05)


def knock(rng: Random) -> np.ndarray:
    """Knocks on wood: two to five short damped resonances."""
    n_knocks, gap_s = rng.integers(2, 6), rng.uniform(0.12, 0.28)
    x = np.zeros(int((n_knocks * gap_s + 0.1) * SAMPLE_RATE))
    resonances_hz = rng.uniform((120, 350, 900), (260, 700, 1600))
    t = _time(0.12)
    for i in range(n_knocks):
        hit = sum(
            np.exp(-t * f / 7) * np.sin(2 * np.pi * f * rng.uniform(0.97, 1.03) * t) / (1 + k)
            for k, f in enumerate(resonances_hz)
        )
        hit[:64] += 0.5 * rng.standard_normal(64) * np.linspace(1, 0, 64)
        start = int((i * gap_s + rng.uniform(0, 0.02)) * SAMPLE_RATE)
        x[start : start + len(hit)] += rng.uniform(0.6, 1) * hit[: len(x) - start]
    return x


def whistle(rng: Random) -> np.ndarray:
    """A whistle: one gliding tone with vibrato and a little breath."""
    t = _time(rng.uniform(0.35, 1.2))
    start_hz, end_hz = rng.uniform(1200, 2600), rng.uniform(1200, 2600)
    glide = start_hz + (end_hz - start_hz) * (t / t[-1]) ** rng.uniform(0.5, 2)
    vibrato = 1 + 0.02 * np.sin(2 * np.pi * rng.uniform(4, 8) * t)
    breath = lfilter([1, -0.9], [1], rng.standard_normal(len(t)))
    return _fade(np.sin(_phase(glide * vibrato)) + 0.04 * breath, 0.06)


def engine(rng: Random) -> np.ndarray:
    """A running engine: irregular pulses at a low rate, and the noise between them."""
    t = _time(rng.uniform(1.5, 3.5))
    wander = lfilter([0.001], [1, -0.999], rng.standard_normal(len(t))) * 4
    phase = _phase(rng.uniform(28, 75) * (1 + 0.1 * wander))
    pulses = np.maximum(np.sin(phase), 0) ** rng.uniform(4, 10)
    rough = pulses * (1 + 0.6 * rng.standard_normal(len(t)))
    pole = rng.uniform(0.75, 0.9)
    return _fade(lfilter([1, -1], [1, -pole], rough), 0.2)


def chirp(rng: Random) -> np.ndarray:
    """A bird: a series of short falling or rising sweeps."""
    n_notes, gap_s, length_s = rng.integers(3, 8), rng.uniform(0.09, 0.2), rng.uniform(0.04, 0.08)
    top_hz, ratio = rng.uniform(3500, 6500), rng.uniform(0.6, 1.4)
    x = np.zeros(int((n_notes * gap_s + 0.02) * SAMPLE_RATE))
    t = _time(length_s)
    for i in range(n_notes):
        sweep = np.minimum(top_hz * ratio ** (t / length_s) * rng.uniform(0.97, 1.03), 7500)
        note = _fade(np.sin(_phase(sweep)), 0.01) * rng.uniform(0.6, 1)
        start = int(i * gap_s * SAMPLE_RATE)
        x[start : start + len(note)] += note[: len(x) - start]
    return x


SOUNDS: dict[str, Callable[[Random], np.ndarray]] = {
    "bell": bell,
    "chirp": chirp,
    "engine": engine,
    "knock": knock,
    "siren": siren,
    "whistle": whistle,
}


def rustle(rng: Random) -> np.ndarray:
    """A burst of coloured noise: unlabelled, there to be mistaken for something."""
    x = rng.standard_normal(int(rng.uniform(0.1, 0.8) * SAMPLE_RATE))
    pole = rng.uniform(-0.7, 0.9)
    return _fade(lfilter([1 - abs(pole)], [1, -pole], x), 0.05)


def background(rng: Random, n_samples: int) -> np.ndarray:
    """Noise of a random colour and level (RMS 0.005 to 0.02), with a hum."""
    pole = rng.uniform(0.5, 0.98)
    x = lfilter([1], [1, -pole], rng.standard_normal(n_samples))
    x /= np.sqrt(np.mean(x**2))
    hum_hz = rng.choice([50, 60]) * rng.integers(1, 4)
    x += 0.3 * np.sin(2 * np.pi * hum_hz * np.arange(n_samples) / SAMPLE_RATE)
    return x * 10 ** rng.uniform(-2.3, -1.7)


def room(rng: Random, x: np.ndarray) -> np.ndarray:
    """A sound in a room: the direct sound and a tail that decays by 60 dB in 0.1 to 0.5 s."""
    t = _time(0.4)
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / rng.uniform(0.1, 0.5))
    tail *= rng.uniform(0.1, 0.5) / np.sqrt(np.sum(tail**2))
    tail[0] = 1
    return fftconvolve(x, tail)[: len(x) + len(t) // 2]


def recording(
    rng: Random, duration_s: float, n_events: int, snr_db: tuple[float, float]
) -> tuple[np.ndarray, list[Labelled]]:
    """A recording (samples,), float32, and its events, sorted by onset.

    `snr_db` is the range of an event's level over the background's (RMS of either). Events of one
    class keep 0.3 s between them; those of different classes may overlap.
    """
    noise = background(rng, int(duration_s * SAMPLE_RATE))
    audio, level = noise.copy(), np.sqrt(np.mean(noise**2))
    events: list[Labelled] = []
    while len(events) < n_events:
        label = str(rng.choice(list(SOUNDS)))
        sound = SOUNDS[label](rng)
        length_s = len(sound) / SAMPLE_RATE
        onset_s = rng.uniform(0, duration_s - length_s)
        own = [event for event in events if event[2] == label]
        if any(a < onset_s + length_s + 0.3 and onset_s < b + 0.3 for a, b, _ in own):
            continue
        _mix(audio, room(rng, sound), onset_s, level * 10 ** (rng.uniform(*snr_db) / 20))
        events.append((onset_s, onset_s + length_s, label))
    for _ in range(round(duration_s / 5)):
        onset_s = rng.uniform(0, duration_s - 1)
        _mix(audio, room(rng, rustle(rng)), onset_s, level * 10 ** (rng.uniform(*snr_db) / 20))
    return (audio * min(1, 0.9 / np.abs(audio).max())).astype(np.float32), sorted(events)


def _mix(audio: np.ndarray, sound: np.ndarray, onset_s: float, level: float) -> None:
    start = int(onset_s * SAMPLE_RATE)
    sound = sound[: len(audio) - start] * (level / np.sqrt(np.mean(sound**2)))
    audio[start : start + len(sound)] += sound
