"""The benchmark of protocol `hear`: its clock runs while our frames are read from the disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import hear_protocol
from downstream.embeddings import Frames, FrameSource, FrameSpec, write_frames
from downstream.protocols.base import Settings


def test_frames_are_opened_and_read_inside_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_frames(tmp_path / "frames", {"a.wav": array})
    now = 0.0
    monkeypatch.setattr(hear_protocol.time, "perf_counter", lambda: now)

    class Slow(Frames):
        def __init__(self, folder: Path) -> None:
            nonlocal now
            now += 100.0
            super().__init__(folder)

        def clip(self, file: str) -> np.ndarray:
            nonlocal now
            now += 10.0
            return super().clip(file)

    def probe(task: object, source: FrameSource, settings: Settings, seed: int) -> object:
        frames = source.frames(FrameSpec())
        assert isinstance(frames.clip("a.wav"), np.memmap)
        assert np.array_equal(frames.join(["a.wav"]), array)
        return None

    monkeypatch.setattr(hear_protocol, "Frames", Slow)
    monkeypatch.setattr(hear_protocol.hear, "probe", probe)
    monkeypatch.setattr(hear_protocol, "score_task", lambda *_: {})
    task = SimpleNamespace(name="t")
    assert hear_protocol.ours(task, tmp_path / "frames", 1, "fp32") == (120.0, 0.0)
