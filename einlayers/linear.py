"""The structured linear layer: two factors, contracted in the cheaper order."""

# B batch, I inputs (d_in), O outputs (d_out); a b g d e f r: the sizes of alpha beta gamma delta epsilon phi rho

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from einlayers.dims import Policy, resolve
from einlayers.scaling import factor_rules
from einlayers.taxonomy import cost
from einlayers.theta import Theta

_MULTIPLY_OUT_BELOW = 128 * 128
"""Layers of at most this many entries are multiplied out: one small matrix product beats two batched ones with copies."""


class EinsumLinear(nn.Module):
    """``y = W x + bias`` where W is a sum over rho of products of two factors (``einlayers.theta`` has the formula).

    Input ``(..., d_in)``, output ``(..., d_out)``. Inputs are zero-padded and outputs cropped where the axes hold more
    features than asked for (``dims`` reports it); with ``policy="round"`` they may also be dropped, as in the papers.
    Source: 2410.02117, section 3; initial scale: 2406.06248, section 4.

    Raises:
        FieldError: a width is not positive.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        theta: Theta,
        *,
        bias: bool = True,
        policy: Policy = "exact",
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        self.theta = theta
        self.policy: Policy = policy
        self.dims = resolve(theta, d_in, d_out, policy)
        self.order = cost(self.dims).order
        self.zero_init = zero_init
        dims = self.dims
        self.A = nn.Parameter(torch.empty(dims.phi, dims.delta, dims.rho, dims.gamma, dims.alpha))
        self.B = nn.Parameter(torch.empty(dims.phi, dims.epsilon, dims.rho, dims.gamma, dims.beta))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the factors at muP's scale; ``zero_init`` zeroes B, which zeroes the map but lets it learn."""
        rules = factor_rules(self.dims)
        nn.init.normal_(self.A, std=rules.A.init_std)
        if self.zero_init:
            nn.init.zeros_(self.B)
        else:
            nn.init.normal_(self.B, std=rules.B.init_std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x_BI: Tensor) -> Tensor:
        """Map ``(..., d_in)`` to ``(..., d_out)``."""
        if self.dims.d_in * self.dims.d_out <= _MULTIPLY_OUT_BELOW:
            return F.linear(x_BI, self.to_dense(), self.bias)
        dims = self.dims
        x_Bgba = _fit(x_BI, dims.inputs).reshape(*x_BI.shape[:-1], dims.gamma, dims.beta, dims.alpha)
        if self.order == "A_first":
            z_Bfdrgb = torch.einsum("...gba,fdrga->...fdrgb", x_Bgba, self.A)
            y_Bfed = torch.einsum("...fdrgb,fergb->...fed", z_Bfdrgb, self.B)
        else:
            z_Bferga = torch.einsum("...gba,fergb->...ferga", x_Bgba, self.B)
            y_Bfed = torch.einsum("...ferga,fdrga->...fed", z_Bferga, self.A)
        y_BO = _fit(y_Bfed.flatten(-3), dims.d_out)
        return y_BO if self.bias is None else y_BO + self.bias

    def to_dense(self) -> Tensor:
        """The matrix ``W`` of shape ``(d_out, d_in)``, multiplied out; gradients flow to the factors."""
        dims = self.dims
        W_fedgba = torch.einsum("fdrga,fergb->fedgba", self.A, self.B)
        W_OI = W_fedgba.reshape(dims.outputs, dims.inputs)
        return _fit(_fit(W_OI, dims.d_in).mT, dims.d_out).mT

    def extra_repr(self) -> str:
        return f"{self.dims.d_in}, {self.dims.d_out}, {self.theta}, bias={self.bias is not None}"


def _fit(x: Tensor, size: int) -> Tensor:
    """Zero-pad or crop the last axis to ``size``."""
    missing = size - x.shape[-1]
    if missing == 0:
        return x
    return F.pad(x, (0, missing)) if missing > 0 else x[..., :size]
