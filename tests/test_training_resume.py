"""What a killed or ended training has left in its folder, and a second call that finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hear_pretrainedsed.training.learner import LAST
from hear_pretrainedsed.training.pieces import Recording
from tests.test_training_fit import PLAN, one_thread, run  # noqa: F401
from tests.tiny_model import tones


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    return tones(tmp_path_factory.mktemp("tones"), (31.0, 4.0))


def killed(line: str) -> None:
    """Told by the third step."""
    if line.startswith("step 3 "):
        raise KeyboardInterrupt


def test_a_smaller_batch_size_holds_in_a_run_that_goes_on(recordings, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(recordings, tmp_path, micro_pieces=4, save_every_steps=1, tell=killed)
    _, fitted = run(recordings, tmp_path, micro_pieces=2)
    assert (fitted.n_steps, fitted.micro_pieces) == (PLAN.n_steps, 2)


def test_damaged_files_are_named_and_left_as_they_are(recordings, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(recordings, tmp_path, save_every_steps=1, tell=killed)
    refused(recordings, tmp_path / LAST, 0, 1000, -100)
    run(recordings, tmp_path)
    refused(recordings, tmp_path / "weights.pt", 0, 500)
    refused(recordings, tmp_path / "fitted.json", 0, 5)
    (tmp_path / "fitted.json").unlink()
    assert run(recordings, tmp_path)[1].n_steps == PLAN.n_steps


def refused(recordings: list[Recording], path: Path, *lengths: int) -> None:
    """A file that was cut off at these lengths, in one line; it is then as it was."""
    whole = path.read_bytes()
    for length in lengths:
        path.write_bytes(whole[:length])
        before = {one.name: one.read_bytes() for one in path.parent.iterdir()}
        with pytest.raises(ValueError, match=r"remove it and the run begins again") as error:
            run(recordings, path.parent)
        assert str(error.value).startswith(f"{path} is damaged (") and "\n" not in str(error.value)
        assert {one.name: one.read_bytes() for one in path.parent.iterdir()} == before
    path.write_bytes(whole)
