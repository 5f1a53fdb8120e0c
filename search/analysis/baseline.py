"""The analysis of a dense baseline: its frontier."""

from collections.abc import Mapping, Sequence

from search.analysis.frontier import candidates_of, frontier_of, levels_below
from search.studies.base import Measured
from search.studies.baseline import Baseline, DenseFrontier


def analyse(study: Baseline, measured: Mapping[str, Sequence[Measured]]) -> DenseFrontier:
    """The best dense model at each compute.

    Raises:
        FieldError: none could be trained from every seed.
    """
    levels_K = levels_below(study.headroom * study.proxy.train_flops)
    return DenseFrontier(points=frontier_of(candidates_of(measured["dense"], levels_K), levels_K))
