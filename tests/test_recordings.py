"""recordings.py: names that never collide, broken files skipped, memory that runs out."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hear_pretrainedsed import recordings
from hear_pretrainedsed.audio import AudioError, read_audio
from hear_pretrainedsed.model import Options, SEDModel, build_model
from hear_pretrainedsed.recordings import Run, find_recordings


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def stems(paths: list[Path]) -> list[str]:
    return [recording.stem for recording in find_recordings(paths)]


def test_names_and_stems_of_files_and_folders(tmp_path) -> None:
    touch(tmp_path, "in/a.wav", "in/sub/b.flac", "c.ogg")
    found = find_recordings([tmp_path / "in", tmp_path / "c.ogg"])
    assert [recording.name for recording in found] == ["a.wav", "sub/b.flac", "c.ogg"]
    assert [recording.stem for recording in found] == ["a", "sub/b", "c"]


def test_one_stem_in_several_inputs(tmp_path) -> None:
    paths = touch(tmp_path, "x/a.wav", "y/a.wav", "z/a.flac", "w/a.wav", "x/A.wav")
    found = find_recordings(paths)
    assert [recording.stem for recording in found] == ["a", "a.wav", "a.flac", "a.wav-2", "A.wav-3"]
    assert [recording.name for recording in found][:3] == ["a.wav", str(paths[1]), "a.flac"]


def test_names_differ_where_a_path_is_another_files_name(tmp_path, monkeypatch) -> None:
    touch(tmp_path, "sub/a.wav", "a.wav")
    monkeypatch.chdir(tmp_path)
    found = find_recordings([Path("sub/a.wav"), Path("a.wav")])
    assert [recording.name for recording in found] == ["a.wav", str(Path.cwd() / "a.wav")]


def test_stems_leave_room_for_endings(tmp_path) -> None:
    touch(tmp_path, *(f"in/{'x' * 240}{i}.wav" for i in range(3)), f"in/{'ü' * 120}.wav")
    found = stems([tmp_path / "in"])
    assert len(set(found)) == 4
    for stem in found:
        assert len(os.fsencode(f".{stem}.embeddings.json.4194304.part")) <= 255


def test_a_file_given_twice_is_taken_once(tmp_path) -> None:
    (path,) = touch(tmp_path, "in/a.wav")
    assert stems([path, tmp_path / "in", tmp_path / "in" / ".." / "in" / "a.wav"]) == ["a"]


PARTS = st.sampled_from(["a", "A", "b", "a-2", "a.wav", "a.wav-2"])


@given(st.lists(st.tuples(PARTS, PARTS, st.sampled_from([".wav", ".flac"])), min_size=1))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_outputs_never_overwrite_each_other(tmp_path, names) -> None:
    paths = touch(tmp_path, *{f"{folder}/{stem}{ending}" for folder, stem, ending in names})
    found = stems(paths)
    assert len({stem.casefold() for stem in found}) == len(paths)
    assert len({recording.name for recording in find_recordings(paths)}) == len(paths)
    assert not any(os.path.isabs(stem) or ".." in Path(stem).parts for stem in found)


def test_what_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no such file or folder: .*typo\.wav"):
        find_recordings([*touch(tmp_path, "a.wav"), tmp_path / "typo.wav"])


# ---- the run


@pytest.fixture
def model() -> SEDModel:
    return build_model("frame_mn06", options=Options(batch_size=8))


def write_noise(path: Path, duration_s: float) -> Path:
    samples = np.random.default_rng(0).standard_normal(int(duration_s * 16_000)) * 0.1
    soundfile.write(path, samples, 16_000)
    return path


def test_broken_files_are_said_and_skipped(tmp_path, model, capfd) -> None:
    touch(tmp_path, "b.wav")
    write_noise(tmp_path / "a.wav", 0.1)
    write_noise(tmp_path / "c.wav", 0.2)
    done = []
    run = Run(model, find_recordings([tmp_path]), shows_bar=True)
    assert run.for_each(lambda recording, audio: done.append((recording.name, len(audio)))) == 1
    assert done == [("a.wav", 1600), ("c.wav", 3200)]
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"hear-pretrainedsed: {tmp_path / 'b.wav'}: empty file (0 bytes)",
        "hear-pretrainedsed: 1 of 3 files could not be processed",
    ]


def test_samples_that_the_model_makes_no_numbers_of_are_said(tmp_path, model, capfd) -> None:
    samples = np.random.default_rng(0).standard_normal(1600) * 1e30
    soundfile.write(tmp_path / "a.wav", samples, 16_000, "FLOAT")
    write_noise(tmp_path / "b.wav", 0.1)
    done = []
    run = Run(model, find_recordings([tmp_path]), shows_bar=False)

    def work(recording, audio) -> None:
        run.compute(model.embeddings, recording, audio)
        done.append(recording.name)

    assert run.for_each(work) == 1
    assert done == ["b.wav"]
    first = capfd.readouterr().err.splitlines()[0]
    assert "a.wav: the model computes NaN or Inf from it; its samples reach " in first


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_recording_that_memory_does_not_hold_is_said_and_skipped(
    tmp_path, model, capfd, monkeypatch, error
) -> None:
    for name in ("a.wav", "b.wav"):
        write_noise(tmp_path / name, 0.1)

    def read(path: Path, rate: int) -> torch.Tensor:
        if path.name == "a.wav":
            raise error
        return read_audio(path, rate)

    monkeypatch.setattr(recordings, "read_audio", read)
    done = []
    run = Run(model, find_recordings([tmp_path]), shows_bar=False)
    assert run.for_each(lambda recording, audio: done.append(recording.name)) == 1
    assert done == ["b.wav"]
    assert "a.wav: not enough memory for it as a whole" in capfd.readouterr().err


def test_decoders_do_not_write_to_stderr(tmp_path, model, capfd) -> None:
    (tmp_path / "a.mp3").write_bytes(b"\xff\xfb\x90\x64" + bytes(5000))
    run = Run(model, find_recordings([tmp_path]), shows_bar=False)
    assert run.for_each(lambda recording, audio: None) == 1
    assert len(capfd.readouterr().err.splitlines()) == 1


def failing_above(model: SEDModel, limit: int, error: Exception) -> list[int]:
    """Make the model's front end fail for more than `limit` windows; the sizes it saw."""
    sizes = []

    def check(module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > limit:
            raise error

    model.frontend.register_forward_pre_hook(check)
    return sizes


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_the_batch_size_is_halved_when_memory_runs_out(tmp_path, model, error) -> None:
    (recording,) = find_recordings([write_noise(tmp_path / "a.wav", 0.1)])
    audio = torch.randn(30 * 16_000, generator=torch.Generator().manual_seed(0)) * 0.1

    def specs(x: torch.Tensor) -> torch.Tensor:  # as many windows, without the backbone
        return model._over_windows(x, model.mel_frames)

    whole = specs(audio[None])[0].numpy()
    run = Run(model, [recording], shows_bar=False)
    sizes = failing_above(model, 1, error)
    found = run.compute(specs, recording, audio)
    assert sizes == [3, 1, 1, 1]
    assert model.options.batch_size == 1
    np.testing.assert_allclose(found, whole, atol=1e-4 * np.abs(whole).max())


def test_not_enough_memory_for_one_window_is_told(tmp_path, model) -> None:
    (recording,) = find_recordings([write_noise(tmp_path / "a.wav", 0.1)])
    run = Run(model, [recording], shows_bar=False)
    failing_above(model, 0, MemoryError())
    with pytest.raises(AudioError, match=r"a\.wav: not enough memory"):
        run.compute(model.embeddings, recording, torch.zeros(16_000))


def test_other_errors_are_not_swallowed(tmp_path, model) -> None:
    (recording,) = find_recordings([write_noise(tmp_path / "a.wav", 0.1)])
    run = Run(model, [recording], shows_bar=False)
    failing_above(model, 0, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        run.for_each(lambda recording, audio: run.compute(model.embeddings, recording, audio))


def test_the_bar_moves_with_the_windows(tmp_path, model, monkeypatch) -> None:
    paths = [write_noise(tmp_path / name, 25.0) for name in ("a.wav", "b[red].wav")]
    monkeypatch.setattr(model, "options", Options(batch_size=1))
    run = Run(model, find_recordings(paths), shows_bar=False)
    places = []

    def work(recording, audio) -> None:
        run.compute(lambda x: places.append(run._bar.tasks[0].completed) or x, recording, audio)
        run.compute(lambda x: model._over_windows(x, model.mel_frames), recording, audio)
        places.append(run._bar.tasks[0].completed)

    assert run.for_each(work) == 0
    assert places == pytest.approx([0, 1, 1, 2])
