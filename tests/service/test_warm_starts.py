"""Searches that start from what earlier ones have found."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from einlayers.theta import NAMED, Theta
from search.plan import Plan, Run
from search.proposals import Inherited, propose
from search.proxies.identity import task_digest
from search.samplers.registry import make_sampler
from search.sampling import Random, Tpe
from search.spec import Budget, Objective, SearchSpec, Space
from search.states import SearchState, StudyState, TrialState
from search.stopping import Convergence, NoPruner
from search.studies.baseline import Baseline, DenseFrontier, FrontierPoint
from search.trial import Outcome
from service import rankings, repositories, searches, trials, warm_starts
from service.clock import now
from service.database import Database
from service.errors import BudgetExhausted, InvalidValue
from service.models import Origin, Reason, Study, Trial
from service.paging import PageRequest
from service.warm_starts import Inheritance
from tests.rows import SPEC, TINY, Rows, contents
from tests.service import invariants
from tests.service.pools import CutOff, LocalPools
from tests.service.running import COMPLETED, cut, ending, next_runner, run, search_of, spec_of, submit, trials_of
from tests.service.running import turn_to_the_end as turn
from workers.pool import LocalPool
from workers.workspace import Workspace


def _warm(*source_ids: str, **changes: object) -> SearchSpec:
    return replace(SPEC, warm_start=source_ids, **changes)  # type: ignore[arg-type]  # the fields of a spec


def _enqueue(rows: Rows, search_id: str, theta: Theta) -> Trial:
    with rows.database.write() as session:
        return trials.enqueue(session, search_id, theta)


def _inherited(rows: Rows, search_id: str) -> Sequence[Inherited]:
    inheritance = Inheritance()
    with rows.database.read() as session:
        inheritance.refresh(session, search_id)
    return inheritance.results


def _starts(rows: Rows, search_id: str) -> list[tuple[str, int, int, int]]:
    with rows.database.read() as session:
        found = searches.detail(session, search_id).warm_starts
    return [(each.source_id, each.num_finished, each.num_results, each.num_in_space) for each in found]


@pytest.fixture
def source_id(rows: Rows) -> str:
    """A search with two results, a failure, and a trial that waits."""
    search_id = rows.search()
    rows.completed(search_id, NAMED["btt"], 1.5)
    rows.outcome(rows.attempt(rows.trial(search_id, NAMED["monarch"])), Outcome.infeasible("it diverged"))
    rows.outcome(rows.attempt(rows.trial(search_id, NAMED["dense"])), Outcome.failed("a traceback"))
    rows.trial(search_id, NAMED["low-rank"])
    return search_id


class TestSubmit:
    def test_writes_down_what_there_was(self, rows: Rows, source_id: str) -> None:
        other_id = rows.search(SPEC)
        rows.completed(other_id, NAMED["low-rank"], 2.0)
        rows.completed(other_id, NAMED["kronecker"], 2.5)
        search_id = rows.search(_warm(other_id, source_id, space=Space(subspace="btt")))
        assert _starts(rows, search_id) == [(other_id, 2, 2, 1), (source_id, 3, 2, 2)]
        assert _starts(rows, source_id) == []
        assert [each.trial_id for each in _inherited(rows, search_id)] == [
            f"{other_id}-0",
            f"{other_id}-1",
            f"{source_id}-0",
            f"{source_id}-1",
        ]

    @pytest.mark.parametrize(
        ("changes", "told"),
        [({"base_lr": 4e-3}, "there base_lr is 0.004, here 0.005"), ({"depth": 2}, "there depth is 2, here 1")],
    )
    def test_refuses_another_proxy(self, rows: Rows, changes: dict[str, object], told: str) -> None:
        source_id = rows.search(replace(SPEC, proxy=replace(TINY, **changes)))  # type: ignore[arg-type]
        before = contents(rows.database)
        with pytest.raises(InvalidValue) as refused:
            rows.search(_warm(source_id))
        (problem,) = refused.value.problems
        assert (problem.pointer, told in problem.detail, source_id in problem.detail) == ("/warm_start", True, True)
        with rows.database.read() as session, pytest.raises(InvalidValue):
            searches.estimate(session, _warm(source_id), None)
        assert contents(rows.database) == before

    def test_refuses_what_there_is_not(self, rows: Rows, source_id: str) -> None:
        with pytest.raises(InvalidValue) as refused:
            rows.search(_warm(source_id, "abc"))
        assert refused.value.problems[0].detail == "expected ids of earlier searches of this service, got 'abc'"

    def test_refuses_more_than_a_runner_can_hold(
        self, rows: Rows, source_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(warm_starts, "MAX_INHERITED", 2)
        with pytest.raises(InvalidValue) as refused:
            rows.search(_warm(source_id))
        assert refused.value.problems[0].detail.endswith("at most 2 trials have ended, together, got 3")

    def test_refuses_a_rate_that_is_still_to_be_found(self, rows: Rows) -> None:
        with pytest.raises(InvalidValue) as refused:
            rows.search(_warm(rows.search(), proxy=replace(TINY, base_lr=None)))
        assert "there base_lr is 0.005, here None" in refused.value.problems[0].detail

    def test_takes_plans_whose_runs_are_on_the_proxy(self, rows: Rows) -> None:
        plan = Plan(runs=(Run(theta=NAMED["btt"]), Run(theta=NAMED["btt"])))
        source_id = rows.search(replace(SPEC, sampler=plan, pruner=NoPruner()))
        rows.completed(source_id, NAMED["btt"], 1.0)
        assert _starts(rows, rows.search(_warm(source_id))) == [(source_id, 1, 1, 1)]


class TestWhatIsInherited:
    def test_stays_what_it_was_when_the_source_goes_on(self, rows: Rows, source_id: str) -> None:
        search_id = rows.search(_warm(source_id))
        before = _inherited(rows, search_id)
        rows.completed(source_id, NAMED["kronecker"], 0.5)
        assert _inherited(rows, search_id) == before
        assert [each.loss for each in before] == [1.5, None]
        assert _enqueue(rows, search_id, NAMED["kronecker"]).reused_from is None

    def test_follows_exclusions_as_they_come_and_go(self, rows: Rows, source_id: str) -> None:
        search_id = rows.search(_warm(source_id))
        followed = Inheritance()
        expected = {None: ["btt", "monarch"], "a broken fan": ["monarch"]}
        for reason in (None, "a broken fan", None):
            if reason:
                with rows.database.write() as session:
                    trials.exclude(session, f"{source_id}-0", reason)
            elif followed.results:
                with rows.database.write() as session:
                    trials.include(session, f"{source_id}-0")
            with rows.database.read() as session:
                followed.refresh(session, search_id)
            assert [each.theta for each in followed.results] == [NAMED[name] for name in expected[reason]]
            assert list(_inherited(rows, search_id)) == list(followed.results)

    def test_is_every_training_once_though_two_sources_have_it(self, rows: Rows, source_id: str) -> None:
        between_id = rows.search(_warm(source_id))
        _enqueue(rows, between_id, NAMED["btt"])
        rows.completed(between_id, NAMED["kronecker"], 3.0)
        both = rows.search(_warm(source_id, between_id))
        assert _starts(rows, both) == [(source_id, 3, 2, 2), (between_id, 2, 1, 1)]
        assert [each.trial_id for each in _inherited(rows, both)] == [
            f"{source_id}-0",
            f"{source_id}-1",
            f"{between_id}-1",
        ]
        through = rows.search(_warm(between_id))
        assert [each.trial_id for each in _inherited(rows, through)] == [f"{source_id}-0", f"{between_id}-1"]


class TestReuse:
    def test_takes_over_what_was_measured_and_costs_nothing(self, rows: Rows, source_id: str) -> None:
        search_id = rows.search(_warm(source_id, budget=Budget(max_trials=1)))
        trial = _enqueue(rows, search_id, NAMED["btt"].swapped())
        with rows.database.read() as session:
            origin = repositories.trial_by_id(session, f"{source_id}-0")
        assert (trial.state, trial.loss, trial.reused_from) == (TrialState.COMPLETED, 1.5, origin.id)
        assert (trial.origin, trial.number, trial.replicate, trial.finish_order) == (Origin.USER, 0, 0, 0)
        assert (trial.seed, trial.seconds, trial.coordinates) == (origin.seed, origin.seconds, origin.coordinates)
        assert (trial.train_flops, list(trial.attempts)) == (0, [])
        assert trial.proxy_in(trial.search) == TINY
        search = search_of(rows.database, search_id)
        assert (search.num_trials, search.num_reused, search.train_flops, search.best_loss) == (1, 1, 0, 1.5)
        assert (search.num_unproposed, search.max_trials) == (1, 2)
        invariants.check(rows.database, search_id)

    def test_is_there_when_the_budget_is_spent_and_for_nothing_else(self, rows: Rows, source_id: str) -> None:
        search_id = rows.search(_warm(source_id, budget=Budget(max_trials=1)))
        rows.trial(search_id, NAMED["kronecker"])
        assert _enqueue(rows, search_id, NAMED["btt"]).state is TrialState.COMPLETED
        with pytest.raises(BudgetExhausted):
            _enqueue(rows, search_id, NAMED["btt"])
        with rows.database.write() as session:
            searches.extend(session, search_id, Budget(max_trials=1))
        invariants.check(rows.database, search_id)

    def test_of_what_was_infeasible_keeps_the_reason(self, rows: Rows, source_id: str) -> None:
        trial = _enqueue(rows, rows.search(_warm(source_id)), NAMED["monarch"])
        assert (trial.state, trial.reason, trial.loss) == (TrialState.INFEASIBLE, "it diverged", None)
        invariants.check(rows.database, trial.search_id)

    @pytest.mark.parametrize("name", ["dense", "low-rank", "kronecker"])
    def test_is_of_results_alone(self, rows: Rows, source_id: str, name: str) -> None:
        trial = _enqueue(rows, rows.search(_warm(source_id)), NAMED[name])
        assert (trial.state, trial.reused_from) == (TrialState.PROPOSED, None)

    def test_is_of_nothing_that_was_excluded(self, rows: Rows, source_id: str) -> None:
        search_id = rows.search(_warm(source_id))
        with rows.database.write() as session:
            trials.exclude(session, f"{source_id}-0", "a broken fan")
        assert _enqueue(rows, search_id, NAMED["btt"]).reused_from is None

    def test_counts_among_the_best_and_in_fronts(self, rows: Rows, source_id: str) -> None:
        rows.completed(source_id, NAMED["btt"], 2.5, replicate=1)
        search_id = rows.search(_warm(source_id))
        rows.completed(search_id, NAMED["dense"], 1.0)
        for _ in range(2):
            _enqueue(rows, search_id, NAMED["btt"])
        with rows.database.read() as session:
            best = rankings.best(session, search_id, 10)
        front = rankings.pareto(rows.database, search_id, "loss,macs", PageRequest(size=9)).items
        assert [(ranked.trial.family, ranked.loss) for ranked in best] == [("dense", 1.0), ("btt", 2.0)]
        assert len({trial.seed for trial in best[1].replicates}) == 2
        assert [ranked.trial.digest for ranked in front][:1] == [best[0].trial.digest]
        with rows.database.write() as session:
            trials.exclude(session, f"{search_id}-1", "a mistake")
        invariants.check(rows.database, search_id)

    def test_does_not_make_a_search_converge(self, rows: Rows, source_id: str) -> None:
        rows.completed(source_id, NAMED["kronecker"], 3.0)
        rows.completed(source_id, NAMED["tensor-train"], 3.0)
        search_id = rows.search(_warm(source_id, budget=Budget(max_trials=9), convergence=Convergence(patience=2)))
        rows.completed(search_id, NAMED["low-rank"], 1.0)
        for name in ("btt", "kronecker", "tensor-train"):
            assert _enqueue(rows, search_id, NAMED[name]).reused_from
        assert search_of(rows.database, search_id).reason is None
        for name, reason in (("dense", None), ("btt", Reason.CONVERGED)):
            rows.outcome(
                rows.attempt(rows.trial(search_id, NAMED[name], replicate=int(name == "btt"))),
                Outcome.completed(loss=2.0),
            )
            assert search_of(rows.database, search_id).reason is reason


class TestRunner:
    @pytest.fixture
    def trained_id(self, database: Database, workspace: Workspace, corpora_dir: Path) -> str:
        """A search that has ended, with every structure of its subspace."""
        search_id = submit(database, spec_of(100, space=Space(subspace="low-rank")), corpora_dir)
        run(database, LocalPool(workspace))
        assert ending(database, search_id) == (SearchState.COMPLETED, Reason.SPACE_EXHAUSTED)
        return search_id

    def test_trains_nothing_again(
        self, database: Database, workspace: Workspace, corpora_dir: Path, trained_id: str
    ) -> None:
        space = Space(subspace="low-rank", seeds=("dense",))
        spec = spec_of(4, space=space, warm_start=(trained_id,), sampler=Random(seed=9), concurrency=2)
        search_id = submit(database, spec, corpora_dir)
        run(database, LocalPools(workspace, 2))
        assert ending(database, search_id) == (SearchState.COMPLETED, Reason.SPACE_EXHAUSTED)
        before, found = trials_of(database, trained_id), trials_of(database, search_id)
        dense, *others = found
        assert (dense.family, dense.reused_from, len(dense.attempts)) == ("dense", None, 1)
        assert {trial.digest: trial.loss for trial in others} == {trial.digest: trial.loss for trial in before}
        assert {trial.reused_from for trial in others} == {trial.id for trial in before}
        assert search_of(database, search_id).train_flops == spec.proxy.train_flops
        invariants.check(database, search_id)

    def test_spends_its_budget_on_what_is_new(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        seeds = Space(seeds=("dense", "btt", "monarch"))
        source_id = submit(database, spec_of(3, space=seeds), corpora_dir)
        run(database, LocalPool(workspace))
        spec = spec_of(4, space=seeds, warm_start=(source_id,), replicates=2, sampler=Tpe(startup_trials=2))
        search_id = submit(database, spec, corpora_dir)
        run(database, LocalPool(workspace))
        assert ending(database, search_id) == COMPLETED
        found = trials_of(database, search_id)
        assert [(trial.family, trial.replicate, trial.reused_from) for trial in found[:6]] == [
            ("dense", 0, f"{source_id}-0"),
            ("dense", 1, None),
            ("btt", 0, f"{source_id}-1"),
            ("btt", 1, None),
            ("monarch", 0, f"{source_id}-2"),
            ("monarch", 1, None),
        ]
        assert len(found) == 7
        invariants.check(database, search_id)

    def test_proposes_the_same_after_a_restart_and_when_it_is_recomputed(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        space = Space(subspace="btt", seeds=("btt",))
        source_id = submit(database, spec_of(6, space=space), corpora_dir)
        run(database, LocalPool(workspace))
        spec = spec_of(6, space=space, warm_start=(source_id,), sampler=Tpe(seed=3, startup_trials=4))
        ids = [submit(database, spec, corpora_dir) for _ in range(1)]
        run(database, LocalPool(workspace))
        ids.append(submit(database, spec, corpora_dir))
        pool = CutOff(workspace, 1)
        for _ in range(3):
            cut(database, pool)
            pool.power = True
            next_runner(database, pool).turn(0)
            pool.power = False
        pool.power = True
        turn(next_runner(database, pool))
        first, second = (trials_of(database, search_id) for search_id in ids)
        assert [(t.theta, t.seed, t.reused_from) for t in first] == [(t.theta, t.seed, t.reused_from) for t in second]
        assert first[0].reused_from == f"{source_id}-0"
        self._check_recomputable(database, ids[0], first)

    def _check_recomputable(self, database: Database, search_id: str, found: Sequence[Trial]) -> None:
        inheritance, search = Inheritance(), search_of(database, search_id)
        with database.read() as session:
            inheritance.refresh(session, search_id)
            history = [past for _, past in repositories.history(session, search_id)]
        for trial in found:
            proposal = propose(
                search.spec,
                history[: trial.number],
                lambda: make_sampler(search.spec.sampler, search.spec.cube),
                inheritance.results,
            )
            assert proposal is not None
            assert (proposal.structure.theta, proposal.seed) == (trial.theta, trial.seed)
            assert trial.history_size == trial.number


class TestSeveralObjectives:
    def test_take_sources_that_had_one(self, rows: Rows, source_id: str) -> None:
        objectives = (Objective(), Objective(metric="params"))
        search_id = rows.search(_warm(source_id, objectives=objectives))
        assert [each.params for each in _inherited(rows, search_id)] == [
            trial.params for trial in trials_of(rows.database, source_id)[:2]
        ]


def test_multipliers_are_those_of_the_compute_that_was_trained(rows: Rows, source_id: str) -> None:
    points = [
        FrontierPoint(train_flops=flops, width=8, lr_mult=1.0, losses=(loss, 1.01 * loss), bracketed=True)
        for flops, loss in ((5e5, 2.0), (1e6, 1.7), (2e6, 1.4))
    ]
    with rows.database.write() as session:
        study = Study(
            id="study", kind="baseline", name="a", owner="a", spec=Baseline(name="a"), created_at=now(session)
        )
        study.task, study.state, study.finding = (
            task_digest(TINY),
            StudyState.COMPLETED,
            DenseFrontier(points=tuple(points)),
        )
        session.add(study)
    search_id = rows.search(_warm(source_id))
    _enqueue(rows, search_id, NAMED["btt"])
    with rows.database.read() as session:
        trained, reused = (rankings.best(session, each, 1)[0].multiplier for each in (source_id, search_id))
    assert reused == trained
    assert trained is not None
    assert 1 < trained.value < 2
