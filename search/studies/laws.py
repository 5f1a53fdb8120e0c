"""Laws of loss that a study has found, each with the range of runs that it was fitted to and knows nothing outside of."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """From where to where there were runs."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value is among them, or next to them by rounding."""
        return self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """``L(C) = irreducible + scale * C^-exponent``, fitted to runs of this range of compute."""

    irreducible: float
    scale: float
    exponent: float
    compute: Range

    def loss(self, compute: float) -> float:
        """The loss that so much compute buys."""
        return self.irreducible + self.scale * float(compute**-self.exponent)

    def compute_for(self, loss: float) -> float:
        """The compute that a loss takes; infinite where none is enough."""
        if loss <= self.irreducible:
            return math.inf
        return float((self.scale / (loss - self.irreducible)) ** (1 / self.exponent))


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeLaw:
    """``L(N, D) = irreducible + params_scale N^-params_exponent + data_scale D^-data_exponent``, fitted to runs of these
    ranges of parameters and of examples."""

    irreducible: float
    params_scale: float
    params_exponent: float
    data_scale: float
    data_exponent: float
    params: Range
    data: Range

    def loss(self, params: float, data: float) -> float:
        """The loss of a model of this size after so many examples."""
        of_params = self.params_scale * float(params**-self.params_exponent)
        return self.irreducible + of_params + self.data_scale * float(data**-self.data_exponent)

    def best_params(self, compute: float, flops_per_example: float = 6.0) -> float:
        """The size at which ``flops_per_example`` FLOPs a parameter and example give the lowest loss (2203.15556, eq. 4)."""
        a, b = self.params_exponent, self.data_exponent
        ratio = (a * self.params_scale / (b * self.data_scale)) ** (1 / (a + b))
        return float(ratio * (compute / flops_per_example) ** (b / (a + b)))
