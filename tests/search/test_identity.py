"""Which proxies are the same: what was stored before an option came is what it was."""

import pytest

from search.proxies.char_lm import CharLM
from search.proxies.identity import digest
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
