"""kill -9 of runners, and one that sleeps through its lease: the slots go on, and whoever takes over adopts them."""

from service.models import Runner
from tests.faults.ledger import Ledger
from tests.faults.site import LONG, SHORT, Site, freeze, kill, thaw
from tests.waiting import wait_for


def submit_and_watch(site: Site, name: str) -> tuple[str, Runner]:
    """A search whose first trial of two trains, and the runner that holds it."""
    search_id = site.submit(name, trials=2, train_flops=LONG, concurrency=1)
    site.training(search_id)
    holder = site.holder(search_id)
    assert holder is not None
    return search_id, holder


def await_successor(site: Site, search_id: str, holder: Runner) -> None:
    """Return once another runner holds the search, or has ended it."""
    wait_for(
        lambda: site.holder(search_id),
        until=lambda now: now is None or now.id != holder.id,
        what=f"a successor of runner {holder.id}",
    )


def attempts(ledger: Ledger) -> list[int]:
    """How many attempts each trial took."""
    return [len(trial.attempts) for trial in ledger.trials]


class TestKillOfOneOfTwoRunners:
    def test_another_takes_its_running_trial_over(self, site: Site) -> None:
        search_id, victim = submit_and_watch(site, "runner killed")
        kill(victim.pid)
        ledger = site.settled(search_id, 2)
        assert attempts(ledger) == [1, 1]
        assert victim.id not in {attempt.runner_id for trial in ledger.trials for attempt in trial.attempts}
        assert ledger.search.epoch == 2


class TestKillOfAllRunners:
    def test_the_next_ones_take_their_running_trial_over(self, site: Site) -> None:
        search_id, victim = submit_and_watch(site, "runners killed")
        for process in site.service.children("service.runner"):
            kill(process.pid)
        ledger = site.settled(search_id, 2)
        assert attempts(ledger) == [1, 1]
        assert victim.id not in {attempt.runner_id for trial in ledger.trials for attempt in trial.attempts}


class TestARunnerThatSleepsThroughItsLease:
    def test_does_no_harm_when_it_wakes_and_works_on(self, site: Site) -> None:
        search_id, sleeper = submit_and_watch(site, "runner asleep")
        freeze(site.database, sleeper.pid)
        try:
            await_successor(site, search_id, sleeper)
        finally:
            thaw(sleeper.pid)
        assert attempts(site.settled(search_id, 2)) == [1, 1]
        wait_for(lambda: self._works(site, sleeper), what=f"runner {sleeper.id} to work on")
        assert sleeper.pid in {process.pid for process in site.service.children("service.runner")}

    def _works(self, site: Site, runner: Runner) -> bool:
        """Whether the runner carries out any of the next searches: as many as there are runners, for each to have one."""
        found = [site.submit("after sleep", trials=1, train_flops=SHORT) for _ in range(2)]
        return any([site.settled(search_id, 1) and site.has_worked(runner.id, search_id) for search_id in found])
