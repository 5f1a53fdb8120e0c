"""How well two rankings of the same structures agree, and how sure that is: rank correlations with bootstrap intervals.

Losses come as a matrix ``(structures, replicates)``: every structure trained equally often, each replicate from a seed of
its own. What is reported is for one replicate against another, because that is what a search with one replicate sees.
"""

# S structures, R replicates, N draws of the bootstrap

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from einlayers.errors import FieldError
from search.studies.estimates import Agreement, Correlation, Estimate

Losses = npt.NDArray[np.float64]

_LEVEL = 0.95
_NUM_DRAWS = 1000
_NUM_SPLITS = 100


def spearman(first: Losses, second: Losses) -> float:
    """Spearman's rank correlation of two lists; ties share their ranks, and a list without order agrees with nothing.

    Raises:
        FieldError: the lists are of different lengths, or shorter than 2.
    """
    return float(_spearman_matrices(_side_by_side(first, second)[None])[0, 0, 1])


def kendall(first: Losses, second: Losses) -> float:
    """Kendall's tau-b of two lists: of their pairs, the share that both order alike, less that they order otherwise.

    Raises:
        FieldError: the lists are of different lengths, or shorter than 2.
    """
    return float(_kendall_matrices(_side_by_side(first, second)[None])[0, 0, 1])


def agreement(losses_SR: Losses, *, seed: int = 0) -> Agreement:
    """How well the replicates agree about the structures.

    Raises:
        FieldError: there are fewer than 3 structures or 2 replicates.
    """
    num_structures, num_replicates = losses_SR.shape
    if num_structures < 3 or num_replicates < 2:
        raise FieldError("losses", expected="at least 3 structures and 2 replicates", got=losses_SR.shape)
    return Agreement(
        spearman=_over_structures(_spearman_matrices, losses_SR, seed),
        lowest_spearman=float(_pairs(_spearman_matrices(losses_SR[None])).min()),
        kendall=_over_structures(_kendall_matrices, losses_SR, seed),
        num_structures=num_structures,
        num_replicates=num_replicates,
    )


def correlation(first_S: Losses, second_S: Losses, *, seed: int = 0) -> Correlation:
    """The rank correlations of two rankings of the same structures, with intervals over structures."""
    both_S2 = _side_by_side(first_S, second_S)
    return Correlation(
        spearman=_over_structures(_spearman_matrices, both_S2, seed),
        kendall=_over_structures(_kendall_matrices, both_S2, seed),
    )


def between_means(losses_SR: Losses, count: int, *, seed: int = 0) -> float:
    """Spearman's rank correlation of the mean over ``count`` replicates with the mean over ``count`` other ones, on average
    over many ways to choose them.

    Raises:
        FieldError: there are fewer than twice as many replicates.
    """
    num_replicates = losses_SR.shape[1]
    if not 1 <= count <= num_replicates // 2:
        raise FieldError("count", expected=f"1 to half of {num_replicates} replicates", got=count)
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(_NUM_SPLITS):
        order = draw.permutation(num_replicates)
        one, other = losses_SR[:, order[:count]], losses_SR[:, order[count : 2 * count]]
        found.append(spearman(one.mean(axis=1), other.mean(axis=1)))
    return float(np.mean(found))


def top_overlap(losses_SR: Losses, count: int) -> int:
    """How many structures all replicates have among their best ``count``."""
    best = [set(np.argsort(losses)[:count].tolist()) for losses in losses_SR.T]
    return len(set.intersection(*best))


def _spearman_matrices(losses_NSR: Losses) -> Losses:
    """In every draw, of every two replicates: ``(N, R, R)``."""
    ranks_NSR = rankdata(losses_NSR, axis=1)
    return _cosines((ranks_NSR - ranks_NSR.mean(axis=1, keepdims=True)).swapaxes(1, 2))


def _kendall_matrices(losses_NSR: Losses) -> Losses:
    """In every draw, of every two replicates: ``(N, R, R)``."""
    ranks_NRS = rankdata(losses_NSR, axis=1).swapaxes(1, 2)  # of two that are infinite neither is lower
    # One draw after the other: all their pairs at once are too many to be held.
    orders = (np.sign(ranks_RS[:, :, None] - ranks_RS[:, None, :]) for ranks_RS in ranks_NRS)
    return np.stack([_cosines(order_RSS.reshape(len(order_RSS), -1)) for order_RSS in orders])


def _cosines(vectors_NRK: Losses) -> Losses:
    """Between every two vectors of a set; none with a vector of zeros."""
    lengths_NR1 = np.sqrt((vectors_NRK**2).sum(axis=-1, keepdims=True))
    directions_NRK = vectors_NRK / np.where(lengths_NR1 == 0, 1.0, lengths_NR1)
    return np.asarray(directions_NRK @ directions_NRK.swapaxes(-1, -2))


def _pairs(matrices_NRR: Losses) -> Losses:
    """Of every matrix the values above its diagonal."""
    rows, columns = np.triu_indices(matrices_NRR.shape[-1], 1)
    return np.asarray(matrices_NRR[:, rows, columns])


def _side_by_side(first: Losses, second: Losses) -> Losses:
    if len(first) != len(second) or len(first) < 2:
        raise FieldError("losses", expected="two lists of one length, at least 2", got=(len(first), len(second)))
    return np.stack([first, second], axis=1)


def _over_structures(matrices: Callable[[Losses], Losses], losses_SR: Losses, seed: int) -> Estimate:
    """The mean over pairs of replicates, with the percentiles of what it is for structures drawn with replacement."""
    draw = np.random.default_rng(seed)
    drawn_N = _pairs(matrices(losses_SR[_draws(draw, len(losses_SR))])).mean(axis=1)
    low, high = np.quantile(drawn_N, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(value=float(_pairs(matrices(losses_SR[None])).mean()), low=float(low), high=float(high))


def _draws(draw: np.random.Generator, size: int) -> npt.NDArray[np.int64]:
    """Indices with replacement, at least three different ones each: fewer have no order to speak of."""
    drawn = draw.integers(0, size, size=(2 * _NUM_DRAWS, size))
    varied = [len(set(row)) >= min(3, size) for row in drawn.tolist()]
    return drawn[varied][:_NUM_DRAWS]
