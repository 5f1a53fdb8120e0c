"""Structures to measure proxies with: a reference set that spans the taxonomy, and random ones."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from einlayers.theta import NAMED, Theta
from search.checks import Whole, check_whole
from search.space import SUBSPACES

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomStructures:
    """Structures drawn evenly from the coordinates of the full space, a stated number from a stated seed; all of them
    different, and none of them dense."""

    count: Whole
    seed: Whole = 0

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_whole("count", self.count, 3, 500)
        check_whole("seed", self.seed, 0, 2**63 - 1)

    def __iter__(self) -> Iterator[Theta]:
        draw, full = random.Random(self.seed), SUBSPACES["full"]
        drawn = {NAMED["dense"]}
        while len(drawn) <= self.count:
            # To four digits, so that what is drawn can be written down.
            theta = full.to_theta(tuple(round(draw.random(), 4) for _ in range(full.num_coordinates)))
            if theta not in drawn:
                drawn.add(theta)
                yield theta
