"""The structured linear layer: two factors, contracted in the cheaper order."""

# B batch, I inputs (d_in), O outputs (d_out); a b g d e f r: the sizes of alpha beta gamma delta epsilon phi rho

from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from einlayers.contraction import contract, dense_matrix
from einlayers.dims import Dims, Policy, resolve
from einlayers.errors import FieldError
from einlayers.families import btt_dims, low_rank_dims, monarch_dims
from einlayers.scaling import FACTOR_VIEWS, FactorRule, FactorRules, View, factor_rules
from einlayers.taxonomy import Cost, cost, rank_bound
from einlayers.theta import Theta


class Options(TypedDict, total=False):
    """What every way of making an ``EinsumLinear`` takes beside its structure."""

    bias: bool
    zero_init: bool
    weight_norm: bool
    recompute: bool
    device: torch.device | str | None
    dtype: torch.dtype | None


class EinsumLinear(nn.Module):
    """``y = W x + bias`` where W is a sum over rho of products of two factors (``einlayers.theta`` has the formula).

    Input ``(..., d_in)``, output ``(..., d_out)``. Inputs are zero-padded and outputs cropped where the axes hold more
    features than asked for (``dims`` reports it); with ``policy="round"`` they may also be dropped, as in the papers.
    Source: 2410.02117, section 3; initial scale: 2406.06248, section 4.

    ``theta`` is a ``Theta``, a name of ``NAMED`` or the papers' text. ``zero_init`` starts as the zero map, which learns.
    ``weight_norm`` caps the rms of each factor at its initial scale and gives it a learnable gain (2406.06248, section
    4.3). ``recompute`` saves only the input for backward and computes the intermediate again, for a sixth more FLOPs.
    Where theta is dense, or its axes are (``Dims.is_dense``), there are two factors all the same, as in the papers: one of
    them scales the entries of the other, and ``nn.Linear`` is the better one.

    Raises:
        FieldError: a width is not positive, or theta or the policy is unknown.
    """

    theta: Theta
    """The point that the layer was resolved from, or, for a layer made from axes, the one that they stand for."""
    dims: Dims
    A: nn.Parameter
    """``(phi, delta, rho, gamma, alpha)``"""
    B: nn.Parameter
    """``(phi, epsilon, rho, gamma, beta)``"""

    def __init__(
        self, d_in: int, d_out: int, theta: Theta | str, *, policy: Policy = "exact", **options: Unpack[Options]
    ) -> None:
        super().__init__()
        theta = Theta.parse(theta)
        self._build(theta, resolve(theta, d_in, d_out, policy), **options)

    @classmethod
    def from_dims(cls, dims: Dims, **options: Unpack[Options]) -> "EinsumLinear":
        """The layer with exactly these axes."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._build(dims.theta, dims, **options)
        return layer

    @classmethod
    def monarch(cls, d_in: int, d_out: int, *, num_blocks: int = 4, **options: Unpack[Options]) -> "EinsumLinear":
        """Monarch by its number of blocks (2204.00595, section 3.1; see ``monarch_dims``)."""
        return cls.from_dims(monarch_dims(d_in, d_out, num_blocks), **options)

    @classmethod
    def btt(cls, d_in: int, d_out: int, *, rank: int = 1, **options: Unpack[Options]) -> "EinsumLinear":
        """Block Tensor-Train of two cores (2406.06248, section 3; see ``btt_dims``); ``BTTLinear`` has more cores."""
        return cls.from_dims(btt_dims(d_in, d_out, rank), **options)

    @classmethod
    def low_rank(cls, d_in: int, d_out: int, *, rank: int, **options: Unpack[Options]) -> "EinsumLinear":
        """``W = U V`` of the given rank."""
        return cls.from_dims(low_rank_dims(d_in, d_out, rank), **options)

    def _build(
        self,
        theta: Theta,
        dims: Dims,
        *,
        bias: bool = True,
        zero_init: bool = False,
        weight_norm: bool = False,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.theta = theta
        self.dims = dims
        self.order = cost(dims).order
        self.zero_init = zero_init
        self.weight_norm = weight_norm
        self.recompute = recompute

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.A = parameter(*dims.shape_A)
        self.B = parameter(*dims.shape_B)
        self.gain_A = parameter() if weight_norm else None
        self.gain_B = parameter() if weight_norm else None
        self.bias = parameter(dims.d_out) if bias else None
        self.reset_parameters()

    @property
    def d_in(self) -> int:
        """Input features."""
        return self.dims.d_in

    @property
    def d_out(self) -> int:
        """Output features."""
        return self.dims.d_out

    @property
    def cost(self) -> Cost:
        """Parameters without bias and MACs per input row."""
        return cost(self.dims)

    @property
    def rank_bound(self) -> int:
        """The generic rank of the map, padding and cropping included."""
        return rank_bound(self.dims)

    @property
    def rules(self) -> FactorRules:
        """The muP rules of both factors."""
        return factor_rules(self.dims)

    def lr_rules(self) -> dict[str, FactorRule]:
        """The muP rule of each factor, by the name of its parameter."""
        return self.rules.by_name()

    def matrix_views(self) -> dict[str, View]:
        """Which axes of each factor number its matrices, which are their rows (fan_out) and which their columns (fan_in)."""
        return dict(FACTOR_VIEWS)

    def reset_parameters(self) -> None:
        """Draw the factors at muP's scale; ``zero_init`` zeroes B, which zeroes the map but lets it learn."""
        nn.init.normal_(self.A, std=self.rules.A.init_std)
        if self.zero_init:
            nn.init.zeros_(self.B)
        else:
            nn.init.normal_(self.B, std=self.rules.B.init_std)
        for gain in (self.gain_A, self.gain_B):
            if gain is not None:
                nn.init.ones_(gain)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B as they are applied: the parameters themselves, or capped and scaled with ``weight_norm``."""
        if self.gain_A is None or self.gain_B is None:
            return self.A, self.B
        rules = self.rules
        return capped(self.A, self.gain_A, rules.A.init_std), capped(self.B, self.gain_B, rules.B.init_std)

    def forward(self, x_BI: Tensor) -> Tensor:
        """Map ``(..., d_in)`` to ``(..., d_out)``.

        Raises:
            FieldError: the last axis of the input does not have ``d_in`` features.
        """
        A, B = self.factors()
        x_BI = fit(check_features(x_BI, self.d_in), self.dims.inputs)
        y_BO = fit(contract(x_BI, A, B, order=self.order, recompute=self.recompute), self.dims.d_out)
        return add_bias(y_BO, self.bias)

    def to_dense(self) -> Tensor:
        """The matrix ``W`` of shape ``(d_out, d_in)``, multiplied out; gradients flow to the factors."""
        A, B = self.factors()
        return fit(fit(dense_matrix(A, B), self.d_in).mT, self.d_out).mT

    def extra_repr(self) -> str:
        options = "".join(f", {name}=True" for name in ("zero_init", "weight_norm", "recompute") if getattr(self, name))
        return f"{self.dims.d_in}, {self.dims.d_out}, {self.theta}, bias={self.bias is not None}{options}"


def capped(factor: Tensor, gain: Tensor, std: float) -> Tensor:
    """The factor, shrunk where its rms exceeds ``std`` and never grown, times its gain (2406.06248, section 4.3)."""
    # The root is taken after the cap, since its gradient at a factor that starts at zero would be infinite.
    return factor * (gain * (factor.square().mean() / std**2).clamp(min=1.0).rsqrt())


def check_features(x_BI: Tensor, d_in: int) -> Tensor:
    """The input, if its last axis has ``d_in`` features: ``fit`` would pad or crop any other as silently as its own.

    Raises:
        FieldError: it has not.
    """
    if x_BI.ndim == 0 or x_BI.shape[-1] != d_in:
        raise FieldError("input", expected=f"{d_in} features on the last axis", got=tuple(x_BI.shape))
    return x_BI


def add_bias(y_BO: Tensor, bias_O: Tensor | None) -> Tensor:
    """``y + bias`` in y's type, which autocast may have made another one than the bias'; y itself without a bias."""
    return y_BO if bias_O is None else y_BO + bias_O.to(y_BO.dtype)


def fit(x: Tensor, size: int) -> Tensor:
    """Zero-pad or crop the last axis to ``size``."""
    missing = size - x.shape[-1]
    if missing == 0:
        return x
    return F.pad(x, (0, missing)) if missing > 0 else x[..., :size]
