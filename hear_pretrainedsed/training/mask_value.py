"""What masks hold: a zero of the log mel, as a front end's normalisation leaves it."""

from __future__ import annotations

import torch
from torch import nn

from hear_pretrainedsed.frontends import KaldiMel, StftMel


def mask_value(frontend: nn.Module) -> float:
    """The normalised value of a zero of the log mel, which PSLA's masks hold.

    PSLA masks before it normalises (Gong et al., TASLP 2021), so that a mask's zero becomes
    +1.0170. Elsewhere a zero becomes another number, the power 1 (0 dB) of that front end: 0.9 of
    fPaSST and the frame MobileNets, -1.1758 of BEATs. A front end whose normalisation is not known
    here has 0, which time masks hold in any spec.
    """
    if isinstance(frontend, KaldiMel):
        return -frontend.mean / frontend.std
    if isinstance(frontend, StftMel):
        return frontend.compress(torch.ones(1, 1, 1)).item()
    return 0.0
