"""Clips: decoding from bytes, crops and padding with their labels, broken ones."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from hear_pretrainedsed.audio import AudioError
from pretraining.clip_index import ClipIndex, Labelled
from pretraining.clips import Clips, Draw, broken_line, crop_start, decode, duration_s
from pretraining.corpus import CorpusError, Record, open_corpus
from pretraining.encoding import encode
from pretraining.sampling import ClipOrder, in_order
from tests.pretraining.small_corpus import encoded, small_corpus, sound

N = 160_000


@dataclass
class FakeCorpus:
    """Records in memory, as a corpus."""

    records: list[Record]
    labels: tuple[str, ...] = ("a", "b")
    folder: Path = Path("somewhere")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Record:
        return self.records[number]

    @property
    def index(self) -> ClipIndex:
        return ClipIndex.of(Labelled(r.name, r.events, r.weak) for r in self.records)

    @property
    def names(self) -> list[str]:
        return [record.name for record in self.records]

    @property
    def has_events(self) -> bool:
        return all(record.events is not None for record in self.records)


@dataclass(frozen=True)
class Logits:
    """Pseudo labels of a shape."""

    shape: tuple[int, int] = (2, 250)

    def row(self, name: str) -> np.ndarray:
        rows = np.arange(np.prod(self.shape)).reshape(self.shape) % 7 - 3
        return rows.astype(np.float16)


def clip(audio: np.ndarray, events: tuple = (), name: str = "x", kind: str = "WAV") -> Record:
    return Record(name, encoded(audio, kind), events, (1,))


@pytest.mark.parametrize(
    ("kind", "gap"), [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.2), ("MP3", 0.2)]
)
def test_formats_are_decoded(kind: str, gap: float) -> None:
    t = np.arange(3 * 16_000) / 16_000
    audio = (0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    found = decode(encoded(audio, kind))
    assert found.dtype == np.float32 and len(found) == len(audio)
    assert np.abs(found - audio)[2000:-2000].max() < gap
    assert duration_s(encoded(audio, kind)) == 3.0


def test_the_first_channel_is_taken() -> None:
    audio = sound(1, channels=2)
    np.testing.assert_allclose(decode(encoded(audio, "WAV")), audio[:, 0], atol=1e-4)


def test_other_rates_are_resampled() -> None:
    t = np.arange(2 * 44_100) / 44_100
    audio = np.sin(2 * np.pi * 440 * t).astype(np.float32) * 0.5
    found = decode(encoded(audio, "FLAC", rate=44_100))
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)
    assert len(found) == 32_000
    assert np.abs(found - wanted)[500:-500].max() < 1e-3


@pytest.mark.parametrize("data", [b"", b"no audio", bytes(4000)])
def test_what_is_no_audio_is_one_line(data: bytes) -> None:
    for function in (decode, duration_s):
        with pytest.raises(AudioError, match="^not audio, or damaged: [^\n]*$"):
            function(data)


def test_damaged_audio_is_an_error() -> None:
    data = encoded(sound(10), "FLAC")
    with pytest.raises(AudioError):
        decode(data[: len(data) // 2])
    with pytest.raises(AudioError, match="states 160000 samples and holds"):
        data = encoded(sound(10), "MP3")
        decode(data[: len(data) // 2])
    out = io.BytesIO()
    soundfile.write(out, np.full(100, np.nan, np.float32), 16_000, "FLOAT", format="WAV")
    with pytest.raises(AudioError, match="NaN or Inf"):
        decode(out.getvalue())


@pytest.mark.parametrize("order", [1, -1], ids=["guessed-too-short", "guessed-too-long"])
def test_an_mp3_that_states_no_length_is_decoded_whole(order: int) -> None:
    samples = np.concatenate([sound(6)[:, 0], np.zeros(96_000, np.float32)][::order])
    options = dict(format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE")
    with soundfile.SoundFile(out := io.BytesIO(), "w", 16_000, 1, **options) as file:
        file.write(samples)
    data = out.getvalue()
    data = data[data.index(data[:2], 4) :]  # without the first frame, which states it
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert abs(file.frames - len(samples)) > 16_000
    assert 0 <= len(decode(data)) - len(samples) < 5000
    assert duration_s(data) == len(decode(data)) / 16_000


def test_streams_one_after_the_other_are_an_error() -> None:
    for kind in ("OGG", "MP3"):
        data, other = (encoded(sound(1, seed=seed), kind) for seed in (0, 1))
        with pytest.raises(AudioError, match=f"several {kind} streams, one after the other"):
            decode(data + other)


@pytest.mark.parametrize("n_s", [1, 700])
def test_a_stream_of_unknown_length_is_decoded(n_s: int) -> None:
    samples = np.zeros((n_s * 16_000, 1), np.float32)
    samples[-16_000:] = sound(1)[:, :1]
    data = bytearray(encoded(samples, "FLAC"))
    assert data[:4] == b"fLaC" and data[4] & 0x7F == 0  # STREAMINFO
    data[21] &= 0xF0  # its number of samples: 36 bits
    data[22:26] = bytes(4)
    assert len(decode(bytes(data))) == n_s * 16_000
    assert duration_s(bytes(data)) == n_s


def test_short_clips_are_followed_by_silence() -> None:
    audio = sound(3)[:, 0]
    row = Clips(FakeCorpus([clip(audio, ((1.0, 2.0, 0), (2.5, 9.0, 1)))]))[Draw(0, 5)]
    np.testing.assert_allclose(row.audio[:48_000], audio, atol=1e-4)
    assert not row.audio[48_000:].any() and row.audio.shape == (N,)
    assert row.targets[:, 0].nonzero().ravel().tolist() == list(range(25, 50))
    assert row.weak.tolist() == [0, 1] and row.pseudo is None and row.name == "x"


@given(st.integers(0, 2**63 - 1), st.sampled_from([10.5, 12.0, 25.0]))
def test_events_are_cropped_with_the_audio(seed: int, seconds: float) -> None:
    n_samples = round(seconds * 16_000)
    audio = np.linspace(-0.9, 0.9, n_samples).astype(np.float32)  # every sample says where it was
    events = ((0.3, 2.0, 0), (9.5, 11.0, 1), (4.0, 5.5, 1))
    row = Clips(FakeCorpus([clip(audio, events)]))[Draw(0, seed)]
    start = crop_start(n_samples, seed)
    assert 0 <= start <= n_samples - N
    np.testing.assert_allclose(row.audio, audio[start : start + N], atol=1e-4)
    shifted = [(a - start / 16_000, b - start / 16_000, c) for a, b, c in events]
    np.testing.assert_array_equal(row.targets, encode(shifted, 2))


def test_crops_are_drawn_from_everywhere() -> None:
    starts = [crop_start(N + 9, seed) for seed in range(400)]
    assert set(starts) == set(range(10))
    assert crop_start(N, 1) == crop_start(100, 1) == 0


def test_a_draw_gives_the_same_again() -> None:
    clips = Clips(FakeCorpus([clip(sound(12)[:, 0])]))
    assert torch.equal(clips[Draw(0, 3)].audio, clips[Draw(0, 3)].audio)
    assert not torch.equal(clips[Draw(0, 3)].audio, clips[Draw(0, 4)].audio)


def test_pseudo_labels_are_scores_of_the_first_10_s() -> None:
    audio = sound(12)[:, 0]
    row = Clips(FakeCorpus([clip(audio)]), Logits())[Draw(0, 3)]
    np.testing.assert_allclose(row.audio, audio[:N], atol=1e-4)
    wanted = torch.from_numpy(Logits().row("x").astype(np.float32)).sigmoid().T
    assert torch.equal(row.pseudo, wanted)
    with pytest.raises(ValueError, match=r"'x' have the shape \(3, 250\); .* is \(2, 250\)"):
        Clips(FakeCorpus([clip(audio)]), Logits((3, 250)))[Draw(0, 3)]


def test_batches_keep_rows_together() -> None:
    records = [clip(sound(1, i)[:, 0], ((0.0, 0.1, i),), f"{i}") for i in range(2)]
    clips = Clips(FakeCorpus(records), Logits())
    batch = clips.batch([clips[Draw(i, 0)] for i in (1, 0)])
    assert batch.files == ("1", "0") and batch.audio.shape == (2, N)
    assert batch.targets.shape == batch.pseudo.shape == (2, 250, 2)
    assert batch.targets[0, 0].tolist() == [0, 1] and batch.weak.shape == (2, 2)
    empty = clips.batch([])
    assert empty.audio.shape == (0, N) and empty.targets.shape == (0, 250, 2)
    assert empty.weak.shape == (0, 2) and empty.pseudo.shape == (0, 250, 2)


def test_clips_with_labels_of_the_whole_alone_have_no_targets() -> None:
    clips = Clips(FakeCorpus([clip(sound(1)[:, 0], None)]))
    assert clips.batch([clips[Draw(0, 0)]]).targets is None


def test_a_broken_clip_is_replaced_and_named() -> None:
    records = [clip(sound(1, i)[:, 0], (), f"{i}") for i in range(4)]
    records[1] = Record("1", b"broken", (), ())
    clips = Clips(FakeCorpus(records))
    row = clips[Draw(1, 9)]
    assert row.name != "1" and row.broken[0][0] == "1" and "not audio" in row.broken[0][1]
    assert clips[Draw(1, 9)].name == row.name
    assert {clips[Draw(1, seed)].name for seed in range(60)} == {"0", "2", "3"}
    weighted = replace(clips, weights=np.array([0.0, 5.0, 0.0, 1.0]))
    assert {weighted[Draw(1, seed)].name for seed in range(20)} == {"3"}
    order = ClipOrder(clips, 2, seed=0, weights=weighted.weights)
    assert order.name(Draw(1, 9)) == "3 (for 1, which is broken)"
    assert order.name(Draw(3, 9)) == "3"
    left_out = replace(clips, replaces=False)[Draw(1, 9)]
    assert left_out.audio is None and len(clips.batch([left_out, clips[Draw(0, 0)]])) == 1


def test_a_few_broken_clips_are_reported_and_more_stop_the_run() -> None:
    records = [clip(sound(0.1, i)[:, 0], (), f"{i}") for i in range(3)] * 67
    records = [replace(record, name=f"{i}") for i, record in enumerate(records)]  # 201: 2 may be
    for i in (7, 90):
        records[i] = Record(f"{i}", b"broken", (), ())
    order = ClipOrder(Clips(FakeCorpus(records)), 20, seed=1)
    batches = list(order.loader(0, order.steps_per_epoch))
    assert [len(batch) for batch in batches] == [20] * 10 + [1]
    assert sorted(order.broken) == ["7", "90"]
    assert not {"7", "90"} & {name for batch in batches for name in batch.files}
    records[33] = Record("33", b"broken", (), ())
    order = ClipOrder(Clips(FakeCorpus(records)), 20, seed=1)
    with pytest.raises(CorpusError, match="more than 1% .*: 3 clips cannot be decoded: ") as caught:
        list(order.loader(0, order.steps_per_epoch))
    assert all(name in str(caught.value) for name in ("7", "90", "33"))


def test_a_line_on_broken_clips_names_the_first_ones() -> None:
    assert broken_line({"a": "no\nWAV"}) == "1 clip cannot be decoded: a (the first: no WAV)"
    line = broken_line({f"{i}": "damaged" for i in range(12)})
    names = ", ".join(map(str, range(10)))
    assert line == f"12 clips cannot be decoded: {names} and 2 more (the first: damaged)"


def test_a_sweep_has_every_clip_once_and_leaves_out_broken_ones() -> None:
    records = [clip(sound(0.1, i)[:, 0], (), f"{i}") for i in range(120)]
    records[50] = Record("50", b"broken", (), ())
    broken: dict[str, str] = {}
    batches = list(in_order(Clips(FakeCorpus(records)), 32, first_clip=10, broken=broken))
    names = [name for batch in batches for name in batch.files]
    assert names == [f"{i}" for i in range(10, 120) if i != 50] and list(broken) == ["50"]
    halves = [
        [b.files for b in in_order(Clips(FakeCorpus(records)), 32, rank=r, world=2)] for r in (0, 1)
    ]
    both = [name for pair in zip(*halves, strict=True) for part in pair for name in part]
    assert both == [f"{i}" for i in range(120) if i != 50]


@pytest.mark.slow
def test_workers_give_what_one_process_does(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, n_clips=6, seconds=10.5, shard_clips=4)
    corpus[0]  # opened before the workers are
    order = ClipOrder(Clips(corpus), 3, seed=2)
    alone, workers = (list(order.loader(1, 5, n_workers=n)) for n in (0, 2))
    assert len(alone) == len(workers) == 4
    for one, other in zip(alone, workers, strict=True):
        assert one.files == other.files and torch.equal(one.audio, other.audio)
        assert torch.equal(one.targets, other.targets)


@pytest.mark.slow
def test_a_workers_error_is_one_line(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, shard_clips=2)
    shard = corpus.folder / corpus.manifest["shards"][1]["file"]
    data = bytearray(shard.read_bytes())
    data[data.index(corpus[2].audio) + 1000] ^= 1
    shard.write_bytes(data)
    order = ClipOrder(Clips(open_corpus(corpus.folder)), 5, seed=2)
    with pytest.raises(CorpusError, match="clip 2 .* cannot be read from ") as caught:
        list(order.loader(0, 1, n_workers=1))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(corpus.folder))

    class Nothing:
        def row(self, name: str) -> np.ndarray:
            raise ValueError("no pseudo labels for it")

    order = ClipOrder(Clips(small_corpus(tmp_path / "b"), Nothing()), 5, seed=2)
    with pytest.raises(ValueError, match="^no pseudo labels for it$"):
        list(order.loader(0, 1, n_workers=1))


def test_two_processes_load_one_epoch_and_a_run_goes_on_mid_epoch() -> None:
    records = [clip(sound(0.05, i)[:, 0], (), f"{i}") for i in range(23)]
    order = ClipOrder(Clips(FakeCorpus(records)), 6, seed=3)
    whole = [batch.files for batch in order.loader(0, 8)]
    ranks = [[b.files for b in order.loader(0, 8, rank=r, world=2)] for r in (0, 1)]
    for files, one, other in zip(whole, *ranks, strict=True):
        assert files == one + other
    first_epoch = [name for part in ranks for files in part[:4] for name in files]
    assert sorted(first_epoch) == sorted(f"{i}" for i in range(23))
    again = ClipOrder(Clips(FakeCorpus(records)), 6, seed=3)
    assert [batch.files for batch in again.loader(2, 8)] == whole[2:]
