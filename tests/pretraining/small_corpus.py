"""Small corpora of made-up sounds, and the label files that importers read."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import soundfile

from pretraining.corpus import Corpus, open_corpus
from pretraining.corpus_writer import write_corpus
from pretraining.importers import Listing, Request, list_clips

LABELS = ("Bark", "Bell", "Speech")
MIDS = ("/m/05tny_", "/m/0395lw", "/m/09x0r")
SUBTYPES = {"WAV": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}

StrongRow = tuple[str, float, float, str]


def sound(seconds: float, seed: int = 0, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    """Noise (samples, channels)."""
    rng = np.random.default_rng(seed)
    shape = (round(seconds * rate), channels)
    return (0.1 * rng.standard_normal(shape)).clip(-0.9, 0.9).astype(np.float32)


def encoded(audio: np.ndarray, kind: str = "FLAC", rate: int = 16_000) -> bytes:
    """Audio in a format of libsndfile's."""
    out = io.BytesIO()
    soundfile.write(out, audio, rate, format=kind, subtype=SUBTYPES[kind])
    return out.getvalue()


def write_classes(folder: Path) -> Path:
    """A class list as AudioSet's."""
    rows = (f'{i},{m},"{n}"\n' for i, (m, n) in enumerate(zip(MIDS, LABELS, strict=True)))
    path = folder / "class_labels_indices.csv"
    path.write_text("index,mid,display_name\n" + "".join(rows))
    return path


def write_strong(path: Path, rows: Iterable[StrongRow]) -> Path:
    """A table of events as AudioSet Strong's."""
    lines = (f"{name}\t{a}\t{b}\t{label}\n" for name, a, b, label in rows)
    heading = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
    path.write_text(heading + "".join(lines))
    return path


def write_weak(path: Path, rows: Mapping[str, str]) -> Path:
    """A table of clip labels as AudioSet's, of clips from 30 s on."""
    lines = (f'{name}, 30.000, 40.000, "{labels}"\n' for name, labels in rows.items())
    path.write_text("# Segments csv\n# YTID, start_seconds, end_seconds, labels\n" + "".join(lines))
    return path


def rows_of(listing: Listing) -> dict[str, tuple]:
    """Events and clip labels of a listing's clips, by name."""
    rows = (listing.index.row(i) for i in range(len(listing.index)))
    return {row.name: (row.events, row.weak) for row in rows}


def small_listing(folder: Path, n_clips: int = 5, seconds: float = 0.5) -> Listing:
    """A listing of clips with an event each; clip i has class i % 3."""
    audio = folder / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n_clips):
        (audio / f"clip{i}_0.flac").write_bytes(encoded(sound(seconds, seed=i)))
        rows.append((f"clip{i}_0", 0.1, 0.2 + 0.01 * i, MIDS[i % 3]))
    strong = write_strong(folder / "strong.tsv", rows)
    classes = str(write_classes(folder))
    return list_clips("folder", Request(audio=(audio,), strong=(strong,), classes=classes))


def small_corpus(folder: Path, n_clips: int = 5, seconds: float = 0.5, **options: int) -> Corpus:
    """The corpus of `small_listing`."""
    listing = small_listing(folder, n_clips, seconds)
    return open_corpus(write_corpus(listing, folder / "corpus", **options))
