"""Structures that somebody chose: the named designs, and the grid of the paper."""

from collections.abc import Mapping
from typing import Literal

from einlayers.theta import NAMED, Theta

GridName = Literal["named", "papers"]

PAPERS_GRID: tuple[Theta, ...] = tuple(
    Theta.parse(text)
    for text in (
        # BTT of full rank, with blocks of all sizes.
        "(0.5|0|0.5|0|0.5|0.5|0)",
        "(0.33|0|0.67|0|0.67|0.33|0)",
        "(0.25|0|0.75|0|0.75|0.25|0)",
        "(0.67|0|0.33|0|0.33|0.67|0)",
        "(0.75|0|0.25|0|0.25|0.75|0)",
        # What is called BTT of low rank there; with many blocks (gamma + phi of at least 1) the rank is full.
        "(0.67|0|0.33|0|0.67|0.33|0)",
        "(0.33|0|0.67|0|0.33|0.67|0)",
        "(0.75|0|0.25|0|0.75|0.25|0)",
        "(0.25|0|0.75|0|0.25|0.75|0)",
        # BTT of a higher rank.
        "(0.5|0|0.5|0|0.5|0.5|0.25)",
        "(0.5|0|0.5|0|0.5|0.5|0.33)",
        "(0.33|0|0.67|0|0.67|0.33|0.25)",
        "(0.67|0|0.33|0|0.33|0.67|0.25)",
        "(0.67|0|0.33|0|0.67|0.33|0.25)",
        "(0.33|0|0.67|0|0.33|0.67|0.25)",
        # Kronecker and tensor-train.
        "(0.5|0.5|0|0.5|0.5|0|0)",
        "(0.33|0.67|0|0.33|0.67|0|0)",
        "(0.5|0.5|0|0.5|0.5|0|0.25)",
        "(0.33|0.67|0|0.33|0.67|0|0.25)",
        # Low rank.
        "(1|0|0|0|1|0|0.75)",
        "(1|0|0|0|1|0|0.5)",
        # Neither.
        "(0.5|0.25|0.25|0.25|0.5|0.25|0)",
        "(0.5|0.25|0.25|0.25|0.5|0.25|0.25)",
    )
)
"""The 23 structures that 2410.02117 (section 5) compares with dense, as its experiments write them."""

GRIDS: Mapping[GridName, tuple[Theta, ...]] = {"named": tuple(NAMED.values()), "papers": PAPERS_GRID}
"""The lists that a search can try as they are."""
