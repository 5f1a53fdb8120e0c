"""Structures to measure proxies with: a reference set that spans the taxonomy, and random ones."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import cycle, islice
from typing import ClassVar, Literal, get_args

from einlayers.errors import FieldError
from einlayers.taxonomy import taxonomy
from einlayers.theta import NAMED, Theta
from search.checks import Whole, check_whole
from search.proxies.registry import ProxySpec
from search.space import SUBSPACES
from search.structure import structure_of

REFERENCE_SET: tuple[Theta, ...] = tuple(
    Theta.parse(text)
    for text in (
        # omega = 0 and psi = 1: nothing shared, nothing lost.
        "(0|0|1|0|0|1|0)",
        "(1/3|0|2/3|0|1/3|2/3|0)",
        "(1/2|0|1/2|0|1/2|1/2|1/6)",
        # psi < 1: 1/2 and 1/3.
        "(3/4|0|1/4|0|3/4|1/4|0)",
        "(1|0|0|0|1|0|1/3)",
        # omega > 0: 1/6, 1/3, 1/2.
        "(1/2|1/6|1/3|1/6|1/2|1/3|0)",
        "(2/3|1/3|0|1/3|2/3|0|0)",
        "(1/2|1/2|0|1/2|1/2|0|1/3)",
    )
)
"""Eight structures, dense first, two or three of each group of the taxonomy (2410.02117, section 4)."""


Spread = Literal["cube", "groups"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomStructures:
    """Random structures, a stated number from a stated seed; all of them different, and none of them dense.

    ``spread``: evenly over the coordinates of the full space (``cube``), where most lose no rank and share little, and lie
    close together; or as many of each group of the taxonomy (``groups``): parameters shared or not, rank lost or not, with
    exponents that are thirds or quarters.
    """

    count: Whole
    seed: Whole = 0
    spread: Spread = "cube"

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_whole("count", self.count, 3, 500)
        check_whole("seed", self.seed, 0, 2**63 - 1)
        if self.spread not in get_args(Spread):
            raise FieldError("spread", expected=f"one of {', '.join(get_args(Spread))}", got=self.spread)

    def __iter__(self) -> Iterator[Theta]:
        drawn = {NAMED["dense"]}
        for theta in self.draws():
            if len(drawn) > self.count:
                break
            if theta not in drawn:
                drawn.add(theta)
                yield theta

    def on(self, proxy: ProxySpec) -> tuple[Theta, ...]:
        """As many that are models of their own on this proxy, at the width that suits each: axes come to 1 in small layers,
        so that some structures are dense there, or the same as another.

        Raises:
            FieldError: the proxy has not so many, or they are hard to find.
        """
        return _on(self, replace(proxy, width=None))

    def draws(self) -> Iterator[Theta]:
        """All draws of the seed, without end, some of them more than once."""
        draw = random.Random(self.seed)
        return _by_group(draw) if self.spread == "groups" else _in_cube(draw)


@lru_cache(maxsize=64)
def _on(structures: RandomStructures, proxy: ProxySpec) -> tuple[Theta, ...]:
    known, found = {structure_of(NAMED["dense"], proxy).digest}, list[Theta]()
    for theta in islice(structures.draws(), _DRAWS_FOR_EACH * structures.count):
        if (digest := structure_of(theta, proxy).digest) not in known:
            known.add(digest)
            found.append(theta)
        if len(found) == structures.count:
            return tuple(found)
    expected = (
        f"no more random structures than differ on the proxy, of which {len(found)} were found: a wider one has more"
    )
    raise FieldError("structures", expected=expected, got=structures.count)


def _in_cube(draw: random.Random) -> Iterator[Theta]:
    full = SUBSPACES["full"]
    while True:
        # To four digits, so that what is drawn can be written down.
        yield full.to_theta(tuple(round(draw.random(), 4) for _ in range(full.num_coordinates)))


def _by_group(draw: random.Random) -> Iterator[Theta]:
    """Groups take turns."""
    for group in cycle([(False, False), (False, True), (True, False), (True, True)]):
        yield next(theta for theta in _of_fractions(draw) if _group(theta) == group)


def _group(theta: Theta) -> tuple[bool, bool]:
    """Whether it shares parameters, and whether it loses rank."""
    found = taxonomy(theta)
    return found.omega > _EXACT, found.psi < 1 - _EXACT


def _of_fractions(draw: random.Random) -> Iterator[Theta]:
    """Structures whose axes are thirds or quarters of either side, and whose rank is one of them too."""
    full = SUBSPACES["full"]
    while True:
        sides = [_fractions(draw, draw.choice((3, 4))) for _ in range(2)]
        theta = Theta.of((*sides[0], *sides[1], draw.choice(_RANKS))).canonical()
        if full.to_unit(theta) is not None:
            yield theta


def _fractions(draw: random.Random, parts: int) -> tuple[float, float, float]:
    """Three whole numbers of ``parts`` that sum to 1, all choices alike."""
    first, second = sorted(draw.sample(range(parts + 2), 2))
    return first / parts, (second - first - 1) / parts, (parts + 1 - second) / parts


_DRAWS_FOR_EACH = 20
"""How many draws may go into one structure: of a proxy that people use, one of six draws is dense or a repetition."""

_RANKS = (0.0, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4)
_EXACT = 1e-9
