"""kill -9 of the process that trains a trial."""

from tests.faults.site import LONG, Site, kill


class TestKillOfASlot:
    def test_runs_the_trial_again_as_attempt_2_and_completes_the_search(self, site: Site) -> None:
        search_id = site.submit("slot killed", trials=2, train_flops=LONG)
        victim = site.training(search_id)
        kill(site.pid_of(victim))
        hit = [trial for trial in site.settled(search_id, 2).trials if len(trial.attempts) > 1]
        assert [trial.id for trial in hit] == [victim]
        assert [attempt.state for attempt in hit[0].attempts] == ["LOST", "ENDED"]
        assert hit[0].attempts[0].reason
