"""The audit finds what it is there to find: a service that lost or doubled something would not get past it."""

import pytest
from sqlalchemy import Delete, Update, delete, update

from einlayers.theta import NAMED
from search.spec import Budget, SearchSpec
from search.states import AttemptState, SearchState, TrialState
from search.trial import Outcome
from service import repositories, searches
from service.database import Database
from service.models import Attempt, Event, Measurement, Result, Search, Trial
from tests.faults.ledger import assert_exactly_the_budget, read_ledger, violations
from tests.rows import TINY, Rows, point

SPEC = SearchSpec(name="audited", budget=Budget(max_trials=2), proxy=TINY)


@pytest.fixture
def search_id(rows: Rows, database: Database) -> str:
    """A search that ended with exactly its budget; its second trial lost a slot on the way."""
    search_id = rows.search(SPEC)
    rows.completed(search_id, NAMED["dense"], 2.0)
    trial_id = rows.trial(search_id, NAMED["monarch"])
    rows.loss(rows.attempt(trial_id))
    rows.outcome(rows.attempt(trial_id), Outcome.completed(loss=1.0, curve=(point(1, 1.0),), seconds=1.0))
    with database.write() as session:
        searches.conclude(session, repositories.search_by_id(session, search_id, lock=True))
    return search_id


class TestAudit:
    def test_finds_nothing_wrong_where_nothing_is(self, database: Database, search_id: str) -> None:
        ledger = assert_exactly_the_budget(database, search_id, 2)
        assert (ledger.num_lost, ledger.num_doubled) == (0, 0)

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (update(Search).values(state=SearchState.RUNNING), "has not ended"),
            (update(Search).values(runner_id="a"), "is held by runner a"),
            (update(Search).values(counts={TrialState.COMPLETED: 3}), "it counts"),
            (update(Search).values(train_flops=1.0), "it reserved 1.0 FLOPs"),
            (update(Search).values(num_retries=0), "it counts 0 retries"),
            (update(Search).values(best_loss=0.5), "its best loss is 0.5"),
            (update(Search).values(last_event=99), "the last is 99"),
            (update(Trial).where(Trial.number == 1).values(number=2), "its trials are numbered [0, 2]"),
            (update(Trial).values(finish_order=0), "its trials ended in places [0, 0]"),
            (update(Trial).values(seed=1), "trials share a seed"),
            (update(Trial).values(loss=None), "is COMPLETED with loss None"),
            (update(Trial).where(Trial.number == 1).values(state=TrialState.RUNNING), "is RUNNING and has attempts"),
            (update(Attempt).values(state=AttemptState.ENDED), "after attempts ['ENDED', 'ENDED']"),
            (update(Attempt).where(Attempt.number == 1).values(number=3), "has attempts [2, 3]"),
            (update(Attempt).values(finished_at=None), "an attempt without a time of its end"),
            (delete(Measurement), "a loss and no learning curve"),
            (update(Result).values(num_trials=2), "its results are not those of its completed trials"),
            (update(Result).values(loss_mean=9.0), "has mean loss 9.0"),
            (delete(Event).where(Event.number == 3), "its events are numbered"),
            (update(Event).where(Event.kind == "search.state").values(data={"state": "RUNNING"}), "tell of the search"),
            (update(Event).where(Event.number == 4).values(data={"state": "COMPLETED"}), "tell of trial 0"),
            (update(Event).where(Event.number == 5).values(trial_id="another"), "a trial that is not there"),
        ],
        ids=str,
    )
    def test_finds(self, database: Database, search_id: str, damage: Update | Delete, said: str) -> None:
        with database.write() as session:
            session.execute(damage)
        found = violations(read_ledger(database, search_id))
        assert [wrong for wrong in found if said in wrong], found

    def test_counts_what_is_lost(self, database: Database, search_id: str) -> None:
        with database.write() as session:
            session.execute(update(Trial).where(Trial.number == 1).values(state=TrialState.PROPOSED))
            session.execute(update(Search).values(counts={TrialState.COMPLETED: 1}))
        assert read_ledger(database, search_id).num_lost == 2  # one that waits for ever, and one that never was

    def test_counts_what_is_doubled(self, database: Database, search_id: str) -> None:
        with database.write() as session:
            session.execute(update(Attempt).values(state=AttemptState.ENDED))
            session.execute(update(Result).values(num_trials=2))
        assert read_ledger(database, search_id).num_doubled == 3

    def test_refuses_another_end_than_that_of_the_budget(self, database: Database, search_id: str) -> None:
        with pytest.raises(AssertionError):
            assert_exactly_the_budget(database, search_id, 3)
