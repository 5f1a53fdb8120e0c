"""Optuna's samplers through ask and tell, on an in-memory study that is rebuilt from our history for every ask.

Rebuilding costs milliseconds and buys that a proposal depends on nothing but its arguments: it survives restarts and can
be recomputed. Optuna's own storage is not used: our tables are the truth.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from search.samplers.base import Observation, with_substitutes
from search.space import Unit

_HIGHEST_LOSS = 1e100
"""Told for whatever is higher, and its negative for whatever is lower: its square is a number too."""

_GENERATION = "NSGAIISampler:generation"
"""Where Optuna's genetic sampler looks for the generation that a trial belongs to."""

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC).replace(tzinfo=None)


class _Told(FrozenTrial):
    """A trial that nobody changes. The study copies what it is told, trial by trial, at every ask; here it need not."""

    def __deepcopy__(self, memo: dict[int, object]) -> "_Told":
        return self


class OptunaBacked:
    """Any Optuna sampler, made anew from a seed for every ask; ``learns`` as in ``Sampler``.

    ``worst_for_none``: a point without a loss is told as having the worst loss seen, for samplers that leave out what Optuna
    calls pruned and would propose it again; of several objectives, of which it may lack others as well, Optuna knows no
    other way. ``generation``: so many ends
    of trials, in their order, are a generation of a genetic algorithm.
    """

    def __init__(
        self,
        make: Callable[[int], BaseSampler],
        *,
        learns: bool = True,
        worst_for_none: bool = False,
        generation: int | None = None,
    ) -> None:
        self._make = make
        self.learns = learns
        self._worst_for_none = worst_for_none
        self._generation = generation

    def ask(
        self, observed: Sequence[Observation], pending: Sequence[Unit], num_coordinates: int, seed: int
    ) -> Iterator[Unit]:
        """The next points; see ``Sampler.ask``. One that was refused counts as pending for those after it."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        space: dict[str, BaseDistribution] = {f"u{i}": FloatDistribution(0, 1) for i in range(num_coordinates)}
        num_others = len(observed[0].others) if observed else 0
        study = optuna.create_study(sampler=self._make(seed), directions=["minimize"] * (1 + num_others))
        told = with_substitutes(observed) if self._worst_for_none or num_others else observed
        study.add_trials([self._ended(i, each, space) for i, each in enumerate(told)])
        study.add_trials([_running(len(told) + i, unit, space) for i, unit in enumerate(pending)])
        while True:
            params = study.ask(fixed_distributions=space).params
            yield tuple(float(params[name]) for name in space)

    def _ended(self, number: int, observation: Observation, space: dict[str, BaseDistribution]) -> FrozenTrial:
        # A point without a loss is told as pruned before its first report, which Optuna ranks below every finished point.
        if observation.loss is None:
            return _trial(number, observation.unit, space, TrialState.PRUNED)
        others = [value for value in observation.others if value is not None]
        assert len(others) == len(observation.others), "a point with a loss has all of its values"
        loss = min(_HIGHEST_LOSS, max(-_HIGHEST_LOSS, observation.loss))
        attributes = {} if self._generation is None else {_GENERATION: number // self._generation}
        return _trial(number, observation.unit, space, TrialState.COMPLETE, (loss, *others), attributes=attributes)


def _running(number: int, unit: Unit, space: dict[str, BaseDistribution]) -> FrozenTrial:
    return _trial(number, unit, space, TrialState.RUNNING)


def _trial(
    number: int,
    unit: Unit,
    space: dict[str, BaseDistribution],
    state: TrialState,
    values: Sequence[float] | None = None,
    *,
    attributes: Mapping[str, int] = MappingProxyType({}),
) -> FrozenTrial:
    return _Told(
        number=number,
        trial_id=number,
        state=state,
        value=None,
        values=values,
        datetime_start=_EPOCH,
        datetime_complete=_EPOCH if state.is_finished() else None,
        params=dict(zip(space, unit, strict=True)),
        distributions=space,
        user_attrs={},
        system_attrs=dict(attributes),
        intermediate_values={},
    )
