"""kill -9 of the process that trains a trial."""

from tests.faults.site import LONG, Site, kill


class TestKillOfASlot:
    def test_runs_the_trial_again_as_attempt_2_and_completes_the_search(self, site: Site) -> None:
        search_id = site.submit("slot killed", trials=2, train_flops=LONG, concurrency=1)
        site.training(search_id)
        # One of them trains; which one, no title tells, as it changes with every question to the slot.
        for slot in site.slots():
            if slot.command.startswith(("ray::Slot", "ray::slot killed")):
                kill(slot.pid)
        hit = [trial for trial in site.settled(search_id, 2).trials if len(trial.attempts) > 1]
        assert len(hit) == 1
        assert [attempt.state for attempt in hit[0].attempts] == ["LOST", "ENDED"]
        assert hit[0].attempts[0].reason
