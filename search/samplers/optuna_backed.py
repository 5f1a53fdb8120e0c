"""Optuna's samplers through ask and tell, on an in-memory study that is rebuilt from our history for every ask.

Rebuilding costs milliseconds and buys that a proposal depends on nothing but its arguments: it survives restarts and can
be recomputed. Optuna's own storage is not used: our tables are the truth.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from search.samplers.base import Observation
from search.space import Unit

_HIGHEST_LOSS = 1e100
"""Told for whatever is higher, and its negative for whatever is lower: its square is a number too."""

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC).replace(tzinfo=None)


class _Told(FrozenTrial):
    """A trial that nobody changes. The study copies what it is told, trial by trial, at every ask; here it need not."""

    def __deepcopy__(self, memo: dict[int, object]) -> "_Told":
        return self


class OptunaBacked:
    """Any Optuna sampler, made anew from a seed for every ask; ``learns`` as in ``Sampler``.

    ``worst_for_none``: a point without a loss is told as having the worst loss seen, for samplers that leave out what Optuna
    calls pruned and would propose it again.
    """

    def __init__(
        self, make: Callable[[int], BaseSampler], *, learns: bool = True, worst_for_none: bool = False
    ) -> None:
        self._make = make
        self.learns = learns
        self._worst_for_none = worst_for_none

    def ask(
        self, observed: Sequence[Observation], pending: Sequence[Unit], num_coordinates: int, seed: int
    ) -> Iterator[Unit]:
        """The next points; see ``Sampler.ask``. One that was refused counts as pending for those after it."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        space: dict[str, BaseDistribution] = {f"u{i}": FloatDistribution(0, 1) for i in range(num_coordinates)}
        study = optuna.create_study(sampler=self._make(seed))
        substitute = (
            max((o.loss for o in observed if o.loss is not None), default=None) if self._worst_for_none else None
        )
        study.add_trials(
            [_frozen(i, o.unit, space, substitute if o.loss is None else o.loss) for i, o in enumerate(observed)]
        )
        study.add_trials([_running(len(observed) + i, unit, space) for i, unit in enumerate(pending)])
        while True:
            params = study.ask(fixed_distributions=space).params
            yield tuple(float(params[name]) for name in space)


def _frozen(number: int, unit: Unit, space: dict[str, BaseDistribution], loss: float | None) -> FrozenTrial:
    # A point without a loss is told as pruned before its first report, which Optuna ranks below every finished point.
    if loss is None:
        return _trial(number, unit, space, TrialState.PRUNED, None)
    return _trial(number, unit, space, TrialState.COMPLETE, min(_HIGHEST_LOSS, max(-_HIGHEST_LOSS, loss)))


def _running(number: int, unit: Unit, space: dict[str, BaseDistribution]) -> FrozenTrial:
    return _trial(number, unit, space, TrialState.RUNNING, None)


def _trial(
    number: int, unit: Unit, space: dict[str, BaseDistribution], state: TrialState, value: float | None
) -> FrozenTrial:
    return _Told(
        number=number,
        trial_id=number,
        state=state,
        value=value,
        datetime_start=_EPOCH,
        datetime_complete=_EPOCH if state.is_finished() else None,
        params=dict(zip(space, unit, strict=True)),
        distributions=space,
        user_attrs={},
        system_attrs={},
        intermediate_values={},
    )
