"""``docs/benchmarks/search.md``, of the regrets of all contestants on all objectives."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from benchmarks.search.contestants import DEFAULT, QMC, RACING, RANDOM
from benchmarks.search.objectives import Interpolated
from benchmarks.search.regret import Regrets, mean, speedup
from benchmarks.search.searches import Searched
from search.studies.estimates import Estimate

_HEAD = """# Samplers compared

Made by `python -m benchmarks.search`: {num_seeds} searches of {num_trials} trials for each line, from seeds 0 to
{last_seed}.

Regret: the true loss of the structure that looked best so far, less the lowest there is, in the logarithm of the loss; the
mean over searches, with its 95% bootstrap interval. Speed-up: how many times fewer trials than random search for the regret
that random search has after {num_trials}. Our samplers propose as the service does: within the five coordinates of the
space, no model twice. A training sees the same loss in all searches from a seed.

`{racing}`: contenders are trained from up to three seeds, which count as trials, and what looks best is the best mean of at
least two. All others go by single seeds. Ray Tune's `optuna` is left out: it proposes what `tpe` does.

`optimum a known design`, `on faces` and `inside` are landscapes on paper, which grow with the distance from a structure in
sharing, in rank and in exponents; noise: a standard deviation of 0.02 for every trial. The known design is one that `gp` and
the papers' grid try by themselves; the structure on faces is none, and has no beta, no delta and other exponents.
"""

_OF_THE_TABLE = """`recorded` is the space as {num_structures} structures tell it that were really trained (preset
`screening`, {num_replicates} seeds each, made by `python -m benchmarks.search.record`): the mean losses of these, and
between them what a forest of trees expects that has learnt them. Of structures that it has not learnt, a tenth at a time, it
tells the loss by {agreement:.2f} of Spearman. The noise of a trial is that of a seed of the most similar structure. Early
stopping is compared on these structures alone: a proposal trains the most similar one that was not tried
([ADR 24](../adr/0024-a-table-is-interpolated.md) says why samplers are not).
"""


def report(
    found: Mapping[str, Mapping[str, Regrets]],
    *,
    recorded: Interpolated | None,
    stopped: Mapping[tuple[str, str], Sequence[Searched]],
    asks: Mapping[str, float],
) -> str:
    """The page; ``found``: by objective and contestant; ``stopped``: by sampler and pruner, on the table, if one was
    recorded; ``asks``: median seconds of a proposal by what it was of."""
    first = next(iter(next(iter(found.values())).values()))
    num_seeds, num_trials = first.shape
    lines = [_HEAD.format(num_seeds=num_seeds, last_seed=num_seeds - 1, num_trials=num_trials, racing=RACING)]
    if recorded is not None:
        curves = recorded.table.curves
        numbers = {"num_structures": len(curves), "num_replicates": min(map(len, curves.values()))}
        lines.append(_OF_THE_TABLE.format(**numbers, agreement=recorded.agreement()))
    for objective, regrets in found.items():
        lines += [f"## {objective[0].upper()}{objective[1:]}\n", *_table(regrets), ""]
    if stopped:
        lines += ["## Early stopping, on what was recorded\n", *_stopping(stopped), ""]
    lines += ["## What a proposal takes\n", *_asks(asks), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(regrets: Mapping[str, Regrets]) -> Iterator[str]:
    num_trials = regrets[RANDOM].shape[1]
    marks = [num_trials // 4, num_trials // 2, num_trials]
    yield "| sampler | " + " | ".join(f"regret at {mark}" for mark in marks) + " | speed-up |"
    yield "| --- |" + " --- |" * (len(marks) + 1)
    for name, regrets_ST in regrets.items():
        shown = f"**{name}** (default)" if name == DEFAULT else name
        cells = [_interval(mean(regrets_ST, mark), ".4f") for mark in marks]
        cells.append("1" if name == RANDOM else _interval(speedup(regrets_ST, regrets[RANDOM]), ".1f"))
        yield f"| {shown} | " + " | ".join(cells) + " |"


def _stopping(stopped: Mapping[tuple[str, str], Sequence[Searched]]) -> Iterator[str]:
    num_trials = max(len(each.regrets) for searches in stopped.values() for each in searches)
    yield (
        f"Whole searches of {num_trials} trials, one after the other, from seeds that the settings of pruners were not "
        "chosen on; a structure has the same curve with and without a pruner. "
        f"What `{RANDOM}` and `{QMC}` propose is the same too: the best is the same, unless it was stopped. `{DEFAULT}` "
        "learns from what was stopped and goes other ways; how much that alone does is told by a search that is not "
        "stopped, on the same losses, whose sampler draws from another seed.\n"
    )
    yield (
        "| sampler | pruner | training FLOPs, as a share of those without | regret at the end | more than without "
        "| finds the same structure | or a better one |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for (sampler, pruner), searches in stopped.items():
        pairs = list(zip(searches, stopped[sampler, "none"], strict=True))
        shares = np.array([[each.compute / without.compute] for each, without in pairs])
        regrets = np.array([each.regrets[-1:] for each in searches])
        more = np.array([[each.regrets[-1] - without.regrets[-1]] for each, without in pairs])
        same = sum(each.best == without.best for each, without in pairs)
        better = sum(each.regrets[-1] < without.regrets[-1] for each, without in pairs)
        yield (
            f"| {sampler} | `{pruner}` | {_interval(mean(shares, 1), '.2f')} | {_interval(mean(regrets, 1), '.4f')} "
            f"| {_interval(mean(more, 1), '+.4f')} | {same} of {len(pairs)} | {better} of {len(pairs)} |"
        )


def _asks(asks: Mapping[str, float]) -> Iterator[str]:
    yield "The median of a whole proposal, the history given: sampler, identity, constraints.\n"
    yield "| sampler, finished trials | milliseconds |"
    yield "| --- | --- |"
    for what, seconds in asks.items():
        yield f"| {what} | {1000 * seconds:.0f} |"


def _interval(interval: Estimate, form: str) -> str:
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
