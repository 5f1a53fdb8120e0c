"""Searches whose trials are variants of their proxy's model."""

from dataclasses import replace
from pathlib import Path

import pytest

from einlayers.dims import resolve
from einlayers.taxonomy import classify, taxonomy
from einlayers.theta import NAMED, Theta
from search.cube import MixtureAxes, WholeRange
from search.proxies.shapes import GroupThetas, Mixture
from search.spec import SearchSpec, Space
from search.structure import structure_of
from search.trial import TrialSpec
from search.variant import Variant
from service import repositories, trials
from service.database import Database
from service.errors import InvalidValue
from service.models import Trial
from tests.rows import SPEC, TINY, Rows
from tests.service.running import COMPLETED, PROXY, ending, run, spec_of, submit, trials_of
from workers.evaluate import evaluate
from workers.pool import LocalPool
from workers.workspace import Workspace

SPARSE = replace(PROXY, mixture=Mixture(num_experts=4, top_k=2))
MIXED = replace(TINY, mixture=SPARSE.mixture)
"""The same on data that is always there."""

AXES = MixtureAxes(num_experts=WholeRange(min=2, max=8), top_k=WholeRange(min=1, max=2))


def mixed_spec(max_trials: int) -> SearchSpec:
    return spec_of(max_trials, proxy=SPARSE, space=Space(seeds=("btt",), mixture=AXES))


def plain(trial: Trial, **mixture: int) -> TrialSpec:
    """What a trial is trained on, written down without asking its variant."""
    own = SPARSE.mixture
    assert own is not None
    proxy = replace(SPARSE, mixture=replace(own, **mixture))  # type: ignore[arg-type]  # numbers alone
    return TrialSpec(theta=trial.theta, proxy=proxy, width=proxy.width_for(trial.theta), seed=trial.seed)


def _group(theta: Theta) -> tuple[float, float]:
    found = taxonomy(theta)
    return found.omega, found.psi


class TestGroups:
    def test_are_chosen_stored_and_trained(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        spec = spec_of(5, space=Space(seeds=("btt",), groups=("attention",)))
        search_id = submit(database, spec, corpora_dir)
        run(database, LocalPool(workspace))
        assert ending(database, search_id) == COMPLETED
        seed, *chosen = trials_of(database, search_id)
        assert seed.variant is None
        for trial in chosen:
            assert trial.variant is not None
            assert trial.variant.num_experts is trial.variant.top_k is None
            attention = trial.variant.group_thetas["attention"]
            proxy = replace(PROXY, thetas=GroupThetas(attention=attention))
            width = proxy.width_for(trial.theta)
            assert (trial.width, trial.macs) == (width, proxy.cost(trial.theta, width).macs)
            assert trial.dims["attention"] == resolve(attention, width, width)
            assert trial.dims["up"] == resolve(trial.theta, width, 4 * width)
            own = TrialSpec(theta=trial.theta, proxy=proxy, width=width, seed=trial.seed)
            assert trial.loss == evaluate(own, workspace).loss
            assert (trial.omega, trial.psi, trial.family) == (*_group(trial.theta), classify(trial.theta))

    def test_that_the_proxy_has_are_those_of_every_trial(self, rows: Rows) -> None:
        proxy = replace(TINY, thetas=GroupThetas(attention=NAMED["dense"]))
        search_id = rows.search(replace(SPEC, proxy=proxy))
        with rows.database.write() as session:
            trial = trials.enqueue(session, search_id, NAMED["btt"])
            assert (trial.variant, trial.proxy_in(trial.search)) == (None, proxy)
            assert trial.dims["attention"] == resolve(NAMED["dense"], trial.width, trial.width)

    def test_are_refused_where_there_are_none(self, rows: Rows) -> None:
        search_id = rows.search(replace(SPEC, proxy=replace(TINY, head_aligned_rank=1)))
        variant = Variant(thetas=GroupThetas(attention=NAMED["btt"]))
        with pytest.raises(InvalidValue) as refused, rows.database.write() as session:
            trials.enqueue(session, search_id, NAMED["btt"], variant=variant)
        assert [problem.pointer for problem in refused.value.problems] == ["/variant/thetas"]


class TestNumbersOfExperts:
    def test_are_chosen_stored_and_trained(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = submit(database, mixed_spec(5), corpora_dir)
        run(database, LocalPool(workspace))
        assert ending(database, search_id) == COMPLETED
        seed, *chosen = trials_of(database, search_id)
        assert seed.variant is None
        assert seed.loss == evaluate(plain(seed), workspace).loss
        for trial in chosen:
            assert trial.variant is not None
            assert trial.variant.num_experts is not None
            assert trial.variant.top_k is not None
            spec = plain(trial, num_experts=trial.variant.num_experts, top_k=trial.variant.top_k)
            cost = spec.proxy.cost(trial.theta, spec.width)
            assert (trial.width, trial.params, trial.macs) == (spec.width, cost.params, cost.macs)
            assert trial.proxy_in(trial.search) == spec.proxy
            assert trial.loss == evaluate(spec, workspace).loss
        assert len({trial.variant for trial in chosen}) > 1

    def test_are_part_of_the_history(self, rows: Rows) -> None:
        search_id = rows.search(replace(SPEC, proxy=MIXED, space=Space(mixture=AXES)))
        variant = Variant(num_experts=8, top_k=1)
        with rows.database.write() as session:
            trials.enqueue(session, search_id, NAMED["btt"])
            trials.enqueue(session, search_id, NAMED["btt"], variant=variant)
            again = trials.enqueue(session, search_id, NAMED["btt"], variant=variant)
            assert again.replicate == 1
            assert [past.variant for _, past in repositories.history(session, search_id)] == [None, variant, variant]

    def test_need_no_axes_where_a_user_says_them(self, rows: Rows) -> None:
        search_id, variant = rows.search(replace(SPEC, proxy=MIXED)), Variant(top_k=1)
        with rows.database.write() as session:
            trial = trials.enqueue(session, search_id, NAMED["btt"], variant=variant)
            structure = structure_of(NAMED["btt"], MIXED, variant)
            assert (trial.variant, trial.width, trial.macs) == (variant, structure.width, structure.cost.macs)
            assert trial.transfers is None

    def test_are_refused_where_the_proxy_has_no_mixture(self, rows: Rows) -> None:
        search_id = rows.search()
        with pytest.raises(InvalidValue) as refused, rows.database.write() as session:
            trials.enqueue(session, search_id, NAMED["btt"], variant=Variant(top_k=1))
        assert [problem.pointer for problem in refused.value.problems] == ["/variant/top_k"]
