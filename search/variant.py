"""What a trial changes of its search's proxy beside theta: the whole numbers of its mixture."""

from dataclasses import dataclass, replace
from typing import ClassVar

from einlayers.errors import FieldError
from search.checks import Whole, check_whole
from search.proxies.registry import ProxySpec
from search.proxies.shapes import MAX_EXPERTS, Mixture


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Another model than the proxy's own: ``num_experts`` experts in its mixtures, of which each token takes ``top_k``.
    What is not given is the proxy's.

    Raises:
        FieldError: a value is outside its range, or nothing is given.
    """

    num_experts: Whole | None = None
    top_k: Whole | None = None

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("num_experts", "top_k"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1, MAX_EXPERTS)
        if self.num_experts is None and self.top_k is None:
            raise FieldError("num_experts", expected="num_experts or top_k to be given", got=None)

    def __str__(self) -> str:
        """In words that can be read back, such as ``num_experts=8 top_k=2``."""
        given = {"num_experts": self.num_experts, "top_k": self.top_k}
        return " ".join(f"{name}={value}" for name, value in given.items() if value is not None)

    def on(self, proxy: ProxySpec) -> ProxySpec:
        """The proxy whose model this is: what a trial is trained on, costed by, and given its width by.

        Raises:
            FieldError: the proxy has no mixture, or more experts would be taken than there are.
        """
        if proxy.mixture is None:
            field = "num_experts" if self.num_experts is not None else "top_k"
            raise FieldError(field, expected="none where the proxy has no mixture", got=getattr(self, field))
        num_experts, top_k = self.numbers(proxy.mixture)
        return replace(proxy, mixture=replace(proxy.mixture, num_experts=num_experts, top_k=top_k))

    def numbers(self, mixture: Mixture) -> tuple[int, int]:
        """How many experts there are and how many of them a token takes, where ``mixture`` is the proxy's own."""
        return self.num_experts or mixture.num_experts, self.top_k or mixture.top_k
