import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from einlayers.errors import FieldError
from search.noise import Noise, Sample
from search.racing import Entrant, Racing, contenders, last_replicate, next_replicate


def _entrant(digest: str, *losses: float, pending: int = 0) -> Entrant:
    return Entrant(digest=digest, num_trials=len(losses) + pending, losses=losses, is_pending=pending > 0)


@st.composite
def fields(draw: st.DrawFn) -> list[Entrant]:
    """Structures with up to four trials each, of which some may still run."""
    found = []
    for i in range(draw(st.integers(0, 8))):
        losses = draw(st.lists(st.floats(1.0, 1.2), max_size=4))
        pending = draw(st.integers(0 if losses else 1, 2))
        found.append(_entrant(f"{i}", *losses, pending=pending))
    return found


racings = st.builds(Racing, max_replicates=st.integers(2, 5), confidence=st.floats(0.5, 0.99), sd=st.floats(0.001, 0.1))


@dataclass
class Search:
    """A search of structures whose log losses are drawn around 0, seen through noise; one trial after the other."""

    seed: int
    noise: float
    max_trials: int
    racing: Racing | None
    truth: dict[str, float] = field(default_factory=dict)
    trials: list[tuple[str, float]] = field(default_factory=list)

    def run(self) -> "Search":
        """To the end of its budget."""
        self._draw = random.Random(self.seed)
        while len(self.trials) < self.max_trials:
            digest = self._next() or self._new()
            self.trials.append((digest, math.exp(self.truth[digest] + self._draw.gauss(0, self.noise))))
        return self

    def entrants(self, num_trials: int | None = None) -> list[Entrant]:
        """The structures of its first trials, or of all."""
        losses: dict[str, list[float]] = {}
        for digest, loss in self.trials[:num_trials]:
            losses.setdefault(digest, []).append(loss)
        return [_entrant(digest, *own) for digest, own in losses.items()]

    @property
    def best(self) -> Entrant:
        """Its answer: never on a single seed where there is a race."""
        found = [entrant for entrant in self.entrants() if self.racing is None or len(entrant.losses) > 1]
        return min(found, key=lambda entrant: statistics.fmean(entrant.losses))

    @property
    def has_found(self) -> bool:
        """Whether that is the best structure which it has tried."""
        return self.best.digest == min(self.truth, key=lambda digest: self.truth[digest])

    def _next(self) -> str | None:
        if self.racing is None:
            return None
        left = self.max_trials - len(self.trials)
        found = next_replicate(self.racing, self.entrants(), replicates=1, num_left=left)
        return None if found is None else found.digest

    def _new(self) -> str:
        digest = f"{len(self.truth):03}"
        self.truth[digest] = self._draw.gauss(0, 0.05)
        return digest


class TestContenders:
    @given(racing=racings, entrants=fields())
    def test_are_those_that_may_be_the_best_and_have_trials_left(self, racing: Racing, entrants: list[Entrant]) -> None:
        tried = {entrant.digest: Sample.of(entrant.losses) for entrant in entrants if entrant.losses}
        found = {entrant.digest for entrant in contenders(racing, entrants)}
        if not tried:
            assert found == set()
            return
        lowest = min(tried.values(), key=lambda sample: sample.mean)
        noise = Noise.of(tried.values(), expected_sd=racing.sd)
        assert noise is not None
        for entrant in entrants:
            if entrant.digest not in tried or entrant.num_trials >= racing.max_replicates:
                assert entrant.digest not in found
                continue
            doubt = noise.better(tried[entrant.digest], lowest) - (1 - racing.confidence)
            if abs(doubt) > 1e-9:
                assert (entrant.digest in found) == (doubt > 0)

    @given(racing=racings, entrants=fields(), order=st.randoms())
    def test_come_in_one_order_whatever_that_of_the_structures(
        self, racing: Racing, entrants: list[Entrant], order: random.Random
    ) -> None:
        found = contenders(racing, entrants)
        order.shuffle(entrants)
        assert contenders(racing, entrants) == found
        assert [entrant.num_trials for entrant in found] == sorted(entrant.num_trials for entrant in found)

    def test_with_fewer_trials_go_first_and_then_the_better_ones(self) -> None:
        entrants = [_entrant("a", 1.0, 1.0), _entrant("b", 1.02), _entrant("c", 1.01), _entrant("d", 1.005, pending=1)]
        found = contenders(Racing(sd=0.05), entrants)
        assert [entrant.digest for entrant in found] == ["c", "b", "a", "d"]

    def test_are_fewer_where_less_noise_is_known_of(self) -> None:
        entrants = [_entrant("a", 1.0), _entrant("b", 1.02), _entrant("c", 1.2)]
        found = {sd: [each.digest for each in contenders(Racing(sd=sd), entrants)] for sd in (0.001, 0.02, 0.3)}
        assert found == {0.001: ["a"], 0.02: ["a", "b"], 0.3: ["a", "b", "c"]}
        assert contenders(Racing(), entrants) == contenders(Racing(sd=0.02), entrants)

    def test_begin_with_the_first_where_losses_have_no_logs(self) -> None:
        entrants = [_entrant("a", 0.0), _entrant("b", 1e-9), _entrant("c", 1.0)]
        assert contenders(Racing(), entrants) == entrants[:1]
        entrants[0] = _entrant("a", 0.0, -1e-6)
        found = contenders(Racing(), entrants)
        assert [entrant.digest for entrant in found] == ["b", "a"]


class TestNextReplicate:
    @given(racing=racings, entrants=fields(), replicates=st.integers(1, 3), left=st.none() | st.integers(1, 60))
    def test_is_of_the_first_contender_if_of_any(
        self, racing: Racing, entrants: list[Entrant], replicates: int, left: int | None
    ) -> None:
        found = next_replicate(racing, entrants, replicates=replicates, num_left=left)
        if found is not None and not (left == 1 and found.is_pending):
            assert found == contenders(racing, entrants)[0]

    @given(racing=racings, entrants=fields(), left=st.none() | st.integers(2, 60))
    def test_takes_no_more_than_a_quarter_of_the_trials_before_the_end_and_half_of_them_in_it(
        self, racing: Racing, entrants: list[Entrant], left: int | None
    ) -> None:
        if next_replicate(racing, entrants, replicates=1, num_left=left) is None:
            return
        begun = sum(entrant.num_trials for entrant in entrants) + 1
        replicates = begun - len(entrants)
        assert replicates <= begun / 4 or (left is not None and replicates <= (begun - 1 + left) / 2)

    @pytest.mark.parametrize("noise", [0.001, 0.03, 10.0])
    @pytest.mark.parametrize("max_trials", [*range(2, 12), 40])
    def test_leaves_no_best_on_a_single_seed_and_half_of_the_trials_to_new_structures(
        self, noise: float, max_trials: int
    ) -> None:
        search = Search(seed=max_trials, noise=noise, max_trials=max_trials, racing=Racing()).run()
        assert len(search.best.losses) >= 2
        assert len(search.truth) >= max_trials / 2
        assert max(len(entrant.losses) for entrant in search.entrants()) <= 3

    def test_is_never_of_one_that_is_clearly_worse(self) -> None:
        search = Search(seed=0, noise=0.005, max_trials=60, racing=Racing(sd=0.005)).run()
        several = [entrant for entrant in search.entrants() if len(entrant.losses) > 1]
        assert len(search.truth) < 60
        for entrant in several:
            known = [truth for digest, truth in search.truth.items() if digest <= entrant.digest]
            assert search.truth[entrant.digest] < min(known) + 6 * 0.005

    def test_counts_what_every_structure_gets_as_no_replicates_of_its_own(self) -> None:
        pairs = [_entrant(f"{i}", 1.0, 1.0) for i in range(8)]
        singles = [_entrant(f"{i}", 1.0) for i in range(16)]
        for entrants, replicates in ((pairs, 2), (singles, 1)):
            found = next_replicate(Racing(), entrants, replicates=replicates, num_left=1000)
            assert found == entrants[0]
        assert next_replicate(Racing(), pairs, replicates=1, num_left=1000) is None

    def test_is_of_what_runs_where_otherwise_nothing_would_have_two(self) -> None:
        entrants = [_entrant("a", pending=1), _entrant("b", pending=1)]
        assert next_replicate(Racing(), entrants, replicates=1, num_left=2) is None
        assert next_replicate(Racing(), entrants, replicates=1, num_left=1) == entrants[0]
        entrants.append(_entrant("c", 1.0))
        assert next_replicate(Racing(), entrants, replicates=1, num_left=1) == entrants[2]
        assert next_replicate(Racing(), [], replicates=1, num_left=1) is None

    def test_finds_the_best_more_often_than_single_trials_do(self) -> None:
        def found(racing: Racing | None, seed: int) -> Search:
            return Search(seed=seed, noise=0.03, max_trials=40, racing=racing).run()

        single, raced = ([found(racing, seed) for seed in range(200)] for racing in (None, Racing()))
        num_single, num_raced = (sum(search.has_found for search in each) for each in (single, raced))
        assert num_raced > num_single + 2 * math.sqrt(num_single + num_raced)
        # Not by trying fewer: what it answers is no worse, although it has tried fewer structures.
        losses = [statistics.fmean(search.truth[search.best.digest] for search in each) for each in (single, raced)]
        assert losses[1] < losses[0]

    def test_says_how_sure_it_is_of_the_best_that_it_has_found(self) -> None:
        said, true = list[float](), list[bool]()
        for seed in range(300):
            search = Search(seed=seed, noise=(0.01, 0.02, 0.04)[seed % 3], max_trials=40, racing=Racing()).run()
            samples = {entrant.digest: Sample.of(entrant.losses) for entrant in search.entrants()}
            noise, first = Noise.of(samples.values()), samples.pop(search.best.digest)
            assert noise is not None
            said.append(noise.confidence(first, samples.values()))
            true.append(search.has_found)
        for low, high in ((0.0, 0.5), (0.5, 0.8), (0.8, 1.0)):
            inside = [(p, happened) for p, happened in zip(said, true, strict=True) if low <= p < high]
            assert len(inside) >= 30
            expected, seen = (statistics.fmean(each) for each in zip(*inside, strict=True))
            assert seen == pytest.approx(expected, abs=3 * math.sqrt(expected * (1 - expected) / len(inside)))


class TestLastReplicate:
    def test_goes_on_until_every_contender_is_full(self) -> None:
        entrants = [_entrant("a", 1.0), _entrant("b", 1.001), _entrant("c", 3.0)]
        given_to = list(_to_the_end(entrants, lambda found: last_replicate(Racing(), found)))
        assert given_to == ["a", "b", "a", "b"]

    def test_is_of_what_may_become_a_contender(self) -> None:
        entrants = [_entrant("a", 1.0, 1.0, 1.0), _entrant("b", pending=1), _entrant("c", pending=2)]
        assert last_replicate(Racing(), entrants) == entrants[1]
        assert last_replicate(Racing(), [entrants[0], entrants[2]]) is None
        assert last_replicate(Racing(), []) is None


class TestRacing:
    @pytest.mark.parametrize("value", [1, 101, 2.0, True, None, "3"])
    def test_refuses_a_number_of_replicates_that_is_none(self, value: object) -> None:
        with pytest.raises(FieldError, match="max_replicates: expected a whole number from 2 to 100"):
            Racing(max_replicates=value)  # type: ignore[arg-type]  # the point

    @pytest.mark.parametrize("value", [0.49, 1.0, math.nan, True, "0.9"])
    def test_refuses_a_confidence_that_rules_out_everything_or_nothing(self, value: float) -> None:
        with pytest.raises(FieldError, match=r"confidence: expected a number from 0\.5 to 0\.999"):
            Racing(confidence=value)

    @pytest.mark.parametrize("value", [0.0, -1.0, 11.0, math.inf, True])
    def test_refuses_a_noise_that_is_none(self, value: float) -> None:
        with pytest.raises(FieldError, match="sd: expected a number from 1e-06 to 10"):
            Racing(sd=value)


def _to_the_end(entrants: Sequence[Entrant], choose: Callable[[list[Entrant]], Entrant | None]) -> Iterator[str]:
    """Give trials with the same loss to whoever is chosen, until nobody is."""
    found = {entrant.digest: entrant for entrant in entrants}
    while chosen := choose(list(found.values())):
        yield chosen.digest
        found[chosen.digest] = _entrant(chosen.digest, *chosen.losses, chosen.losses[0])
