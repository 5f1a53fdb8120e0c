"""Theta, a point in the continuous space of two-factor einsum structures (2410.02117, section 3).

The layer is ``W[(phi,eps,delta),(gamma,beta,alpha)] = sum_rho A[phi,delta,rho,gamma,alpha] B[phi,eps,rho,gamma,beta]``.
Each exponent says how an axis grows with the width d: ``size = d ** exponent``. An axis is named by the tensors that it
touches: alpha XA, beta XB, gamma XAB, delta YA, epsilon YB, phi YAB, rho AB.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from einlayers.errors import FieldError

SUM_TOLERANCE = 1e-2
"""How far a group of exponents may be from 1: the papers write 1/3 as 0.33 (2410.02117, reference code)."""


AXES = ("alpha", "beta", "gamma", "delta", "epsilon", "phi", "rho")
"""The names of the axes, in the order that holds everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Theta:
    """Seven exponents in [0, 1]; the input group (alpha, beta, gamma) and the output group (delta, epsilon, phi) sum to 1.

    Two are equal, and hash alike, where they say the same operators: a theta and its swap, and every form of dense.
    ``exponents`` tells them apart.

    Raises:
        FieldError: an exponent is not a finite number in [0, 1], or a group does not sum to 1 within ``SUM_TOLERANCE``.
    """

    alpha: float
    beta: float
    gamma: float
    delta: float
    epsilon: float
    phi: float
    rho: float

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, value in zip(AXES, self.exponents, strict=True):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise FieldError(name, expected="a finite exponent between 0 and 1", got=value)
            # -0.0 and 0 would be equal values with two spellings in JSON; adding 0.0 makes them one.
            object.__setattr__(self, name, float(value) + 0.0)
        _check_sum("alpha + beta + gamma", self.alpha, self.beta, self.gamma)
        _check_sum("delta + epsilon + phi", self.delta, self.epsilon, self.phi)

    @classmethod
    def parse(cls, text: "str | Theta") -> "Theta":
        """Read the papers' text such as ``(0.5|0|0.5|0|0.5|0.5|0)``, fractions such as ``1/3``, or a name of ``NAMED``.

        A theta comes back as it is, so that whatever takes thetas takes their names too.

        Raises:
            FieldError: the text is neither a known name nor seven numbers that form a theta.
        """
        if isinstance(text, Theta):
            return text
        if not isinstance(text, str):
            raise FieldError("theta", expected=_TEXT.format(", ".join(NAMED)), got=text)
        if text in NAMED:
            return NAMED[text]
        parts = text.strip().removeprefix("(").removesuffix(")").replace(",", "|").split("|")
        expected = _TEXT.format(", ".join(NAMED))
        if len(parts) != len(AXES):
            raise FieldError("theta", expected=expected, got=text)
        try:
            # Not every number through Fraction, which would write 1e5000000 out in full.
            values = [float(Fraction(part)) if "/" in part else float(part) for part in map(str.strip, parts)]
        except (ValueError, ZeroDivisionError, OverflowError) as error:
            raise FieldError("theta", expected=expected, got=text) from error
        return cls.of(values)

    @classmethod
    def of(cls, exponents: Sequence[float]) -> "Theta":
        """The theta of seven exponents in the order of the fields."""
        alpha, beta, gamma, delta, epsilon, phi, rho = exponents
        return cls(alpha=alpha, beta=beta, gamma=gamma, delta=delta, epsilon=epsilon, phi=phi, rho=rho)

    @classmethod
    def normalise(cls, weights: Sequence[float]) -> "Theta":
        """The theta of seven non-negative weights, each group divided by its sum: (2,1,1|1,2,1|0) is (1/2,1/4,1/4|...).

        Raises:
            FieldError: a group of weights does not have a positive finite sum.
        """
        alpha, beta, gamma, delta, epsilon, phi, rho = weights
        return cls.of(
            [*_shares("input weights", alpha, beta, gamma), *_shares("output weights", delta, epsilon, phi), rho]
        )

    def normalised(self) -> "Theta":
        """The same point with both groups summing to 1 exactly, not only within the papers' tolerance."""
        return Theta.normalise(self.exponents)

    @property
    def exponents(self) -> tuple[float, ...]:
        """The seven exponents in the order of the fields."""
        return (self.alpha, self.beta, self.gamma, self.delta, self.epsilon, self.phi, self.rho)

    @property
    def is_dense(self) -> bool:
        """Whether one factor alone already holds every axis, so that the other adds parameters but no matrices."""
        return max(self.beta, self.epsilon) < 1e-9 or max(self.alpha, self.delta) < 1e-9

    @property
    def is_canonical(self) -> bool:
        """Whether contracting with A first is the cheaper order: min(alpha, epsilon) >= min(beta, delta)."""
        return min(self.alpha, self.epsilon) >= min(self.beta, self.delta)

    def canonical(self) -> "Theta":
        """The form of this operator family with ``is_canonical``; of two such forms the lexicographically larger one."""
        swapped = self.swapped()
        if self.is_canonical and swapped.is_canonical:
            return max(self, swapped, key=lambda theta: (theta.alpha + theta.epsilon, theta.exponents))
        return self if self.is_canonical else swapped

    def swapped(self) -> "Theta":
        """The two factors with their names exchanged: the same operators, the other contraction order."""
        return Theta.of((self.beta, self.alpha, self.gamma, self.epsilon, self.delta, self.phi, self.rho))

    def transposed(self) -> "Theta":
        """The structure of the transposed matrices: input and output exchanged, and A with B."""
        return Theta.of((self.epsilon, self.delta, self.phi, self.beta, self.alpha, self.gamma, self.rho))

    def __eq__(self, other: object) -> bool:
        return self._operators == other._operators if isinstance(other, Theta) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._operators)

    @property
    def _operators(self) -> tuple[float, ...]:
        """The same for all forms of the same operators, float noise aside; empty for dense."""
        forms = (self.exponents, self.swapped().exponents)
        return () if self.is_dense else max(tuple(round(x, 12) + 0.0 for x in form) for form in forms)

    def __str__(self) -> str:
        return "(" + "|".join(f"{exponent:.3g}" for exponent in self.exponents) + ")"


_TEXT = "seven exponents such as (0.5|0|0.5|0|0.5|0.5|0), or one of {}"


def _check_sum(group: str, *exponents: float) -> None:
    total = math.fsum(exponents)
    if abs(total - 1) > SUM_TOLERANCE + 1e-12:
        raise FieldError(group, expected="exponents that sum to 1", got=round(total, 6))


def _shares(group: str, *weights: float) -> list[float]:
    total = sum(weights)
    if min(weights) < 0 or not 0 < total < math.inf:
        raise FieldError(group, expected="non-negative numbers with a positive finite sum", got=weights)
    return [weight / total for weight in weights]


NAMED: dict[str, Theta] = {
    name: Theta.of(exponents)
    for name, exponents in {
        "dense": (0, 0, 1, 0, 0, 1, 0),
        "low-rank": (1, 0, 0, 0, 1, 0, 0.5),
        "kronecker": (0.5, 0.5, 0, 0.5, 0.5, 0, 0),
        "tensor-train": (0.5, 0.5, 0, 0.5, 0.5, 0, 0.25),
        "monarch": (0.5, 0, 0.5, 0, 0.5, 0.5, 0),
        "btt": (0.5, 0, 0.5, 0, 0.5, 0.5, 0.25),
    }.items()
}
"""The known designs, one of each family (2410.02117, figure 2; 2406.06248, section 3)."""
