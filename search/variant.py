"""What a trial changes of the model of its search's proxy: numbers of experts, and structures of groups of layers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from einlayers.errors import FieldError
from einlayers.theta import Theta
from search.checks import Whole, check_whole
from search.proxies.registry import ProxySpec
from search.proxies.shapes import MAX_EXPERTS, GroupName, GroupThetas, Mixture


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Another model than the proxy's own: ``num_experts`` experts in its mixtures, of which each token takes ``top_k``;
    groups of its layers with ``thetas`` of their own. What is not given is the proxy's.

    Raises:
        FieldError: a value is outside its range, or nothing is given.
    """

    num_experts: Whole | None = None
    top_k: Whole | None = None
    thetas: GroupThetas | None = None

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("num_experts", "top_k"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1, MAX_EXPERTS)
        if self.num_experts is None and self.top_k is None and self.thetas is None:
            raise FieldError("num_experts", expected="num_experts, top_k or thetas to be given", got=None)

    def __str__(self) -> str:
        """In words that can be read back, such as ``num_experts=8 attention=(0|0|1|0|0|1|0)``."""
        numbers = {"num_experts": self.num_experts, "top_k": self.top_k}
        given = [(name, str(number)) for name, number in numbers.items() if number is not None]
        given += [(group, str(theta)) for group, theta in self.group_thetas.items()]
        return " ".join(f"{name}={value}" for name, value in given)

    def on(self, proxy: ProxySpec) -> ProxySpec:
        """The proxy whose model this is: what a trial is trained on, costed by, and given its width by.

        Raises:
            FieldError: the proxy has no mixture, or more experts would be taken than there are; or its model has no such
                group of layers, or has no other one.
        """
        if self.num_experts is not None or self.top_k is not None:
            proxy = self._with_numbers(proxy)
        if self.thetas is not None:
            proxy = replace(proxy, thetas=GroupThetas(**{**proxy.group_thetas, **self.group_thetas}))
        return proxy

    def _with_numbers(self, proxy: ProxySpec) -> ProxySpec:
        if proxy.mixture is None:
            field = "num_experts" if self.num_experts is not None else "top_k"
            raise FieldError(field, expected="none where the proxy has no mixture", got=getattr(self, field))
        num_experts, top_k = self.numbers(proxy.mixture)
        return replace(proxy, mixture=replace(proxy.mixture, num_experts=num_experts, top_k=top_k))

    @property
    def group_thetas(self) -> Mapping[GroupName, Theta]:
        """The structures of groups of layers that are not as in the proxy."""
        return self.thetas.given if self.thetas else {}

    def numbers(self, mixture: Mixture) -> tuple[int, int]:
        """How many experts there are and how many of them a token takes, where ``mixture`` is the proxy's own."""
        return self.num_experts or mixture.num_experts, self.top_k or mixture.top_k
