"""Noise between seeds: how probable it is that one structure is better than another, judged by a few trials of each.

The losses of a structure are taken to be normal around a mean of its own, on the log scale, with a standard deviation that
all structures share. Nothing is assumed of the means, and of the standard deviation what few trials would tell: so the
difference of two means has a Student's t distribution (Gelman et al., Bayesian Data Analysis, 3rd ed., sec. 3.2), and every
answer is a sum without any randomness. The standard library only: the API answers with it.
"""

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Literal, Self

from search.studies.estimates import Estimate

EXPECTED_SD = 0.02
"""Of the log of the loss, where nothing is known: the proxies that were measured have 0.01 to 0.03."""

_EXPECTED_FREEDOM = 4
"""What is expected counts as much as so many trials would beyond the first ones of their structures."""

_MAX_FREEDOM = 200
"""With more, Student's t is the normal distribution for all that anybody would do with it."""

_LEVEL = 0.95

_NEGLIGIBLE = 1e-6
"""Nobody takes notice of a rival that is better with no more than this probability."""

_NORMAL = tuple(NormalDist().inv_cdf((i + 0.5) / 16) for i in range(16))
"""Sixteen equally probable values of a normal variable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The losses of one structure: how many, their mean, and the sum of squares around it."""

    num: int
    mean: float
    squares: float = 0.0

    @classmethod
    def of(cls, losses: Sequence[float]) -> Self:
        """Of at least one loss."""
        if len(losses) == 1:
            return cls(num=1, mean=losses[0])
        mean = math.fsum(losses) / len(losses)
        return cls(num=len(losses), mean=mean, squares=math.fsum((loss - mean) ** 2 for loss in losses))


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The standard deviation between seeds, and from how many degrees of freedom it is known: that of the log of the loss;
    where a mean is not positive, on the ``plain`` scale, that of the loss itself."""

    sd: float
    freedom: int
    scale: Literal["log", "plain"]

    @classmethod
    def of(cls, samples: Iterable[Sample], *, expected_sd: float | None = None) -> Self | None:
        """Pooled over structures with several trials, of many those with the lowest means, together with what is expected.

        None where there is neither: ``expected_sd`` is what a study of the proxy, or a user, says of the log of the loss.
        """
        samples = list(samples)
        scale: Literal["log", "plain"] = "log" if all(sample.mean > 0 for sample in samples) else "plain"
        several = heapq.nsmallest(_MAX_FREEDOM, (each for each in samples if each.num > 1), key=_in_order)
        freedom = sum(sample.num - 1 for sample in several)
        # Relative deviations are those of the logs, to first order.
        deviations = [math.sqrt(each.squares) / (each.mean if scale == "log" else 1.0) for each in several]
        squares = sum(deviation * deviation for deviation in deviations)
        if freedom == 0 and (expected_sd is None or scale == "plain"):
            return None
        if scale == "log":
            squares += _EXPECTED_FREEDOM * (EXPECTED_SD if expected_sd is None else expected_sd) ** 2
            freedom += _EXPECTED_FREEDOM
        sd = math.sqrt(squares / freedom)
        # Losses at the end of what a float can hold tell nothing of the others.
        return cls(sd=sd, freedom=min(freedom, _MAX_FREEDOM), scale=scale) if math.isfinite(sd) else None

    def better(self, one: Sample, other: Sample) -> float:
        """The posterior probability that the mean loss of ``one`` is the lower one."""
        advantage, error = -self.excess(one, other), self.error(one, other)
        if error == 0:
            return 0.5 + 0.5 * ((advantage > 0) - (advantage < 0))
        return _student_cdf(advantage / error, self.freedom)

    def difference(self, one: Sample, other: Sample) -> Estimate:
        """How much higher the loss of ``one`` is, or its log on that scale, with its 95% interval."""
        excess = self.excess(one, other)
        margin = self.quantile((1 + _LEVEL) / 2) * self.error(one, other)
        return Estimate(value=excess, low=excess - margin, high=excess + margin)

    def confidence(self, first: Sample, others: Iterable[Sample], *, num_more: int = 0) -> float:
        """The posterior probability that ``first`` is better than all others. Of ``num_more`` that have no lower means than
        the last of them the most is taken away that they can take (Bonferroni)."""
        near, last = list[Sample](), first
        for last in others:
            if self.better(last, first) > _NEGLIGIBLE:
                near.append(last)
        beyond = num_more * self.better(Sample(num=1, mean=last.mean), first) if num_more else 0.0
        return max(0.0, self._is_best(first, near) - beyond)

    def quantile(self, probability: float) -> float:
        """Of the posterior in units of its standard error, from a half upwards."""
        low, high = 0.0, math.pi / 2
        for _ in range(50):
            middle = (low + high) / 2
            t = math.sqrt(self.freedom) * math.tan(middle)
            low, high = (middle, high) if _student_cdf(t, self.freedom) < probability else (low, middle)
        return math.sqrt(self.freedom) * math.tan(low)

    def excess(self, one: Sample, other: Sample) -> float:
        """How much higher the mean of ``one`` is, on the scale."""
        return math.log(one.mean) - math.log(other.mean) if self.scale == "log" else one.mean - other.mean

    def error(self, one: Sample, other: Sample) -> float:
        """The standard error of their difference."""
        return self.sd * math.sqrt(1 / one.num + 1 / other.num)

    def _is_best(self, first: Sample, others: Sequence[Sample]) -> float:
        """Given the standard deviation and the mean of ``first``, the others are independent: an average over both."""
        if self.sd == 0:
            return math.prod(self.better(first, other) for other in others)
        gaps = [(self.excess(other, first) / self.sd, math.sqrt(other.num / 2)) for other in others]
        total = 0.0
        for ratio, shift in product(_sd_ratios(self.freedom), _NORMAL):
            shifted = shift / math.sqrt(first.num)
            total += math.prod(math.erfc((shifted - gap / ratio) * root) / 2 for gap, root in gaps)
        return total / len(_NORMAL) ** 2


def _in_order(sample: Sample) -> tuple[float, int, float]:
    """By the mean, and by the rest too: a sum is the same to the last bit only in the same order."""
    return sample.mean, sample.num, sample.squares


def _sd_ratios(freedom: int) -> Sequence[float]:
    """Equally probable values of the standard deviation, in units of its estimate: roots of ``freedom`` over chi-square, by
    the cube of a normal variable (Wilson and Hilferty, PNAS 17, 1931)."""
    width = 2 / (9 * freedom)
    return [max(1e-3, 1 - width + math.sqrt(width) * value) ** -1.5 for value in _NORMAL]


def _student_cdf(t: float, freedom: int) -> float:
    """Student's t distribution of a whole number of degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    within = math.sin(angle) * total
    return (1 + (2 / math.pi * (angle + within) if odd else within)) / 2
