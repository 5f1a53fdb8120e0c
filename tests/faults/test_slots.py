"""kill -9 of the process that trains a trial."""

import pytest

from tests.faults.site import LONG, Site, kill


# The database has no part in it: the one that is always there is enough.
@pytest.mark.parametrize("site", ["sqlite"], indirect=True)
class TestKillOfASlot:
    def test_runs_the_trial_again_as_a_new_attempt_and_completes_the_search(self, site: Site) -> None:
        search_id = site.submit("slot killed", trials=2, train_flops=LONG, concurrency=1)
        site.training(search_id)
        # One of them trains; which one, no title tells, as it changes with every question to the slot. An idle one may get
        # the trial next, before the runner hears that it is dead too.
        killed = [slot for slot in site.slots() if slot.command.startswith(("ray::Slot", "ray::slot killed"))]
        for slot in killed:
            kill(slot.pid)
        hit = [trial for trial in site.settled(search_id, 2).trials if len(trial.attempts) > 1]
        assert len(hit) == 1
        *lost, last = hit[0].attempts
        assert last.state == "ENDED"
        assert 1 <= len(lost) <= len(killed)
        assert all(attempt.state == "LOST" and attempt.reason for attempt in lost)
