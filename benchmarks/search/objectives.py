"""What samplers are compared on: landscapes whose optimum is known, and a table of structures that were really trained."""

import csv
import gzip
import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy.stats import spearmanr
from sklearn.ensemble import ExtraTreesRegressor  # type: ignore[import-untyped]  # it ships no types
from sklearn.model_selection import KFold, cross_val_predict  # type: ignore[import-untyped]

from benchmarks.search.contestants import PROXY
from einlayers.taxonomy import taxonomy
from einlayers.theta import NAMED, Theta
from search.structure import layer_dims

TABLE = Path(__file__).parent / "screening.csv.gz"
"""What ``python -m benchmarks.search.record`` has measured."""


SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Of its compute, after which a run of the table has a loss."""

Curve = tuple[float, ...]
"""These losses, or the last of them."""

_NUM_TREES = 100


class Objective(Protocol):
    """Structures with a true loss, a logarithm, of which a trial sees a noisy one."""

    @property
    def name(self) -> str:
        """As the report calls it."""
        ...

    @property
    def lowest(self) -> float:
        """The true loss of the best structure."""
        ...

    def place(self, theta: Theta, tried: Collection[Theta]) -> Theta:
        """The structure that is trained for ``theta``."""
        ...

    def truth(self, theta: Theta) -> float:
        """The true loss of a structure that was placed."""
        ...

    def curve(self, theta: Theta, seed: int, replicate: int) -> Curve:
        """The losses that its trial number ``replicate`` sees in the searches from ``seed``, at the last of ``SHARES``: the
        same, whoever searches."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Landscape:
    """A loss that grows with the distance from one structure: in sharing, in rank, and in the exponents."""

    name: str
    target: Theta
    noise_sd: float = 0.0

    @property
    def lowest(self) -> float:
        """That of the target."""
        return 0.0

    def place(self, theta: Theta, tried: Collection[Theta]) -> Theta:
        """Itself."""
        return theta

    def truth(self, theta: Theta) -> float:
        """How far it is from the target; a theta and its swap are the same structure."""
        here, there = taxonomy(theta), taxonomy(self.target)
        target = self.target.canonical().exponents
        away = min(math.dist(each.exponents, target) for each in (theta.canonical(), theta.canonical().swapped()))
        return 0.6 * abs(here.omega - there.omega) + 0.3 * abs(here.psi - there.psi) + 0.2 * away

    def curve(self, theta: Theta, seed: int, replicate: int) -> Curve:
        """Its end alone, with noise."""
        return (math.exp(self.truth(theta) + _draw(theta, seed, replicate).gauss(0, self.noise_sd)),)


@dataclass(frozen=True)
class Table:
    """Structures with the learning curves of several seeds, by theta; a trial sees one of them, and the mean of the losses
    at their ends, as logarithms, counts as true."""

    curves: Mapping[Theta, Sequence[Curve]]
    name: str = "recorded, nothing between"

    @cached_property
    def lowest(self) -> float:
        """That of the best structure of the table."""
        return float(self.truths.min())

    def place(self, theta: Theta, tried: Collection[Theta]) -> Theta:
        """The structure of the table that is the most similar as a model, of those that have not been tried."""
        distances = np.linalg.norm(self.features - np.array(_features(theta)), axis=1)
        nearest_first = (self._thetas[int(i)] for i in np.argsort(distances, kind="stable"))
        return next(each for each in nearest_first if each not in tried)

    def truth(self, theta: Theta) -> float:
        """The mean over all seeds."""
        return float(self.truths[self._thetas.index(theta)])

    def curve(self, theta: Theta, seed: int, replicate: int) -> Curve:
        """One of its seeds, from the beginning; another one for every replicate, as long as there are some."""
        return self.curve_of(theta, _draw(theta, seed), replicate)

    def curve_of(self, theta: Theta, draw: random.Random, replicate: int) -> Curve:
        """One of its seeds, in an order that is drawn."""
        curves = self.curves[theta]
        return draw.sample(curves, len(curves))[replicate % len(curves)]

    @cached_property
    def truths(self) -> np.ndarray:
        """``(S,)``: the true losses of the S structures, in their order."""
        return np.array([np.mean([math.log(curve[-1]) for curve in curves]) for curves in self.curves.values()])

    @cached_property
    def features(self) -> np.ndarray:
        """``(S, F)``: what the models of the S structures are, in F numbers each."""
        return np.array([_features(theta) for theta in self.curves])

    @cached_property
    def _thetas(self) -> list[Theta]:
        return list(self.curves)


@dataclass(frozen=True)
class Interpolated:
    """The whole space, by a table: a surrogate benchmark (Eggensperger et al., AAAI 2015).

    The true loss is what a forest expects that has learnt the table (extremely randomized trees: Geurts, Ernst and Wehenkel,
    Machine Learning 63, 2006), which is no model that any sampler has. It knows the structures of the table by heart, and
    expects of none a lower loss than the lowest of these. The noise is that of the most similar structure.
    """

    table: Table
    name: str = "recorded"

    @property
    def lowest(self) -> float:
        """That of the best structure of the table."""
        return self.table.lowest

    def place(self, theta: Theta, tried: Collection[Theta]) -> Theta:
        """Itself."""
        return theta

    def truth(self, theta: Theta) -> float:
        """What is to be expected of it."""
        return float(self._forest.predict([_features(theta)])[0])

    def curve(self, theta: Theta, seed: int, replicate: int) -> Curve:
        """That of the most similar structure of the table, at the loss of this one."""
        similar = self.table.place(theta, tried=())
        curve = self.table.curve_of(similar, _draw(theta, seed), replicate)
        factor = math.exp(self.truth(theta) - self.table.truth(similar))
        return tuple(loss * factor for loss in curve)

    def agreement(self) -> float:
        """Spearman's correlation between losses and what is expected by the other nine tenths of the table."""
        folds = KFold(10, shuffle=True, random_state=0)
        expected = cross_val_predict(_new_forest(), self.table.features, self.table.truths, cv=folds)
        return float(spearmanr(expected, self.table.truths).statistic)

    @cached_property
    def _forest(self) -> ExtraTreesRegressor:
        return _new_forest().fit(self.table.features, self.table.truths)


LANDSCAPES: tuple[Landscape, ...] = tuple(
    Landscape(name=f"{place}, {'noise' if noise_sd else 'no noise'}", target=target, noise_sd=noise_sd)
    for place, target in (
        ("optimum a known design", NAMED["monarch"]),
        ("optimum on faces", Theta.of((0.7, 0, 0.3, 0, 0.4, 0.6, 0.15))),
        ("optimum inside", Theta.parse("(0.45|0.1|0.45|0.15|0.5|0.35|0.1)")),
    )
    for noise_sd in (0.0, 0.02)
)
"""As noisy as a trial of a few seconds, or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A training run of the table: its losses at ``SHARES`` of its compute."""

    theta: Theta
    width: int
    seed: int
    losses: Curve


def read_rows(path: Path = TABLE) -> Iterator[Row]:
    """The runs that were recorded."""
    with gzip.open(path, "rt", newline="") as file:
        for theta, width, seed, *losses in csv.reader(file):
            yield Row(theta=Theta.parse(theta), width=int(width), seed=int(seed), losses=tuple(map(float, losses)))


def write_rows(rows: Sequence[Row], path: Path = TABLE) -> None:
    """Keep runs, in the same bytes whenever they are the same runs."""
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as packed:
        lines = (
            ",".join([_text(row.theta), str(row.width), str(row.seed), *(f"{loss:.5g}" for loss in row.losses)])
            for row in rows
        )
        packed.write("".join(f"{line}\n" for line in lines).encode())


def read_table(path: Path = TABLE) -> Table:
    """The table of these runs."""
    curves: dict[Theta, list[Curve]] = {}
    for row in read_rows(path):
        curves.setdefault(row.theta, []).append(row.losses)
    return Table(curves)


def _draw(theta: Theta, *numbers: int) -> random.Random:
    return random.Random(" ".join([_text(theta.canonical()), *map(str, numbers)]))


def _text(theta: Theta) -> str:
    """All of it: as text for people, a theta has three digits."""
    return "(" + "|".join(f"{exponent:.12g}" for exponent in theta.exponents) + ")"


def _new_forest() -> ExtraTreesRegressor:
    return ExtraTreesRegressor(_NUM_TREES, random_state=0)


@lru_cache(maxsize=65536)
def _features(theta: Theta) -> tuple[float, ...]:
    """What the model of ``theta`` is: the logarithms of its axes, layer after layer, and of its width; and the taxonomy of
    the axes of its first layer. A theta and its swap are the same model."""
    theta = theta.canonical()
    width = PROXY.width_for(theta)
    layers = list(layer_dims(theta, PROXY, width).values())
    found = taxonomy(layers[0].theta)
    axes = [math.log(axis) for dims in layers for axis in dims.axes]
    return (*axes, math.log(width), found.omega, found.psi, found.nu)
