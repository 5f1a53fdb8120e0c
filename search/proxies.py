"""Proxy tasks on paper: their settings, the shapes of their layers, their exact cost. Training them is ``workers``' part.

Everything that can be known about a trial before a second of training is spent follows from here: the width that makes
a structure cost what the dense model costs, its parameters, its MACs, and the layers that it consists of.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator

from einlayers.dims import MAX_WIDTH
from einlayers.taxonomy import layer_cost
from einlayers.theta import NAMED, Theta
from search.checks import Number, Whole, check_number, check_whole

CHAR_VOCABULARY = "\n" + "".join(map(chr, range(32, 127)))
"""The 96 characters of the papers' character language model: newline and printable ASCII (2410.02117, appendix)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """A kind of replaceable linear layer in a model: its name, its widths, how often it occurs."""

    name: str
    d_in: int
    d_out: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCost:
    """A whole model: all parameters, and forward MACs per example (here: per token), attention and head included."""

    params: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StdlibCorpus:
    """The source files of the Python standard library: real text that is on every machine that runs this."""

    kind: Literal["stdlib"] = "stdlib"

    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCorpus:
    """A text file of the user's own, below the directory that the operator allows (``EINSEARCH_CORPORA_DIR``)."""

    path: str
    kind: Literal["file"] = "file"

    __pydantic_config__: ClassVar = {"extra": "forbid"}


Corpus = Annotated[StdlibCorpus | FileCorpus, Discriminator("kind")]


@dataclass(frozen=True, slots=True, kw_only=True)
class CharLM:
    """A small GPT on characters, trained for ``train_flops`` (6 MACs per token and parameter use, attention included).

    ``width`` fixes one width for every structure; by default each structure gets the width whose MACs per token are
    nearest those of the dense model at ``dense_width``, so that equal compute is also equal data. One fixed width ranks
    reproducibly and wrongly; it is there only to be asked for.

    Raises:
        FieldError: a value is outside its range.
    """

    kind: Literal["char_lm"] = "char_lm"
    dense_width: Whole = 24
    width: Whole | None = None
    depth: Whole = 2
    num_heads: Whole = 4
    context: Whole = 64
    batch_size: Whole = 8
    train_flops: Number = 1e11
    base_lr: Number = 5e-3
    corpus: Corpus = field(default_factory=StdlibCorpus)

    BASE_WIDTH: ClassVar[int] = 32
    """The dense width at which ``base_lr`` is the tuned learning rate; muP carries it to every other model."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_whole("num_heads", self.num_heads, 1, 128)
        for name in ("dense_width", "width"):
            width = getattr(self, name)
            if width is not None or name == "dense_width":
                check_whole(name, width, self.num_heads, 4096, multiple_of=self.num_heads)
        check_whole("depth", self.depth, 1, 96)
        check_whole("context", self.context, 2, 4096)
        check_whole("batch_size", self.batch_size, 1, 4096)
        check_number("train_flops", self.train_flops, 1e6, 1e21)
        check_number("base_lr", self.base_lr, 1e-8, 1e8)

    def layers(self, width: int) -> tuple[LayerShape, ...]:
        """The replaceable layers of the model: attention's q, k, v and output, and the two of the feed-forward block."""
        return (
            LayerShape(name="attention", d_in=width, d_out=width, count=4 * self.depth),
            LayerShape(name="up", d_in=width, d_out=4 * width, count=self.depth),
            LayerShape(name="down", d_in=4 * width, d_out=width, count=self.depth),
        )

    def cost(self, theta: Theta, width: int) -> ModelCost:
        """Parameters and MACs per token of the model whose layers have the structure ``theta``."""
        layers = [(layer.count, layer_cost(theta, layer.d_in, layer.d_out)) for layer in self.layers(width)]
        vocabulary = len(CHAR_VOCABULARY)
        norms = self.depth * (2 * width + 2 * (width // self.num_heads)) + width
        return ModelCost(
            params=sum(n * cost.params for n, cost in layers) + (2 * vocabulary + self.context) * width + norms,
            macs=sum(n * cost.macs for n, cost in layers) + self.fixed_macs(width),
        )

    def width_for(self, theta: Theta) -> int:
        """The width of this structure: the fixed one, or the one that costs what the dense model costs."""
        return self.width if self.width is not None else _matched_width(self, theta)

    def candidate_widths(self) -> Iterator[int]:
        """The widths that a model may have: every multiple of the number of heads, later on in steps of under 2%."""
        width = self.num_heads
        while 4 * width <= MAX_WIDTH:
            yield width
            width += self.num_heads * max(1, width // (64 * self.num_heads))

    def num_steps(self, macs: int) -> int:
        """How many optimiser steps ``train_flops`` pays for, at least one: 6 MACs per token for forward and backward."""
        return max(1, round(self.train_flops / (6 * macs * self.batch_size * self.context)))

    def fixed_macs(self, width: int) -> int:
        """MACs per token outside of the replaceable layers: the dense head, and attention's scores and values.

        Attention is 2 T d a token and block, without halving for causality, as the papers count.
        """
        return (2 * self.context * self.depth + len(CHAR_VOCABULARY)) * width


ProxySpec = CharLM
"""Any proxy; becomes a union, told apart by ``kind``, with the second member."""


@lru_cache(maxsize=4096)
def _matched_width(proxy: CharLM, theta: Theta) -> int:
    target = proxy.cost(NAMED["dense"], proxy.dense_width).macs
    nearest, smallest_gap = proxy.num_heads, float("inf")
    for width in proxy.candidate_widths():
        # Attention and head grow with the width whatever the structure: once they alone are too much, so is the rest.
        if proxy.fixed_macs(width) - target >= smallest_gap:
            break
        gap = abs(proxy.cost(theta, width).macs - target)
        if gap < smallest_gap:
            nearest, smallest_gap = width, gap
    return nearest
