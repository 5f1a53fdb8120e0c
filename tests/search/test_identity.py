"""Which proxies are the same: what was stored before an option came is what it was."""

from itertools import product
from typing import ClassVar

import pytest

from search.proxies.char_lm import CharLM
from search.proxies.identity import differences, digest
from search.proxies.registry import ProxySpec
from search.proxies.regression import Regression


@pytest.mark.parametrize(
    ("proxy", "before"),
    [
        (Regression(), "bc7cccfcfbf47d934355ac101230a15c"),
        (CharLM(), "cf9410682957a89f714c803ed49e061a"),
    ],
    ids=["regression", "char_lm"],
)
def test_are_those_of_before_there_were_options(proxy: ProxySpec, before: str) -> None:
    assert digest(proxy) == before


def test_differ_by_an_option_that_is_asked_for() -> None:
    assert len({digest(Regression()), digest(Regression(outputs=8)), digest(Regression(base_depth=2))}) == 3


class TestDifferences:
    PROXIES: ClassVar[tuple[ProxySpec, ...]] = (
        Regression(),
        Regression(outputs=8),
        Regression(outputs=8, base_depth=2),
        Regression(train_flops=2e9, base_lr=1e-3),
        CharLM(),
    )

    def test_are_none_exactly_where_the_digests_are_equal(self) -> None:
        for one, other in product(self.PROXIES, self.PROXIES):
            assert (not differences(one, other)) == (digest(one) == digest(other))

    def test_say_what_each_has(self) -> None:
        assert differences(self.PROXIES[0], self.PROXIES[2]) == {"outputs": (1, 8), "base_depth": (None, 2)}
        assert differences(Regression(), CharLM())["kind"] == ("regression", "char_lm")
