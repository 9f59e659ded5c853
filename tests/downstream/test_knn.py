"""Votes of nearest neighbours: scikit-learn's brute force, pieces of any size, bounded memory."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from downstream.embeddings import FrameSpec
from downstream.protocols import knn
from downstream.protocols.knn import clip_scores, knn_scores
from tests.downstream.probe_task import MadeUpSource, made_up_task


def frames(n: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def targets(n: int, classes: int) -> torch.Tensor:
    draws = torch.rand(n, classes, generator=torch.Generator().manual_seed(9))
    return (draws < 0.3).to(torch.uint8)


def by_sklearn(train: torch.Tensor, wanted: torch.Tensor, test: torch.Tensor, k: int) -> np.ndarray:
    found = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(train.double())
    return wanted.numpy()[found.kneighbors(test.double(), return_distance=False)].mean(axis=1)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 300),
    m=st.integers(1, 60),
    dim=st.integers(2, 40),
    k=st.integers(1, 30),
    rows=st.integers(1, 70),
    columns=st.integers(1, 310),
)
def test_is_scikit_learns_whatever_the_blocks(
    n: int, m: int, dim: int, k: int, rows: int, columns: int
) -> None:
    train, test, wanted = frames(n, dim, 1), frames(m, dim, 2), targets(n, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "_TEST_ROWS", rows)
        patch.setattr(knn, "_TRAIN_ROWS", columns)
        found = knn_scores(train, wanted, test, k)
    np.testing.assert_allclose(found, by_sklearn(train, wanted, test, min(n, k)), atol=1e-6)


def test_is_scikit_learns_at_the_blocks_that_are_used() -> None:
    train, test, wanted = frames(17_000, 16, 1), frames(1100, 16, 2), targets(17_000, 5)
    found = knn_scores(train, wanted, test)
    wrong = np.abs(found.numpy() - by_sklearn(train, wanted, test, 20)).max(axis=1) > 1e-6
    assert wrong.sum() <= 2  # two neighbours at the same distance, in float32


def test_clips_one_after_the_other_are_one_table() -> None:
    train, test, wanted = frames(300, 8, 1), frames(50, 8, 2), targets(300, 3)
    whole = knn_scores(train, wanted, test)
    parts = knn_scores(
        [x.half().float().numpy() for x in train.split(70)],
        [y.numpy() for y in wanted.split(70)],
        [test[:1].numpy(), test[1:].numpy()],
    )
    rounded = knn_scores(train.half().float(), wanted, test)
    assert torch.equal(parts, rounded)
    assert whole.shape == (50, 3)


def test_length_does_not_count_and_zeros_are_no_error() -> None:
    train, test, wanted = frames(100, 8, 1), frames(20, 8, 2), targets(100, 3)
    scaled = train * torch.logspace(-3, 3, 100)[:, None]
    assert torch.equal(knn_scores(scaled, wanted, test), knn_scores(train, wanted, test))
    train[:30] = 0
    assert knn_scores(train, wanted, torch.zeros(2, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("n", "n_targets", "dim", "k", "message"),
    [
        (5, 5, 4, 0, "k is a whole number from 1, got 0"),
        (5, 4, 4, 1, "5 train frames, but targets of 4"),
        (0, 0, 4, 1, "no train frames"),
        (5, 5, 3, 1, "train frames have 3 dims, test frames 4"),
    ],
)
def test_refuses(n: int, n_targets: int, dim: int, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        knn_scores(frames(n, dim, 1), targets(n_targets, 2), frames(3, 4, 2), k)


def test_clip_scores_are_of_each_clip(tmp_path: Path) -> None:
    task = made_up_task()
    source = MadeUpSource(task, tmp_path / "frames", noise=0.01)
    found = clip_scores(task, source.frames(FrameSpec()), task.clips("train"), task.clips("test"))
    assert list(found) == [clip.file for clip in task.clips("test")]
    for clip in task.clips("test"):
        for onset, offset, label in clip.events:
            inside = found[clip.file][round(onset / 0.04) : round(offset / 0.04)]
            assert (inside[:, task.labels.index(label)] == 1).all()


@pytest.mark.slow
def test_is_fast_enough() -> None:
    """A sixteenth of 36 000 frames against 18 000 of 768 dims, which is to take under a minute."""
    train, test, wanted = frames(9000, 768, 1), frames(4500, 768, 2), targets(9000, 11)
    start = time.process_time()  # of all threads: what else the machine does is no matter
    knn_scores(train, wanted, test)
    assert time.process_time() - start < 2 * 60 / 16
