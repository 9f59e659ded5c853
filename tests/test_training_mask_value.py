"""What masks hold, against the specs of front ends whose mel power is 1 everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hear_pretrainedsed.frontends import FrontEnd, KaldiMel, StftMel
from hear_pretrainedsed.registry import BACKBONES
from hear_pretrainedsed.training.augment_spec import MASK_VALUE
from hear_pretrainedsed.training.mask_value import mask_value
from tests.tiny_model import TinyFrontend


def frontend_of(backbone: str) -> FrontEnd:
    kind = BACKBONES[backbone]
    return getattr(kind, "func", kind).build_frontend()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_zero_of_the_log_mel_becomes_it(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frontend = frontend_of(backbone)
    if not isinstance(frontend, KaldiMel | StftMel):
        assert mask_value(frontend) == 0  # two mels with a normalisation each
        return

    def ones(self: FrontEnd, frames: Tensor, **_: object) -> Tensor:
        return torch.ones(*frames.shape[:2], self.n_mels)

    monkeypatch.setattr(FrontEnd, "mel_power", ones)
    spec = frontend(torch.zeros(1, 16_000))
    torch.testing.assert_close(spec, torch.full_like(spec, mask_value(frontend)))


@pytest.mark.parametrize(
    ("backbone", "value"),
    [("psla", MASK_VALUE), ("fmn10", 0.9), ("fpasst", 0.9), ("beats", -1.17580), ("m2d", 1.69048)],
)
def test_known_values(backbone: str, value: float) -> None:
    assert mask_value(frontend_of(backbone)) == pytest.approx(value, abs=1e-5)


def test_a_front_end_of_one_s_own_has_zero() -> None:
    assert mask_value(TinyFrontend()) == 0
