"""Checkpoints as encoders of X-ARES, by its own checker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import hear_pretrainedsed as hps
from hear_pretrainedsed.registry import CHECKPOINTS
from hear_pretrainedsed.xares import encoder
from tests.test_hear import ARCHITECTURES, slow_if_large

NAME = "fmn04.strong"


@pytest.mark.hear
@pytest.mark.filterwarnings("ignore:first load")
@pytest.mark.parametrize("name", slow_if_large(ARCHITECTURES))
def test_the_checker_of_xares(
    name: str, release_file: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    checker = pytest.importorskip("xares.audio_encoder_checker")
    made = encoder(name)(model_file_path=release_file(name))
    assert checker.check_audio_encoder(made), capfd.readouterr().err


@pytest.mark.filterwarnings("ignore:first load")
def test_frames_of_padded_batches(release_file: Callable[[str], Path]) -> None:
    made = encoder(NAME)(model_file_path=release_file(NAME))
    assert (made.sampling_rate, made.hop_size_in_ms) == (16_000, 40)
    audio = torch.randn(2, 50_000) * 0.1
    audio[1, 20_000:] = 0  # the shorter clip of a batch is filled up
    frames = made(audio)
    assert frames.shape == (2, 78, made.output_dim)
    expected, _ = hps.get_timestamp_embeddings(audio, made.model)
    assert torch.equal(frames, expected)
    # another batch size is another order of sums
    assert (made(audio[0]) - frames[:1]).abs().max() < 1e-4 * frames.abs().max()


def test_a_class_a_checkpoint() -> None:
    names = {encoder(name).__name__ for name in CHECKPOINTS}
    assert len(names) == len(CHECKPOINTS)
    assert all(name.endswith("Encoder") and name.isidentifier() for name in names)
    with pytest.raises(ValueError, match=r"beats\.strnog.*beats\.strong"):
        encoder("beats.strnog")
