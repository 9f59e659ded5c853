from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from downstream import median_network
from downstream.median_network import network, running_median


def windows(values: np.ndarray, size: int) -> np.ndarray:
    """The window of each frame (frames, columns, size)."""
    edges = ((size // 2, size - 1 - size // 2), (0, 0))
    padded = np.pad(values, edges, mode="symmetric")
    return np.lib.stride_tricks.sliding_window_view(padded, size, axis=0)


@pytest.mark.parametrize("size", range(1, 30))
@pytest.mark.parametrize("kind", ["f4", "f8", "f2"])
def test_equal_to_the_sorted_windows_and_to_scipy(size: int, kind: str) -> None:
    rng = np.random.default_rng(size)
    for n_frames in (1, 2, 3, 10, 70):
        values = np.round(rng.standard_normal((n_frames, 5)), 1).astype(kind)
        values[rng.random(values.shape) < 0.1] = -np.inf
        found = running_median(values, size)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, np.sort(windows(values, size))[..., size // 2])
        if n_frames >= size and kind != "f2":
            np.testing.assert_array_equal(found, ndimage.median_filter(values, (size, 1)))


def test_audioset_strongs_filter_is_scipys() -> None:
    values = np.random.default_rng(0).standard_normal((250, 447)).astype(np.float32)
    wanted = ndimage.median_filter(values, size=(9, 1))
    np.testing.assert_array_equal(running_median(values, 9), wanted)


@pytest.mark.parametrize("cells", [1, 100, 1_000_000])
def test_equal_in_blocks_of_any_size(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random((40, 13))
    whole = running_median(values, 7)
    monkeypatch.setattr(median_network, "_CELLS_AT_ONCE", cells)
    np.testing.assert_array_equal(running_median(values, 7), whole)


def test_exchanges_that_do_not_matter_are_left_out() -> None:
    assert len(network(9, 4)) <= 22  # 26 sort nine values, 19 are the fewest that find the median
    assert sum(low + high for *_, low, high in network(9, 4)) < 2 * len(network(9, 4))
    assert network(1, 0) == ()
