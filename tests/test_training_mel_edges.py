"""The mel range that training draws: its bounds, and that a step's specs are made with it.

Schmid et al., PretrainedSED's front end of fPaSST and of the frame MobileNets: for each batch a
lower edge of 0..9 Hz and an upper one of 6001..8000 Hz, whole numbers, both evenly drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hear_pretrainedsed import frontends
from hear_pretrainedsed.frontends import FrontEnd, PreemphasisMel, kaldi_filters
from hear_pretrainedsed.heads import LinearHead
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.registry import BACKBONES
from hear_pretrainedsed.training.augmentation import Augmentation
from hear_pretrainedsed.training.batch import Batch
from hear_pretrainedsed.training.chance import generator_for
from hear_pretrainedsed.training.fit import fit
from hear_pretrainedsed.training.pieces import Order
from hear_pretrainedsed.training.plan import Place, Plan
from hear_pretrainedsed.training.stream import Stream, bce
from tests.tiny_model import LABELS, TinyBackbone, tones

Edges = tuple[float, float]


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    torch.set_num_threads(1)


@pytest.fixture
def edges(monkeypatch: pytest.MonkeyPatch) -> list[Edges]:
    """The edges of all filters that are made from now on."""
    made: list[Edges] = []

    def recorded(n_mels: int, low_hz: float, high_hz: float) -> Tensor:
        assert n_mels == 128
        made.append((low_hz, high_hz))
        return kaldi_filters(n_mels, low_hz, high_hz)

    monkeypatch.setattr(frontends, "kaldi_filters", recorded)
    return made


def same_audio() -> Tensor:
    return 0.1 * torch.randn(2, 16_000, generator=torch.Generator().manual_seed(3))


def test_edges_are_whole_numbers_of_the_published_ranges(edges: list[Edges]) -> None:
    frontend = PreemphasisMel(periodic=False)
    assert edges == [(0, 7000)]  # what is used outside of training
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        frontend.with_drawn_edges(generator)
    low, high = ([pair[i] for pair in edges[1:]] for i in (0, 1))
    assert set(low) == set(range(10))
    assert all(isinstance(edge, int) and 6001 <= edge <= 8000 for edge in high)
    assert min(high) < 6020 and max(high) > 7980 and 6900 < sum(high) / 400 < 7100


@pytest.mark.parametrize(
    ("draw", "wanted"), [(lambda n: 0, (0, 8000)), (lambda n: n - 1, (9, 6001))]
)
def test_the_outermost_edges(
    edges: list[Edges],
    monkeypatch: pytest.MonkeyPatch,
    draw: Callable[[int], int],
    wanted: Edges,
) -> None:
    frontend = PreemphasisMel(periodic=False)
    monkeypatch.setattr(torch, "randint", lambda n, size, generator: torch.tensor(draw(n)))
    frontend.with_drawn_edges(torch.Generator())
    assert edges[-1] == wanted


def test_the_spec_is_of_the_drawn_filters_and_nothing_else_changes(edges: list[Edges]) -> None:
    frontend = PreemphasisMel(periodic=True)
    before = frontend(same_audio())
    drawn = frontend.with_drawn_edges(torch.Generator().manual_seed(1))
    again = frontend.with_drawn_edges(torch.Generator().manual_seed(1))
    assert edges[1] == edges[2] != (0, 7000)
    assert torch.equal(drawn.filters, kaldi_filters(128, *edges[1]))
    other = PreemphasisMel(periodic=True)
    other.filters = kaldi_filters(128, *edges[1])
    other.blocks = [(slice(0, 128), slice(0, 257))]
    torch.testing.assert_close(drawn(same_audio()), other(same_audio()), rtol=0, atol=1e-4)
    assert torch.equal(drawn(same_audio()), again(same_audio()))
    assert torch.equal(frontend(same_audio()), before)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_front_ends_without_a_drawn_range_stay(backbone: str) -> None:
    kind = BACKBONES[backbone]
    frontend = getattr(kind, "func", kind).build_frontend()
    drawn = frontend.with_drawn_edges(torch.Generator().manual_seed(0))
    has_range = backbone.startswith(("fpasst", "fmn", "frame_mn"))
    assert (drawn is not frontend) == has_range


class BandBackbone(TinyBackbone):
    """The tiny one on the front end whose range is drawn."""

    @staticmethod
    def build_frontend() -> FrontEnd:
        return PreemphasisMel(periodic=False)

    def embed(self, spec: Tensor) -> Tensor:
        bands = spec[:, 0].unflatten(1, (8, 16)).mean(dim=2)
        return bands.unflatten(2, (250, 4)).mean(dim=3).transpose(1, 2)


def band_model(seed: int) -> SEDModel:
    torch.manual_seed(seed)
    head = LinearHead(16, len(LABELS), weak=False)
    return SEDModel(BandBackbone(), head=head, labels=LABELS).eval()


@pytest.mark.parametrize("drawn", [True, False])
def test_a_step_draws_the_student_s_range_and_not_the_teacher_s(
    tmp_path: Path, drawn: bool
) -> None:
    order = Order(tones(tmp_path, (21.0,)), 2, 0)
    seen: list[Batch] = []

    def loss(model: SEDModel, batch: Batch) -> Tensor:
        seen.append(batch)
        return bce(model, batch)

    student, teacher = band_model(0), band_model(1)
    stream = Stream(order, Augmentation(draw_mel_edges=drawn), loss, 1.0, teacher)
    plan = Plan(n_steps=2, n_warmup_steps=0, batch_pieces=2, lr=1e-3, weight_decay=0.0)
    fit(student, [stream], plan, Place(tmp_path / "run"), validate=lambda model: 0.0)
    usual = PreemphasisMel(periodic=False)
    ranges = []
    for step, (batch, given) in enumerate(zip(seen, order.loader(0, 2), strict=True)):
        frontend = usual
        if drawn:
            frontend = usual.with_drawn_edges(generator_for(0, "augment", step))
        assert torch.equal(batch.spec, frontend(given.audio))
        assert torch.equal(batch.teacher_spec, usual(given.audio))
        ranges.append(frontend.filters)
    assert torch.equal(*ranges) != drawn  # each step its own
    assert torch.equal(student.frontend.filters, usual.filters)
    assert torch.equal(teacher.frontend.filters, usual.filters)
