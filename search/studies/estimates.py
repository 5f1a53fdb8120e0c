"""What studies find: numbers with intervals, and how well rankings agree."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """How well two rankings of the same structures agree: Spearman's and Kendall's (tau-b) rank correlations."""

    spearman: Estimate
    kendall: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How well the replicates of the same structures agree: rank correlations between two of them, on average over all
    pairs (with an interval over structures) and in the worst pair."""

    spearman: Estimate
    lowest_spearman: float
    kendall: Estimate
    num_structures: int
    num_replicates: int
