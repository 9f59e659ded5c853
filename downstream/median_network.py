"""Running median by a sorting network: whole arrays are compared, never single values.

A network (Batcher's merge exchange: Knuth, The Art of Computer Programming 3, section 5.2.2,
algorithm M) sorts by comparisons whose places do not depend on the values. Those that the wanted
rank does not depend on are left out.
"""

from __future__ import annotations

from functools import cache

import numpy as np

Exchange = tuple[int, int, bool, bool]
"""Two places, and whether the lower and the higher value are needed any further."""


_CELLS_AT_ONCE = 16_384  # of a block of columns, so that all its shifted copies stay in the cache


def running_median(values: np.ndarray, size: int) -> np.ndarray:
    """SciPy's running median of values (frames, columns) without NaN, over `size` frames.

    Edges are reflected, as often as needed; an even window reaches one frame further back than
    ahead and takes the upper of its two middle values. (SciPy 1.17's own results differ from that
    in some clips shorter than half the window; these are what its rule says.)
    """
    n_frames, rank = len(values), size // 2
    edges = ((rank, size - 1 - rank), (0, 0))
    padded = np.pad(values, edges, mode="symmetric")
    out = np.empty_like(values)
    n_columns = max(1, _CELLS_AT_ONCE // n_frames)
    for column in range(0, values.shape[1], n_columns):
        block = slice(column, column + n_columns)
        part = np.ascontiguousarray(padded[:, block])
        places = [part[i : i + n_frames] for i in range(size)]
        for i, j, low, high in network(size, rank):
            a, b = places[i], places[j]
            if low:
                places[i] = np.minimum(a, b)
            if high:
                places[j] = np.maximum(a, b)
        out[:, block] = places[rank]
    return out


@cache
def network(size: int, rank: int) -> tuple[Exchange, ...]:
    """The exchanges after which the place `rank` of `size` places holds the value of that rank."""
    needed = {rank}
    kept: list[Exchange] = []
    for i, j in reversed(_merge_exchange(size)):
        if i in needed or j in needed:
            kept.append((i, j, i in needed, j in needed))
            needed |= {i, j}
    return tuple(reversed(kept))


def _merge_exchange(size: int) -> list[tuple[int, int]]:
    pairs = []
    top = 1 << (size - 1).bit_length() >> 1
    p = top
    while p:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(size - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return pairs
