"""kill -9 of the process that trains a trial."""

from tests.faults.site import LONG, Site, kill
from tests.waiting import wait_for


class TestKillOfASlot:
    def test_runs_the_trial_again_as_attempt_2_and_completes_the_search(self, site: Site) -> None:
        search_id = site.submit("slot killed", trials=2, train_flops=LONG)
        site.training(search_id)
        wait_for(lambda: site.running(search_id), until=lambda found: len(found) == 2, what="both trials to run")
        # The two slots of this site: which of the trials each has does not matter, and titles come and go.
        victim = next(slot for slot in site.slots() if slot.command.startswith(("ray::Slot", "ray::slot killed")))
        kill(victim.pid)
        hit = [trial for trial in site.settled(search_id, 2).trials if len(trial.attempts) > 1]
        assert len(hit) == 1
        assert [attempt.state for attempt in hit[0].attempts] == ["LOST", "ENDED"]
        assert hit[0].attempts[0].reason
