import pytest

from einlayers.errors import FieldError
from einlayers.theta import NAMED
from search.plan import MAX_RUNS, Plan, Run
from search.proposals import PastTrial, Proposal, propose, training_seed
from search.proxies.char_lm import CharLM
from search.samplers.base import Sampler
from search.spec import Budget, SearchSpec
from search.states import TrialState

TINY = CharLM(dense_width=8, num_heads=2, depth=1, context=8, batch_size=1, train_flops=1e6, base_lr=5e-3)
RUNS = (
    Run(theta=NAMED["btt"]),
    Run(theta=NAMED["btt"], width=12, train_flops=4e6),
    Run(theta=NAMED["btt"], base_lr=0.25),
    Run(theta=NAMED["btt"]),
    Run(theta=NAMED["btt"], base_lr=0.25),
)


def spec_of(*runs: Run, **budget: float | None) -> SearchSpec:
    return SearchSpec(name="planned", budget=Budget(**budget or {"max_trials": 5}), proxy=TINY, sampler=Plan(runs=runs))  # type: ignore[arg-type]  # what a test gives


def no_sampler() -> Sampler:
    raise AssertionError("a plan asks no sampler")


def proposals_of(spec: SearchSpec) -> list[Proposal]:
    history: list[PastTrial] = []
    proposals = []
    while (proposal := propose(spec, history, no_sampler)) is not None:
        proposals.append(proposal)
        history.append(PastTrial(theta=NAMED["btt"], digest=proposal.digest, state=TrialState.COMPLETED, loss=1.0))
    return proposals


class TestRun:
    def test_changes_what_it_gives_and_nothing_else(self) -> None:
        proxy = Run(theta=NAMED["btt"], width=12, base_lr=0.25).on(TINY)
        assert (proxy.width, proxy.train_flops, proxy.base_lr) == (12, TINY.train_flops, 0.25)
        assert Run(theta=NAMED["btt"]).on(TINY) == TINY


class TestPlan:
    def test_is_trained_in_its_order_each_from_a_seed_of_its_own(self) -> None:
        spec = spec_of(*RUNS)
        proposals = proposals_of(spec)
        assert [proposal.proxy for proposal in proposals] == [run.on(TINY) for run in RUNS]
        assert [proposal.number for proposal in proposals] == [0, 1, 2, 3, 4]
        assert [proposal.seed for proposal in proposals] == [training_seed(spec, number) for number in range(5)]
        assert proposals[1].structure.width == 12
        assert proposals[1].structure.cost == TINY.cost(NAMED["btt"], 12)

    def test_has_replicates_where_runs_are_equal(self) -> None:
        proposals = proposals_of(spec_of(*RUNS))
        assert [proposal.replicate for proposal in proposals] == [0, 0, 0, 1, 1]
        assert len({proposal.digest for proposal in proposals}) == 3
        assert proposals[0].digest == proposals[0].structure.digest

    @pytest.mark.parametrize(
        ("budget", "num_trials", "train_flops"),
        [({"max_trials": 9}, 5, 8e6), ({"max_trials": 2}, 2, 5e6), ({"max_seconds": 60.0}, 5, 8e6)],
    )
    def test_costs_what_its_runs_cost(self, budget: dict[str, float], num_trials: int, train_flops: float) -> None:
        spec = spec_of(*RUNS, **budget)
        assert (spec.num_trials(spec.budget), spec.train_flops(spec.budget)) == (num_trials, train_flops)

    def test_leaves_no_choice_to_a_budget_of_compute_or_to_replicates(self) -> None:
        with pytest.raises(FieldError, match=r"^budget: expected no max_train_flops"):
            spec_of(*RUNS, max_train_flops=1e9)
        with pytest.raises(FieldError, match=r"^replicates: expected 1: a plan lists its replicates, got 2"):
            SearchSpec(name="a", budget=Budget(max_trials=1), proxy=TINY, sampler=Plan(runs=RUNS), replicates=2)

    @pytest.mark.parametrize("runs", [(), RUNS[:1] * (MAX_RUNS + 1)], ids=["none", "too many"])
    def test_refuses_to_be_empty_or_endless(self, runs: tuple[Run, ...]) -> None:
        with pytest.raises(FieldError, match=r"^runs: expected 1 to 10000 runs"):
            Plan(runs=runs)

    def test_names_the_run_that_cannot_be_trained(self) -> None:
        with pytest.raises(FieldError, match="run 1: width: expected"):
            spec_of(RUNS[0], Run(theta=NAMED["btt"], width=13))
