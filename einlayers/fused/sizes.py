"""The sizes of two factors that each share one axis with x and one with y, and what a layer of them costs at least.

The floors, for T tokens of b bytes a number, where ``Z = phi rho gamma`` and ``W = Z (i + o)`` count the numbers
between the factors and the weights:

                          bytes                                       FLOPs
    forward               b (T (gamma i + phi o) + W)                 2 T W
    backward              b (T (2 gamma i + phi o) + 2 W)             4 T W + 2 T Z i: Z numbers are computed again
    dense, forward        b (T (I + O) + I O)                         2 T I O

A pass takes at least the longer of both times, on an H200 of 4.3 TB/s and 790 bfloat16 TFLOP/s. The kernels go backward in
two passes, for dx and for the gradients of both factors, since no program can hold both a tile of tokens and sums over all
tokens: that takes ``2 T (gamma i + phi o)`` numbers rather than ``T (2 gamma i + phi o)``, and 6 T W FLOPs.

What bounds the kernels at large widths is rather what moves between the chip's cache and its processors, because one
processor holds no more than a tile of tokens and of phi: ``einlayers.fused.tiles`` counts that.
"""

from dataclasses import dataclass

from einlayers.errors import FieldError

H200_BYTES, H200_CACHE_BYTES, H200_FLOPS = 4.3e12, 5.5e12, 790e12
"""A second: measured copies, what others report of the cache (an assumption), and measured bfloat16 products."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The axes of ``x (T, gamma, i)``, ``P (gamma, phi, rho, i)``, ``Q (phi, gamma, rho, o)`` and ``y (T, phi, o)``.

    Raises:
        FieldError: a size is not positive.
    """

    gamma: int
    i: int
    phi: int
    rho: int
    o: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise FieldError(name, expected="a positive size", got=getattr(self, name))

    @property
    def inputs(self) -> int:
        """Features of x."""
        return self.gamma * self.i

    @property
    def outputs(self) -> int:
        """Features of y."""
        return self.phi * self.o

    @property
    def weights(self) -> int:
        """Of both factors; also the multiply-adds of a token."""
        return self.phi * self.rho * self.gamma * (self.i + self.o)

    @property
    def intermediate(self) -> int:
        """Numbers between the factors, per token."""
        return self.gamma * self.phi * self.rho

    def transposed(self) -> "Sizes":
        """Those of the map back from dy to dx."""
        return Sizes(gamma=self.phi, i=self.o, phi=self.gamma, rho=self.rho, o=self.i)


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The bytes that have to move, the FLOPs, and the seconds that they take at least."""

    bytes: int
    flops: int

    @property
    def seconds(self) -> float:
        """The longer of both times, on an H200."""
        return max(self.bytes / H200_BYTES, self.flops / H200_FLOPS)


def forward_floor(sizes: Sizes, num_tokens: int, itemsize: int = 2) -> Floor:
    """Of y, or of dx: x and both factors are read once, and y is written."""
    numbers = num_tokens * (sizes.inputs + sizes.outputs) + sizes.weights
    return Floor(bytes=itemsize * numbers, flops=2 * num_tokens * sizes.weights)


def backward_floor(sizes: Sizes, num_tokens: int, itemsize: int = 2) -> Floor:
    """Of dx and both weight gradients by one reading of x and dy."""
    numbers = num_tokens * (2 * sizes.inputs + sizes.outputs) + 2 * sizes.weights
    flops = 4 * num_tokens * sizes.weights + 2 * num_tokens * sizes.intermediate * sizes.i
    return Floor(bytes=itemsize * numbers, flops=flops)


def dense_floor(sizes: Sizes, num_tokens: int, itemsize: int = 2) -> Floor:
    """Of one product with a dense matrix of the same inputs and outputs; training takes three."""
    numbers = num_tokens * (sizes.inputs + sizes.outputs) + sizes.inputs * sizes.outputs
    return Floor(bytes=itemsize * numbers, flops=2 * num_tokens * sizes.inputs * sizes.outputs)
