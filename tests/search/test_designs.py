"""The lists of designs."""

import pytest

from einlayers.taxonomy import taxonomy
from search.designs import PAPERS_GRID
from tests import golden


def test_of_the_papers_are_23() -> None:
    assert len(set(PAPERS_GRID)) == 23


@pytest.mark.parametrize("facts", [each for each in golden.exponents() if each.reference], ids=lambda each: each.name)
def test_of_the_papers_hold_those_that_are_known(facts: golden.Exponents) -> None:
    assert facts.theta in PAPERS_GRID
    assert taxonomy(facts.theta).omega == pytest.approx(facts.omega)
