"""How HEAR divides recordings: the recipes of hear-preprocess 2021.1.1.

They depend on file stems alone, so that whoever has the recordings gets HEAR's own splits. The
folds of the HEAR release's archives follow from `kfold`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable

import numpy as np

_SHARE = 0.2  # of valid, and of test


def trainvaltest(stems: Iterable[str]) -> dict[str, list[str]]:
    """File stems by split: the first fifth of the shuffled ones valid, the next test, else train.

    The order within a split is that of the shuffled stems.
    """
    order = _shuffled(stems, "split_train_test_val")
    n = round(_SHARE * len(order))
    return {"train": order[2 * n :], "valid": order[:n], "test": order[n : 2 * n]}


def kfold(stems: Iterable[str], n_folds: int) -> dict[str, list[str]]:
    """File stems by fold (fold00, fold01, ...); lengths differ by one at most."""
    order = np.array(_shuffled(stems, "split_k_folds"), dtype=object)
    parts = np.array_split(order, n_folds)
    return {f"fold{i:02d}": part.tolist() for i, part in enumerate(parts)}


def subsample(stems: Iterable[str], split: str, n_kept: int) -> list[str]:
    """`n_kept` of a split's stems, drawn without replacement; which ones depends on its name."""
    order = sorted(stems)
    name = f"SubsampleSplit({split})".encode()
    seed = int(hashlib.sha1(name).hexdigest(), 16) % (2**32 - 1)
    drawn = np.random.RandomState(seed).choice(len(order), len(order), replace=False)
    return [order[i] for i in drawn[:n_kept]]


def _shuffled(stems: Iterable[str], seed: str) -> list[str]:
    order = sorted(stems)
    random.Random(seed).shuffle(order)
    return order
