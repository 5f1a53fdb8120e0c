"""Studies: begun, shared, analysed; searches that wait for the learning rate of their proxy."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from einlayers.theta import NAMED
from search.analysis.registry import analyse
from search.proxies.identity import digest
from search.proxies.shapes import Mixture
from search.spec import Budget, Resources, SearchSpec
from search.states import SearchState, StudyState
from search.studies.baseline import Baseline
from search.studies.calibration import Calibrated, Calibration
from search.studies.fidelity import Fidelity, FidelityStudy
from search.studies.registry import StudySpec
from search.trial import Outcome
from service import calibrations, searches, studies, trials
from service.analyst import Analyst
from service.database import Database
from service.errors import InvalidValue, NotFound, TooMany, WrongState
from service.models import Reason, Search, Study
from service.paging import PageRequest
from tests.rows import Rows
from tests.service.running import PROXY, ending, next_runner, run, search_of, spec_of, submit, trials_of
from workers.pool import LocalPool
from workers.workspace import Workspace

STRUCTURES = (NAMED["dense"], NAMED["monarch"], NAMED["kronecker"])
FIDELITY = FidelityStudy(
    name="f", proxy=PROXY, structures=STRUCTURES, replicates=2, reference_replicates=1, neighbours=False
)
RATES = (1e-3, 5e-3, 2.5e-2)
OPEN = replace(PROXY, base_lr=None)
CALIBRATION = Calibration(name="c", proxy=OPEN, learning_rates=RATES, replicates=1)


def begin(database: Database, spec: StudySpec, corpora_dir: Path) -> str:
    with database.write() as session:
        return studies.submit(session, spec, corpora_dir).id


def study_of(database: Database, spec: StudySpec, study_id: str) -> Study:
    with database.read() as session:
        return studies.by_id(session, spec.kind, study_id)


def kinds(database: Database) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(Study.kind).order_by(Study.created_at)))


@pytest.fixture
def analyst(database: Database, corpora_dir: Path) -> Analyst:
    return Analyst(database, corpora_dir)


@pytest.fixture
def carry_out(database: Database, workspace: Workspace, analyst: Analyst) -> Callable[[], None]:
    """Has everything done that is to be done."""

    def work() -> None:
        for _ in range(4):  # a calibration, the search that waited for it, and what each finds
            analyst.turn()
            run(database, LocalPool(workspace))
        analyst.turn()

    return work


class TestSubmit:
    def test_begins_a_search_for_each_part(self, database: Database, corpora_dir: Path) -> None:
        study = study_of(database, FIDELITY, begin(database, FIDELITY, corpora_dir))
        assert (study.state, study.reason, study.finding, study.spec) == (StudyState.RUNNING, None, None, FIDELITY)
        assert [part.role for part in study.parts] == list(FIDELITY.searches())
        assert [part.search.spec for part in study.parts] == list(FIDELITY.searches().values())

    def test_shares_what_another_study_has_planned_in_the_same_way(self, database: Database, corpora_dir: Path) -> None:
        first = study_of(database, FIDELITY, begin(database, FIDELITY, corpora_dir))
        similar = replace(FIDELITY, name="another", concurrency=1, reference_replicates=3)
        second = study_of(database, similar, begin(database, similar, corpora_dir))
        assert second.parts[0].search_id == first.parts[0].search_id
        assert second.parts[1].search_id != first.parts[1].search_id

    def test_does_not_share_what_was_stopped(self, database: Database, corpora_dir: Path) -> None:
        first = study_of(database, FIDELITY, begin(database, FIDELITY, corpora_dir))
        with database.write() as session:
            searches.cancel(session, first.parts[0].search_id)
        second = study_of(database, FIDELITY, begin(database, FIDELITY, corpora_dir))
        assert second.parts[0].search_id != first.parts[0].search_id
        assert second.parts[1].search_id == first.parts[1].search_id

    def test_is_all_or_nothing(self, database: Database, corpora_dir: Path) -> None:
        def allow_one(spec: SearchSpec) -> None:
            if "reference" in spec.name:
                raise TooMany("no more", retry_after=1)

        with pytest.raises(TooMany), database.write() as session:
            studies.submit(session, FIDELITY, corpora_dir, check=allow_one)
        assert kinds(database) == []
        with database.read() as session:
            assert session.scalars(select(Search)).all() == []

    def test_refuses_a_corpus_that_is_not_there(self, database: Database) -> None:
        with pytest.raises(InvalidValue), database.write() as session:
            studies.submit(session, FIDELITY, None)

    def test_knows_a_study_by_its_kind_and_id(self, database: Database, corpora_dir: Path) -> None:
        study_id = begin(database, FIDELITY, corpora_dir)
        with database.read() as session:
            for kind, identifier in (("calibration", study_id), (FIDELITY.kind, "nothing")):
                with pytest.raises(NotFound, match=f"there is no {kind} '{identifier}'"):
                    studies.by_id(session, kind, identifier)

    def test_lists_the_newest_first(self, database: Database, corpora_dir: Path) -> None:
        ids = [begin(database, replace(FIDELITY, name=str(n)), corpora_dir) for n in range(3)]
        begin(database, CALIBRATION, corpora_dir)
        with database.read() as session:
            first = studies.listing(session, FIDELITY.kind, PageRequest(size=2))
            rest = studies.listing(session, FIDELITY.kind, PageRequest(size=2, token=first.next_token))
        assert [study.id for study in (*first.items, *rest.items)] == ids[::-1]


class TestAnalysis:
    def test_is_what_the_runs_say(self, database: Database, corpora_dir: Path, carry_out: Callable[[], None]) -> None:
        study_id = begin(database, FIDELITY, corpora_dir)
        carry_out()
        study = study_of(database, FIDELITY, study_id)
        assert (study.state, study.reason) == (StudyState.COMPLETED, None)
        assert study.proxy == digest(PROXY)
        assert isinstance(study.finding, Fidelity)
        with database.read() as session:
            measured = studies.measured(session, study)
        assert study.finding == analyse(FIDELITY, measured)
        losses = {role: [run.loss for run in runs] for role, runs in measured.items()}
        for part in study.parts:
            assert losses[part.role] == [trial.loss for trial in trials_of(database, part.search_id)]
        for each in measured["proxy"]:
            assert each.curve[-1].loss == each.loss
            assert each.cpu_seconds > 0
            assert {"up", "down", "head"} <= each.coordinates.keys()

    def test_waits_for_the_last_search(self, database: Database, corpora_dir: Path, analyst: Analyst) -> None:
        study_id = begin(database, FIDELITY, corpora_dir)
        analyst.turn()
        assert study_of(database, FIDELITY, study_id).state is StudyState.RUNNING

    def test_happens_once(self, database: Database, corpora_dir: Path, carry_out: Callable[[], None]) -> None:
        study_id = begin(database, FIDELITY, corpora_dir)
        carry_out()
        before = study_of(database, FIDELITY, study_id)
        with database.write() as session:
            studies.conclude(session, study_id, FIDELITY.kind, "too late")
        after = study_of(database, FIDELITY, study_id)
        assert (after.state, after.reason, after.finished_at) == (before.state, None, before.finished_at)

    def test_gives_up_where_a_search_was_cancelled(
        self, database: Database, corpora_dir: Path, carry_out: Callable[[], None]
    ) -> None:
        study_id = begin(database, FIDELITY, corpora_dir)
        cancelled = study_of(database, FIDELITY, study_id).parts[1].search_id
        with database.write() as session:
            searches.cancel(session, cancelled)
        carry_out()
        study = study_of(database, FIDELITY, study_id)
        assert (study.state, study.finding) == (StudyState.FAILED, None)
        assert study.reason == f"search {cancelled} (reference) was CANCELLED: USER"

    def test_gives_up_where_a_trial_is_not_to_be_trusted(
        self, database: Database, workspace: Workspace, corpora_dir: Path, analyst: Analyst
    ) -> None:
        study_id = begin(database, FIDELITY, corpora_dir)
        run(database, LocalPool(workspace))
        trial_id = f"{study_of(database, FIDELITY, study_id).parts[0].search_id}-1"
        with database.write() as session:
            trials.exclude(session, trial_id, "the node throttled")
        analyst.turn()
        assert study_of(database, FIDELITY, study_id).reason == f"trial {trial_id} (proxy) is excluded"

    def test_gives_up_where_a_trial_failed(
        self, database: Database, broken: Workspace, corpora_dir: Path, analyst: Analyst
    ) -> None:
        study_id = begin(database, FIDELITY, corpora_dir)
        run(database, LocalPool(broken))
        analyst.turn()
        study = study_of(database, FIDELITY, study_id)
        assert study.state is StudyState.FAILED
        assert "was FAILED: ALL_TRIALS_FAILED" in (study.reason or "")

    def test_says_why_the_runs_allow_no_answer(self, database: Database, rows: Rows, analyst: Analyst) -> None:
        spec = replace(CALIBRATION, proxy=replace(OPEN, corpus=type(PROXY)().corpus))
        study_id = begin(database, spec, Path())
        search_id = study_of(database, spec, study_id).parts[0].search_id
        _diverge(rows, search_id, len(RATES))
        analyst.turn()
        study = study_of(database, spec, study_id)
        assert study.state is StudyState.FAILED
        assert (study.reason or "").startswith("learning_rates: expected one at which the dense model can be trained")


def _diverge(rows: Rows, search_id: str, number: int) -> None:
    """End a search whose trials all diverge."""
    lease = rows.lease(search_id)
    for replicate in range(number):
        trial_id = rows.trial(search_id, NAMED["dense"], replicate)
        attempt_id = rows.attempt(trial_id)
        with rows.database.write() as session:
            trials.record_outcomes(session, lease, {attempt_id: Outcome.infeasible("it diverged")})
    with rows.database.write() as session:
        search = session.get_one(Search, search_id)
        search.state = SearchState.RUNNING
        searches.conclude(session, search)


class TestOpenLearningRate:
    def test_is_the_one_that_comes_along_for_the_default_settings(self, database: Database) -> None:
        proxy = type(PROXY)(train_flops=1e9, dense_width=16)
        with database.write() as session:
            search = searches.submit(
                session, SearchSpec(name="x", budget=Budget(max_trials=1), proxy=proxy), None
            ).search
        assert (search.spec.proxy.base_lr, search.awaits_calibration) == (proxy.SHIPPED_LR, False)

    def test_is_waited_for_and_then_that_of_the_calibration(
        self, database: Database, corpora_dir: Path, carry_out: Callable[[], None], analyst: Analyst
    ) -> None:
        waiting = submit(database, spec_of(2, proxy=OPEN), corpora_dir)
        assert search_of(database, waiting).awaits_calibration
        analyst.turn()
        search = search_of(database, waiting)
        assert kinds(database) == ["calibration"]
        assert search.waiting_for == f"the calibration {search.calibration_id} of its learning rate"
        carry_out()
        search = search_of(database, waiting)
        assert ending(database, waiting) == (SearchState.COMPLETED, Reason.BUDGET_TRIALS)
        assert search.calibration_id is not None
        study = study_of(database, CALIBRATION, search.calibration_id)
        assert isinstance(study.finding, Calibrated)
        assert study.finding.base_lr == search.spec.proxy.base_lr
        assert {trial.base_lr for trial in trials_of(database, waiting)} == {study.finding.base_lr}
        assert study.owner == search.owner

    def test_waits_for_no_runner(
        self, database: Database, workspace: Workspace, corpora_dir: Path, analyst: Analyst
    ) -> None:
        waiting = submit(database, spec_of(2, proxy=OPEN), corpora_dir)
        runner = next_runner(database, LocalPool(workspace))
        assert not runner.turn(0)
        assert search_of(database, waiting).state is SearchState.QUEUED

    def test_is_calibrated_once_for_all_searches_of_the_task(
        self, database: Database, corpora_dir: Path, carry_out: Callable[[], None], analyst: Analyst
    ) -> None:
        ids = [submit(database, spec_of(1, proxy=replace(OPEN, dense_width=8 * n)), corpora_dir) for n in (1, 2)]
        other = submit(database, spec_of(1, proxy=replace(OPEN, depth=2)), corpora_dir)
        analyst.turn()
        analyst.turn()
        used = [search_of(database, search_id).calibration_id for search_id in ids]
        assert used[0] == used[1] is not None
        assert search_of(database, other).calibration_id not in (None, used[0])
        assert kinds(database) == ["calibration"] * 2

    def test_is_known_at_once_where_it_was_calibrated_before(
        self, database: Database, corpora_dir: Path, carry_out: Callable[[], None]
    ) -> None:
        study_id = begin(database, CALIBRATION, corpora_dir)
        carry_out()
        finding = study_of(database, CALIBRATION, study_id).finding
        assert isinstance(finding, Calibrated)
        search = search_of(database, submit(database, spec_of(1, proxy=OPEN), corpora_dir))
        assert (search.spec.proxy.base_lr, search.calibration_id) == (finding.base_lr, study_id)
        assert not search.awaits_calibration
        with database.read() as session:
            assert calibrations.find(session, PROXY) == calibrations.Rate()

    def test_fails_the_search_where_its_calibration_does(
        self, database: Database, corpora_dir: Path, carry_out: Callable[[], None], analyst: Analyst
    ) -> None:
        waiting = submit(database, spec_of(1, proxy=OPEN), corpora_dir)
        analyst.turn()
        calibration_id = search_of(database, waiting).calibration_id
        assert calibration_id is not None
        with database.write() as session:
            study = studies.by_id(session, "calibration", calibration_id)
            searches.cancel(session, study.parts[0].search_id)
        carry_out()
        assert ending(database, waiting) == (SearchState.FAILED, Reason.CALIBRATION_FAILED)
        again = submit(database, spec_of(1, proxy=OPEN), corpora_dir)
        carry_out()
        assert ending(database, again)[0] is SearchState.COMPLETED

    def test_fails_the_search_where_its_corpus_is_gone_by_then(
        self, database: Database, corpora_dir: Path, carry_out: Callable[[], None]
    ) -> None:
        gone, other = (submit(database, spec_of(1, proxy=replace(OPEN, context=n)), corpora_dir) for n in (16, 17))
        corpus = corpora_dir / "corpus.txt"
        text = corpus.read_bytes()
        corpus.unlink()
        Analyst(database, corpora_dir).turn()
        assert kinds(database) == []
        corpus.write_bytes(text)
        carry_out()
        for search_id in (gone, other):
            assert ending(database, search_id) == (SearchState.FAILED, Reason.CALIBRATION_FAILED)
        again = submit(database, spec_of(1, proxy=OPEN), corpora_dir)
        carry_out()
        assert ending(database, again)[0] is SearchState.COMPLETED

    def test_takes_no_trials_before_it_is_known(self, database: Database, corpora_dir: Path) -> None:
        waiting = submit(database, spec_of(2, proxy=OPEN), corpora_dir)
        with pytest.raises(WrongState, match="waits for the calibration"), database.write() as session:
            trials.enqueue(session, waiting, NAMED["btt"])

    @pytest.mark.parametrize("steer", [searches.cancel, searches.pause])
    def test_can_be_steered_before_it_is_known(
        self, database: Database, corpora_dir: Path, carry_out: Callable[[], None], steer: Callable[..., object]
    ) -> None:
        waiting = submit(database, spec_of(1, proxy=OPEN), corpora_dir)
        with database.write() as session:
            steer(session, waiting)
        carry_out()
        if steer is searches.cancel:
            assert ending(database, waiting) == (SearchState.CANCELLED, Reason.USER)
            return
        with database.write() as session:
            searches.resume(session, waiting)
        carry_out()
        assert ending(database, waiting) == (SearchState.COMPLETED, Reason.BUDGET_TRIALS)

    def test_is_asked_of_the_same_machine(self, database: Database, corpora_dir: Path, analyst: Analyst) -> None:
        spec = replace(spec_of(1, proxy=OPEN), resources=Resources(cpus=0.5))
        submit(database, spec, corpora_dir)
        analyst.turn()
        with database.read() as session:
            found: Sequence[Search] = session.scalars(select(Search)).all()
        assert {search.spec.resources for search in found} == {Resources(cpus=0.5)}


class TestAnalyst:
    def test_survives_an_analysis_that_fails(
        self, database: Database, corpora_dir: Path, carry_out: Callable[[], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> Fidelity:
            raise ZeroDivisionError("nothing to divide by")

        monkeypatch.setitem(analyse.__globals__["_ANALYSES"], FidelityStudy, broken)
        study_id = begin(database, FIDELITY, corpora_dir)
        carry_out()
        study = study_of(database, FIDELITY, study_id)
        assert (study.state, study.reason) == (
            StudyState.FAILED,
            "the analysis failed: ZeroDivisionError: nothing to divide by",
        )


class TestOptionsOfLayers:
    """What stands in the place of dense layers: rates and baselines are those of the plain model, transfers its own."""

    MIXED = replace(OPEN, mixture=Mixture(num_experts=2, top_k=1))

    def test_have_the_rate_of_the_plain_model(
        self, database: Database, corpora_dir: Path, carry_out: Callable[[], None]
    ) -> None:
        study_id = begin(database, CALIBRATION, corpora_dir)
        carry_out()
        search = search_of(database, submit(database, spec_of(1, proxy=self.MIXED), corpora_dir))
        assert (search.calibration_id, search.awaits_calibration) == (study_id, False)
        again = study_of(database, CALIBRATION, begin(database, replace(CALIBRATION, proxy=self.MIXED), corpora_dir))
        assert again.parts[0].search_id == study_of(database, CALIBRATION, study_id).parts[0].search_id

    def test_wait_for_one_calibration_with_the_plain_model(
        self, database: Database, corpora_dir: Path, analyst: Analyst
    ) -> None:
        ids = [submit(database, spec_of(1, proxy=proxy), corpora_dir) for proxy in (self.MIXED, OPEN)]
        analyst.turn()
        assert kinds(database) == ["calibration"]
        assert len({search_of(database, search_id).calibration_id for search_id in ids}) == 1

    def test_are_compared_with_the_plain_dense_model(
        self, database: Database, corpora_dir: Path, carry_out: Callable[[], None]
    ) -> None:
        begin(database, Baseline(name="b", proxy=PROXY, width_factors=(1.0, 2.0), replicates=2), corpora_dir)
        carry_out()
        mixed = submit(database, spec_of(1, proxy=replace(self.MIXED, base_lr=PROXY.base_lr)), corpora_dir)
        carry_out()
        with database.read() as session:
            assert searches.best(session, mixed, 1).ranked[0].multiplier is not None
