"""Every PretrainedSED architecture against stored values; needs no reference data.

Limits leave room for other CPUs' FFTs and matrix products.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.make_golden import GOLDEN, golden_values
from tests.reference import MODELS, check_in_order, gap

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("backbone", sorted(MODELS))
def test_golden(backbone: str) -> None:
    with np.load(GOLDEN) as file:
        wanted = {k: torch.from_numpy(file[k]) for k in file.files if k.startswith(f"{backbone}.")}
    found = {k: torch.from_numpy(v) for k, v in golden_values(backbone).items()}
    assert found.keys() == wanted.keys()
    check_in_order((name, gap(found[name], wanted[name]), 1e-3) for name in wanted)
