"""Axis sizes of the named families, by the numbers that their papers use instead of exponents."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations_with_replacement
from typing import Literal, get_args

from einlayers.dims import Dims, check_size, resolve
from einlayers.errors import FieldError
from einlayers.taxonomy import Cost
from einlayers.theta import NAMED

HeadCase = Literal["(n|d|d|n)", "(d|n|d|n)", "(n|d|n|d)", "(d|n|n|d)"]

ALIGNED_IN: HeadCase = "(n|d|d|n)"
ALIGNED_OUT: HeadCase = "(d|n|n|d)"
"""``(alpha|gamma|epsilon|phi)`` of a head-aligned BTT, written in n, the number of heads, and d, the width of each."""

MAX_CORES = 8
"""The most cores that ``btt_axes`` splits a width over; a core of more would map axes of one or two features."""

_PADDING_BASE = 0.125
_PADDING_PRICE = 20.0
"""What padding costs in units of squared log distance, the base for each part: no power of two is ever padded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BTTAxes:
    """The axis sizes of a Block Tensor-Train from ``d_in`` to ``d_out`` features (2406.06248, section 3).

    Core i maps the axes (r_{i-1}, m_i) to (n_i, r_i), with a block of its own for every (n_1..n_{i-1}, m_{i+1}..m_K).
    Inputs are flattened (m_K .. m_1) and outputs (n_1 .. n_K), the last one fastest; all inner ranks are ``rank``.

    Raises:
        FieldError: an axis, the rank or a width is not a positive whole number, there are fewer than two cores, not as
            many input as output axes, or the axes hold fewer features than a width.
    """

    m: tuple[int, ...]
    n: tuple[int, ...]
    rank: int
    d_in: int
    d_out: int

    def __post_init__(self) -> None:
        if len(self.n) != len(self.m) or len(self.m) < 2:
            raise FieldError(
                "m, n", expected="one input and one output axis for each of 2 or more cores", got=self.axes
            )
        for size in (*self.m, *self.n):
            check_size("m, n", size)
        check_size("rank", self.rank)
        check_size("d_in", self.d_in, largest=self.inputs)
        check_size("d_out", self.d_out, largest=self.outputs)

    @property
    def axes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The input and the output axes."""
        return self.m, self.n

    @property
    def inputs(self) -> int:
        """How many input features the axes hold; more than ``d_in`` is padding."""
        return math.prod(self.m)

    @property
    def outputs(self) -> int:
        """How many output features the axes hold; more than ``d_out`` is cropped."""
        return math.prod(self.n)

    @property
    def padding_in(self) -> float:
        """Padded inputs as a share of ``d_in``."""
        return self.inputs / self.d_in - 1

    @property
    def padding_out(self) -> float:
        """Padded outputs as a share of ``d_out``."""
        return self.outputs / self.d_out - 1

    @property
    def cores(self) -> tuple["Core", ...]:
        """The cores in the order of their application."""
        ranks = (1, *[self.rank] * (len(self.m) - 1), 1)
        return tuple(
            Core(
                done=math.prod(self.n[:i]),
                ahead=math.prod(self.m[i + 1 :]),
                rank_in=ranks[i],
                m=self.m[i],
                n=self.n[i],
                rank_out=ranks[i + 1],
            )
            for i in range(len(self.m))
        )

    @property
    def cost(self) -> Cost:
        """Parameters and MACs: both ``sum_i r_{i-1} r_i d**(1 + 1/K)`` where every axis is ``d**(1/K)``; first core first.

        ``intermediate`` is the widest of the arrays between two cores, in features.
        """
        params = sum(math.prod(core.shape) for core in self.cores)
        intermediate = max(core.done * core.ahead * core.n * core.rank_out for core in self.cores[:-1])
        return Cost(params=params, macs=params, intermediate=intermediate, order="A_first")

    @property
    def rank_bound(self) -> int:
        """The narrowest cut between two cores, counting only what is neither padded nor cropped: the rank is at most it."""
        cuts = []
        for i in range(1, len(self.m)):
            live_out = -(-self.d_out // math.prod(self.n[i:]))
            live_in = -(-self.d_in // math.prod(self.m[:i]))
            cuts.append(live_out * self.rank * live_in)
        return min(self.d_in, self.d_out, *cuts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """One core: ``done * ahead`` blocks, each a matrix from (rank_in, m) to (n, rank_out) features."""

    done: int
    ahead: int
    rank_in: int
    m: int
    n: int
    rank_out: int

    @property
    def shape(self) -> tuple[int, int, int, int, int, int]:
        """The sizes in the order of the fields."""
        return (self.done, self.ahead, self.rank_in, self.m, self.n, self.rank_out)

    @property
    def fan_in(self) -> int:
        """The inputs of one block."""
        return self.rank_in * self.m

    @property
    def fan_out(self) -> int:
        """The outputs of one block."""
        return self.n * self.rank_out


def monarch_dims(d_in: int, d_out: int, num_blocks: int) -> Dims:
    """Monarch with ``num_blocks`` blocks in both factors: the block tensor-train whose rho fills the blocks.

    Parameters: ``(d_in + d_out) * min(d_in, d_out) / num_blocks`` where num_blocks squared divides the smaller width and
    num_blocks the other. Elsewhere the blocks are rounded up: the papers' layer skips some pairs of blocks there, ours
    joins every pair, so that the rank stays full but for what padding takes. Source: 2204.00595, section 3.1.

    Raises:
        FieldError: a width or the number of blocks is not a positive whole number, or there are more blocks than features.
    """
    smaller = min(check_size("d_in", d_in), check_size("d_out", d_out))
    check_size("num_blocks", num_blocks, largest=smaller)
    block_in, block_out = -(-d_in // num_blocks), -(-d_out // num_blocks)
    rank = -(-min(block_in, block_out) // num_blocks)
    return Dims.of((block_in, 1, num_blocks, 1, block_out, num_blocks, rank), d_in, d_out)


def btt_dims(d_in: int, d_out: int, rank: int) -> Dims:
    """Block Tensor-Train of two cores, the widths split evenly (2406.06248, section 3); rank 1 is the named ``monarch``.

    Raises:
        FieldError: a width or the rank is not a positive whole number.
    """
    check_size("rank", rank)
    return replace(resolve(NAMED["monarch"], d_in, d_out), rho=rank)


def low_rank_dims(d_in: int, d_out: int, rank: int) -> Dims:
    """Two thin matrices with ``rank`` features between them.

    Raises:
        FieldError: a width or the rank is not a positive whole number.
    """
    return Dims.of((d_in, 1, 1, 1, d_out, 1, check_size("rank", rank)), d_in, d_out)


def btt_axes(d_in: int, d_out: int, num_cores: int, rank: int) -> BTTAxes:
    """Block Tensor-Train of ``num_cores`` cores, both widths split evenly (2406.06248, section 3).

    Axes that ascend on the way in and descend on the way out keep every cut wide; of the four ways to order both sides,
    the one of the highest rank is taken, then the cheapest, judged at rank 1 so that the axes are the same at every rank.

    Raises:
        FieldError: a width or the rank is not a positive whole number, or the cores are not 2 to ``MAX_CORES``.
    """
    check_size("num_cores", num_cores, largest=MAX_CORES)
    if num_cores < 2:
        raise FieldError("num_cores", expected=f"a whole number from 2 to {MAX_CORES}", got=num_cores)
    dims = btt_dims(d_in, d_out, rank)
    if num_cores == 2:
        return BTTAxes(m=(dims.alpha, dims.gamma), n=(dims.phi, dims.epsilon), rank=rank, d_in=d_in, d_out=d_out)
    m, n = balanced_split(d_in, num_cores), balanced_split(d_out, num_cores)
    orders = [BTTAxes(m=i, n=o, rank=1, d_in=d_in, d_out=d_out) for i in (m, m[::-1]) for o in (n, n[::-1])]
    return replace(min(orders, key=lambda axes: (-axes.rank_bound, axes.cost.macs)), rank=rank)


@lru_cache(maxsize=4096)
def balanced_split(width: int, num_parts: int) -> tuple[int, ...]:
    """``num_parts`` nearly equal sizes, ascending, whose product is ``width``, or little more where it has no good factors.

    Never less, so no feature is dropped. From width 256 on, three parts pad by at most 4 percent (2 from 1,300 on) and four
    by at most 7; smaller paddings would need parts so uneven that they cost more.

    Raises:
        FieldError: the width is not a positive whole number, or the number of parts is not from 1 to ``MAX_CORES``.
    """
    check_size("width", width)
    check_size("num_parts", num_parts, largest=MAX_CORES)
    target = width ** (1 / num_parts)
    window = range(max(1, int(target / 2)), math.ceil(2 * target) + 1)
    candidates = (
        (*sizes, -(-width // math.prod(sizes))) for sizes in combinations_with_replacement(window, num_parts - 1)
    )
    return min((_unevenness(sizes, width), tuple(sorted(sizes))) for sizes in candidates)[1]


def head_aligned_dims(num_heads: int, head_width: int, case: HeadCase, rank: int = 1) -> Dims:
    """BTT from ``num_heads * head_width`` features to as many, whose axes are the heads and the features within a head.

    With phi = n, epsilon = d the output is flattened (head, within head), and each head owns one block of B: natural for
    queries, keys and values. With gamma = n, alpha = d the same holds of the input and of A: natural for the output
    projection. No permutation is needed in either. Source: 2410.02117, figure 10.

    Raises:
        FieldError: a size is not a positive whole number, or the case is unknown.
    """
    sizes = {"n": check_size("num_heads", num_heads), "d": check_size("head_width", head_width)}
    if case not in get_args(HeadCase):
        raise FieldError("case", expected=f"one of {', '.join(get_args(HeadCase))}", got=case)
    alpha, gamma, epsilon, phi = (sizes[letter] for letter in case.strip("()").split("|"))
    width = check_size("num_heads * head_width", num_heads * head_width)
    return Dims.of((alpha, 1, gamma, 1, epsilon, phi, check_size("rank", rank)), width, width)


def _unevenness(sizes: tuple[int, ...], width: int) -> float:
    """The sum of squared log distances from equal sizes, and the price of padding."""
    target = math.log(width) / len(sizes)
    padding = math.prod(sizes) / width - 1
    price = _PADDING_BASE * len(sizes) + _PADDING_PRICE * padding if padding else 0.0
    # Rounding makes ties exact, so that the order of the sizes decides and not float noise.
    return round(sum((math.log(size) - target) ** 2 for size in sizes) + price, 9)
