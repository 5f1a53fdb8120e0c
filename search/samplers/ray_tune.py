"""Ray Tune's searchers, by what all of them have in public: points to begin with, ``suggest``, ``on_trial_complete``.

Our history is the points to begin with. A searcher suggests them again, one by one, and is told how each ended; what it
suggests after them is new. So its state is rebuilt from our rows for every ask, whatever it keeps inside.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from ray import tune
from ray.tune.search.searcher import Searcher

from search.samplers.base import Observation
from search.sampling import RayTuneSearcher
from search.space import Unit

Config = dict[str, float]


def _optuna(points: list[Config] | None, seed: int) -> Searcher:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return OptunaSearch(points_to_evaluate=points, seed=seed)


def _hyperopt(points: list[Config] | None, seed: int) -> Searcher:
    from ray.tune.search.hyperopt import HyperOptSearch

    return HyperOptSearch(points_to_evaluate=points, random_state_seed=seed)


_SEARCHERS: Mapping[RayTuneSearcher, Callable[[list[Config] | None, int], Searcher]] = {
    "optuna": _optuna,
    "hyperopt": _hyperopt,
}


class RayTune:
    """Asks one of Ray Tune's searchers, which is made anew from a seed for every ask."""

    learns = True

    def __init__(self, searcher: RayTuneSearcher) -> None:
        self._make = _SEARCHERS[searcher]

    def ask(
        self, observed: Sequence[Observation], pending: Sequence[Unit], num_coordinates: int, seed: int
    ) -> Iterator[Unit]:
        """What it suggests after the history; see ``Sampler.ask``. What it suggested before counts as pending."""
        names = [f"u{i}" for i in range(num_coordinates)]
        points = [dict(zip(names, unit, strict=True)) for unit in (*(each.unit for each in observed), *pending)]
        searcher = self._make(points or None, seed)
        searcher.set_search_properties("loss", "min", {name: tune.uniform(0, 1) for name in names})
        for number, observation in enumerate(observed):
            searcher.suggest(str(number))
            ended = None if observation.loss is None else {"loss": observation.loss}
            searcher.on_trial_complete(str(number), ended, error=ended is None)
        for number in range(len(observed), len(points)):
            searcher.suggest(str(number))
        number = len(points)
        while isinstance(config := searcher.suggest(str(number)), dict):
            number += 1
            yield tuple(min(1.0, max(0.0, float(config[name]))) for name in names)
