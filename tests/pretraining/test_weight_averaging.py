"""Averaged weights: PSLA's reference, whole numbers, one file after another."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hear_pretrainedsed import weight_files
from hear_pretrainedsed.weight_files import CheckpointError, Saved
from pretraining.weight_averaging import average_files, average_weights


def reference(shared: Path, what: str) -> dict[str, Tensor]:
    arrays = np.load(shared / "parity_efficient" / "psla.npz")
    start = f"wa/{what}/"
    return {k.removeprefix(start): torch.tensor(arrays[k]) for k in arrays if k.startswith(start)}


@pytest.fixture
def files(shared: Path, tmp_path: Path) -> list[Path]:
    paths = []
    for epoch in (3, 4, 5, 6):
        paths.append(tmp_path / f"epoch{epoch}.pt")
        torch.save(reference(shared, f"epoch{epoch}"), paths[-1])
    return paths


def test_the_first_counts_twice_in_psla_s_training_script(shared: Path, files: list[Path]) -> None:
    found, wanted = average_weights(files, first_twice=True), reference(shared, "result")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
    assert found["1.num_batches_tracked"] == 421


def test_a_plain_mean_counts_each_once(files: list[Path]) -> None:
    found = average_weights(files)
    biases = [torch.load(path)["0.bias"] for path in files]
    torch.testing.assert_close(found["0.bias"], torch.stack(biases).mean(dim=0))
    assert found["1.num_batches_tracked"] == 451  # the mean of 301, 401, 501, 601


def test_whole_numbers_are_cut_and_small_types_kept(tmp_path: Path) -> None:
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    big = 2**24
    torch.save({"n": torch.tensor(big + 1), "h": torch.tensor([1.0]).half()}, paths[0])
    torch.save({"n": torch.tensor(big + 6), "h": torch.tensor([2.0]).half()}, paths[1])
    found = average_weights(paths)
    assert found["n"].dtype == torch.int64 and found["n"] == big + 3
    assert found["h"].dtype == torch.float16 and found["h"] == 1.5


def test_one_file_at_a_time(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read, refs, n_alive = weight_files.read, [], []

    def counted(path: Path) -> weight_files.Contents:
        n_alive.append(sum(ref() is not None for ref in refs))
        contents = read(path)
        refs.append(weakref.ref(contents.tensors["0.weight"]))
        return contents

    monkeypatch.setattr(weight_files, "read", counted)
    average_weights(files)
    assert n_alive == [0, 1, 1, 1]  # the first alone stays


def test_a_single_file_is_itself(files: list[Path]) -> None:
    for first_twice in (False, True):
        found = average_weights(files[:1], first_twice=first_twice)
        for name, value in torch.load(files[0]).items():
            assert torch.equal(found[name], value)


def test_files_of_a_run_become_one_that_says_of_what(tmp_path: Path) -> None:
    saved = Saved("fmn04.weak", "linear", ("a", "b"), 2, origin={"recipe": "weak"})
    paths = [tmp_path / "one.safetensors", tmp_path / "two.pt"]
    for number, path in enumerate(paths):
        weight_files.write(path, {"w": torch.tensor([float(number)])}, saved)
    average_files(paths, tmp_path / "mean.safetensors", first_twice=True)
    contents = weight_files.read(tmp_path / "mean.safetensors")
    torch.testing.assert_close(contents.tensors["w"], torch.tensor([1 / 3]))
    assert contents.saved is not None and contents.saved.labels == ("a", "b")
    assert contents.saved.origin == {
        "recipe": "weak",
        "averaged": ["one.safetensors", "two.pt"],
        "averaged_first_twice": True,
    }


def test_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no files to average"):
        average_weights([])
    paths = [tmp_path / f"{name}.pt" for name in "abcd"]
    torch.save({"w": torch.zeros(2), "v": torch.zeros(2)}, paths[0])
    torch.save({"w": torch.zeros(2)}, paths[1])
    torch.save({"w": torch.zeros(3), "v": torch.zeros(2)}, paths[2])
    with pytest.raises(CheckpointError, match=r"b.pt has other tensors than .*a.pt: 1 .* is v"):
        average_weights(paths[:2])
    with pytest.raises(CheckpointError, match=r"c.pt has other tensors .* is w"):
        average_weights([paths[0], paths[2]])
    with pytest.raises(CheckpointError, match="there is no such file"):
        average_weights([paths[0], paths[3]])
    with pytest.raises(CheckpointError, match="does not say of which checkpoint"):
        average_files(paths[:1], tmp_path / "mean.pt")


def test_refuses_files_of_two_runs(tmp_path: Path) -> None:
    paths = [tmp_path / "one.pt", tmp_path / "two.pt"]
    for path, label in zip(paths, "ab", strict=True):
        weight_files.write(path, {"w": torch.zeros(1)}, Saved("fmn04.weak", labels=(label,)))
    with pytest.raises(CheckpointError, match=r"two.pt has another labels than .*one.pt"):
        average_files(paths, tmp_path / "mean.pt")
    assert not (tmp_path / "mean.pt").exists()
