"""How many directions a trained weight uses: its singular values, and what they say about the rank that it needs."""

# O output features, I input features, K singular values

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor, nn

from einlayers.errors import FieldError


class SupportsDense(Protocol):
    """A layer that can be multiplied out, such as ``EinsumLinear``; a tensor is one too."""

    def to_dense(self) -> Tensor:
        """The matrix of shape ``(d_out, d_in)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """The singular values of one matrix, largest first, and the share of the largest that may be rounding noise.

    Raises:
        FieldError: the singular values are none, negative, not finite or not in descending order, or the noise is
            negative or not finite.
    """

    singular_values: tuple[float, ...]
    noise: float = 0.0

    def __post_init__(self) -> None:
        values = self.singular_values
        if not values or list(values) != sorted(values, reverse=True) or not 0 <= values[-1] <= values[0] < math.inf:
            raise FieldError("singular_values", expected="finite numbers from the largest to 0", got=values)
        _check_share("noise", self.noise)

    def rank(self, tolerance: float | None = None) -> int:
        """How many singular values exceed ``tolerance`` times the largest; by default, how many exceed the noise.

        Raises:
            FieldError: the tolerance is negative or not finite.
        """
        share = self.noise if tolerance is None else _check_share("tolerance", tolerance)
        return sum(value > share * self.singular_values[0] for value in self.singular_values)

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm over squared spectral norm: at most the rank, 0 for the zero matrix."""
        return math.fsum(share * share for share in self._shares())

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of ``sigma / sum(sigma)``: at most the rank, 0 for the zero matrix (Roy & Vetterli 2007)."""
        shares = list(self._shares())
        total = math.fsum(shares)
        return math.exp(-math.fsum(s / total * math.log(s / total) for s in shares if s > 0)) if total else 0.0

    def energy(self, k: int) -> float:
        """The share of the squared Frobenius norm that the best approximation of rank ``k`` keeps; 1 for the zero matrix.

        Raises:
            FieldError: ``k`` is not a whole number from 0 on.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 0:
            raise FieldError("k", expected="a rank from 0 on", got=k)
        energies = self._energies()
        return energies[min(k, len(energies) - 1)]

    def rank_for(self, energy: float) -> int:
        """The smallest rank that keeps a share ``energy`` of the squared Frobenius norm.

        Raises:
            FieldError: the energy is not in [0, 1].
        """
        if isinstance(energy, bool) or not isinstance(energy, (int, float)) or not 0 <= energy <= 1:
            raise FieldError("energy", expected="a share between 0 and 1", got=energy)
        return bisect_left(self._energies(), energy)

    def _shares(self) -> Iterator[float]:
        """The singular values over the largest, whose squares neither overflow nor all vanish."""
        largest = self.singular_values[0] or 1.0
        return (value / largest for value in self.singular_values)

    def _energies(self) -> list[float]:
        """``energy(k)`` for k from 0 to the number of singular values: ascending, and 1 at the end."""
        sums = list(accumulate((share * share for share in self._shares()), initial=0.0))
        return [partial / sums[-1] for partial in sums] if sums[-1] else [1.0] * len(sums)


@torch.no_grad()
def spectrum(layer: Tensor | nn.Module | SupportsDense) -> Spectrum:
    """The spectrum of a weight ``(d_out, d_in)``, of an ``nn.Linear``, or of what can be multiplied out.

    Rounding every entry to the weight's dtype moves no singular value by more than ``eps ||W||`` (Weyl; Frobenius norm);
    the decomposition itself adds what ``numpy.linalg.matrix_rank`` allows for in double precision. This is the noise.

    Raises:
        FieldError: there is no weight, or it is not a matrix of finite real or complex numbers.
    """
    weight = _weight(layer)
    values = tuple(torch.linalg.svdvals(check_weight(weight)).tolist())
    norm = math.sqrt(Spectrum(singular_values=values).stable_rank)
    noise = norm * torch.finfo(weight.dtype).eps + max(weight.shape) * torch.finfo(torch.float64).eps
    return Spectrum(singular_values=values, noise=noise)


def check_weight(weight_OI: Tensor) -> Tensor:
    """The weight in double precision, cut from the graph, if it is a matrix of finite real or complex numbers.

    Raises:
        FieldError: it is not.
    """
    if not isinstance(weight_OI, Tensor):
        raise FieldError("weight", expected="a tensor of shape (d_out, d_in)", got=type(weight_OI).__name__)
    if weight_OI.ndim != 2 or weight_OI.numel() == 0:
        raise FieldError("weight", expected="a matrix of shape (d_out, d_in)", got=tuple(weight_OI.shape))
    if not (weight_OI.is_floating_point() or weight_OI.is_complex()):
        raise FieldError("weight", expected="real or complex numbers", got=weight_OI.dtype)
    if not weight_OI.isfinite().all():
        raise FieldError("weight", expected="finite entries", got="NaN or infinity among them")
    return weight_OI.detach().to(torch.complex128 if weight_OI.is_complex() else torch.float64)


def _weight(layer: object) -> Tensor:
    to_dense = getattr(layer, "to_dense", None)
    weight = to_dense() if callable(to_dense) else getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        raise FieldError("layer", expected="a tensor, or a layer with a weight or to_dense()", got=type(layer).__name__)
    return weight


def _check_share(name: str, share: float) -> float:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < math.inf:
        raise FieldError(name, expected="a finite share from 0 on", got=share)
    return share
