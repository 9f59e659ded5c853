"""Frames of a task: the HEAR API's, made once, whatever happens on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import hear_pretrainedsed as hps
from downstream import embeddings
from downstream.embeddings import (
    Frames,
    FrameSource,
    FrameSpec,
    Weights,
    find_weights,
    write_frames,
)
from downstream.tasks.task import Clip
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.options import Options
from hear_pretrainedsed.registry import get_checkpoint
from hear_pretrainedsed.rule_weights import write_release_file

NAME = "fmn04.strong"
SECONDS = (1.0, 1.0, 11.5, 0.03, 1.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    path = tmp_path_factory.mktemp("weights") / get_checkpoint(NAME).file
    write_release_file(NAME, path)
    return Weights(NAME, path, embeddings._audio_sha256(path))


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    rng = np.random.default_rng(0)
    found = []
    for i, seconds in enumerate(SECONDS):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, rng.normal(0, 0.1, round(16_000 * seconds)), 16_000)
        found.append(Clip(path.name, path, (), seconds, path.name))
    return found


@pytest.mark.filterwarnings("ignore:first load")
def test_the_frames_of_the_hear_api(weights: Weights, clips: list[Clip], tmp_path: Path) -> None:
    steps = []
    source = FrameSource(weights, clips, tmp_path / "cache", progress=lambda *n: steps.append(n))
    frames = source.frames(FrameSpec())
    model = hps.load_model(weights.path)
    for clip in clips:
        audio = torch.from_numpy(soundfile.read(clip.path, dtype="float32")[0])[None]
        expected, _ = hps.get_timestamp_embeddings(audio, model)
        got = frames.clip(clip.file)
        assert got.shape == expected.shape[1:] == (frames.n_frames(clip.file), frames.dim)
        assert np.abs(got - expected[0].numpy()).max() <= 1e-4 * expected.abs().max()
    files = [clips[2].file, clips[0].file]
    joined = frames.join(files)
    assert torch.equal(joined, torch.from_numpy(np.concatenate([frames.clip(f) for f in files])))
    assert steps[-1] == (5, 5)


@pytest.mark.filterwarnings("ignore:first load")
def test_made_once_and_again_when_something_changes(
    weights: Weights, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    FrameSource(weights, clips, cache).frames(FrameSpec())
    with monkeypatch.context() as patch:
        patch.setattr(embeddings, "load_model", lambda *_, **__: pytest.fail("made again"))
        FrameSource(weights, clips, cache).frames(FrameSpec())
    keys = {FrameSource(weights, clips, cache)._key(FrameSpec())}
    for spec in (
        FrameSpec(layer="all"),
        FrameSpec(layer=(2, 3)),
        FrameSpec(windowing="overlap"),
        FrameSpec(precision="bf16"),
        FrameSpec(concat_mel=True),
        FrameSpec(stored="float16"),
    ):
        keys.add(FrameSource(weights, clips, cache)._key(spec))
    keys.add(FrameSource(replace(weights, sha256="0" * 64), clips, cache)._key(FrameSpec()))
    keys.add(FrameSource(weights, clips[1:], cache)._key(FrameSpec()))
    soundfile.write(clips[0].path, np.zeros(16_000), 16_000)
    keys.add(FrameSource(weights, clips, cache)._key(FrameSpec()))
    assert len(keys) == 10


@pytest.mark.filterwarnings("ignore:first load")
def test_an_interrupted_run_goes_on(
    weights: Weights, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FrameSource(weights, clips, tmp_path / "whole").frames(FrameSpec())
    cache = tmp_path / "cache"
    calls = []

    def stop(n_done: int, n: int) -> None:
        calls.append(n_done)
        if n_done >= 3:
            raise KeyboardInterrupt

    source = FrameSource(weights, clips, cache, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        source.frames(FrameSpec())
    (part,) = cache.glob("*.part")
    with (part / "frames.bin").open("ab") as rows, (part / "index.jsonl").open("a") as index:
        rows.write(b"half a clip")
        index.write('{"file": "3.wav", "n_fr')
    read = []
    monkeypatch.setattr(
        embeddings, "_read", lambda group, f=embeddings._read: read.extend(group) or f(group)
    )
    frames = FrameSource(weights, clips, cache).frames(FrameSpec())
    assert [clip.file for clip in read] == ["3.wav", "4.wav"]
    assert not list(cache.glob("*.part"))
    for clip in clips:
        assert np.array_equal(frames.clip(clip.file), whole.clip(clip.file))


@pytest.mark.filterwarnings("ignore:first load")
@pytest.mark.parametrize(
    ("given", "error"),
    [
        (None, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
        (3, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")),
    ],
)
def test_fewer_windows_at_a_time_when_memory_runs_out(
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: int | None,
    error: Exception,
) -> None:
    rng = np.random.default_rng(0)
    clips = []
    for i, seconds in enumerate((10.0, 10.0, 10.0, 10.0, 10.0, 25.0)):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, rng.normal(0, 0.1, round(16_000 * seconds)), 16_000)
        clips.append(Clip(path.name, path, (), seconds, path.name))
    sizes: list[int] = []
    limit = 2

    def mel(model: SEDModel, windows: torch.Tensor) -> torch.Tensor:
        """Frames without the backbone, of few windows at a time."""
        sizes.append(len(windows))
        if len(windows) > limit:
            raise error
        return model.mel_frames(windows)

    whole, half = (
        FrameSource(weights, clips, tmp_path / name, batch_size=given) for name in ("whole", "half")
    )
    monkeypatch.setattr(SEDModel, "fast_frames", lambda model, windows: model.mel_frames(windows))
    expected = whole.frames(FrameSpec())
    monkeypatch.setattr(SEDModel, "fast_frames", mel)
    found = half.frames(FrameSpec())
    assert sizes == ([4, 2, 2, 1, 2, 1] if given is None else [3, 1, 1, 1, 1, 1, 1, 1, 1])
    for clip in clips:
        assert np.allclose(found.clip(clip.file), expected.clip(clip.file), atol=1e-5)
    limit = 0
    with pytest.raises(MemoryError, match=r"0\.wav: not enough memory, even window by window"):
        FrameSource(weights, clips, tmp_path / "none").frames(FrameSpec())


@pytest.mark.filterwarnings("ignore:first load")
def test_half_precision_that_overflows_is_refused(
    weights: Weights, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loud:
        device = torch.device("cpu")
        options = Options()

        def n_windows(self, n_samples: int) -> int:
            return 1

        def embeddings(self, audio: torch.Tensor) -> torch.Tensor:
            return torch.full((len(audio), 25, 4), 1e6)

    monkeypatch.setattr(embeddings, "load_model", lambda *_, **__: Loud())
    source = FrameSource(weights, clips[:1], tmp_path / "cache")
    with pytest.raises(ValueError, match=r"0\.wav.*float16"):
        source.frames(FrameSpec(stored="float16"))
    assert source.frames(FrameSpec()).dim == 4


def test_the_next_group_is_decoded_while_one_is_computed(
    weights: Weights, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)  # is passed when computing and decoding are there at once
    read = embeddings._read

    def read_with_the_first_computed(group: Sequence[Clip]) -> list[torch.Tensor]:
        if group[0] is clips[2]:
            both.wait(timeout=30)
        return read(group)

    class Model:
        device = torch.device("cpu")
        options = Options()
        n_calls = 0

        def n_windows(self, n_samples: int) -> int:
            return 1

        def embeddings(self, audio: torch.Tensor) -> torch.Tensor:
            if not self.n_calls:
                both.wait(timeout=30)
            self.n_calls += 1
            return audio[:, :25, None].expand(-1, -1, 4)

    model = Model()
    monkeypatch.setattr(embeddings, "_read", read_with_the_first_computed)
    monkeypatch.setattr(embeddings, "load_model", lambda *_, **__: model)
    frames = FrameSource(weights, clips, tmp_path / "cache").frames(FrameSpec())
    assert model.n_calls == 4
    for clip in clips:
        (audio,) = read([clip])
        assert np.array_equal(frames.clip(clip.file)[:, 0], audio[:25])


def test_frames_are_mapped_from_the_disk(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    arrays = {name: np.full((n, 4), n, np.float32) for name, n in (("a", 3), ("b", 5))}
    write_frames(folder, arrays)
    frames = Frames(folder)
    clip = frames.clip("b")
    assert isinstance(clip, np.memmap)
    assert Path(clip.filename) == folder / "frames.bin"
    assert np.array_equal(clip, arrays["b"])
    clip[:] = 0  # torch may write to it
    assert (folder / "frames.bin").read_bytes() == b"".join(map(bytes, arrays.values()))
    assert not isinstance(frames.join(["a"]).numpy(), np.memmap)


def test_stacks_of_layers_are_side_by_side(
    weights: Weights, clips: list[Clip], tmp_path: Path
) -> None:
    model = hps.load_model(weights.path)
    source = FrameSource(weights, clips[:1], tmp_path / "cache")
    frames = source.frames(FrameSpec(layer=(1, -1), stored="float16"))
    dims = model.backbone.block_dims
    assert frames.dim == dims[1] + dims[-1]
    assert frames.clip("0.wav").dtype == np.float16
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    assert lines == [{"file": "0.wav", "n_frames": 25, "dim": frames.dim, "dtype": "float16"}]


def test_the_weights_of_a_name(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEAR_PRETRAINEDSED_HOME", str(weights.path.parent))
    assert find_weights(NAME) == weights
    with pytest.raises(ValueError, match="fmn04.strnog.*fmn04.strong"):
        find_weights("fmn04.strnog")
