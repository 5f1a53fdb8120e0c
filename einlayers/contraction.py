"""``y = W x`` by the two factors, without forming W: the fastest of a few exact formulations for the shape at hand."""

# B batch, I inputs, O outputs; a b g d e f r: the sizes of alpha beta gamma delta epsilon phi rho

import torch
from torch import Tensor

from einlayers.taxonomy import Order


def contract(x_BI: Tensor, A: Tensor, B: Tensor, *, order: Order, recompute: bool = False) -> Tensor:
    """Map ``(..., gamma beta alpha)`` to ``(..., phi epsilon delta)``."""
    f, d, r, g, a = A.shape
    x_Bgba = x_BI.reshape(*x_BI.shape[:-1], g, B.shape[4], a)
    if order == "A_first":
        z_Bfdrgb = torch.einsum("...gba,fdrga->...fdrgb", x_Bgba, A)
        y_Bfed = torch.einsum("...fdrgb,fergb->...fed", z_Bfdrgb, B)
    else:
        z_Bferga = torch.einsum("...gba,fergb->...ferga", x_Bgba, B)
        y_Bfed = torch.einsum("...ferga,fdrga->...fed", z_Bferga, A)
    return y_Bfed.flatten(-3)
