"""kill -9 of the API, which holds nothing."""

from tests.faults.site import A_WHILE, Site, kill
from tests.waiting import wait_for


class TestKillOfTheAPI:
    def test_loses_nothing_and_is_back_soon(self, site: Site) -> None:
        search_id = site.submit("api killed", trials=2, train_flops=A_WHILE)
        site.training(search_id)
        victim = site.service.child("-m api")
        kill(victim.pid)
        wait_for(lambda: site.service.child("-m api").pid, until=lambda pid: pid != victim.pid, what="the next API")
        wait_for(site.service.client.is_ready, what="the API to be back")
        assert [len(trial.attempts) for trial in site.settled(search_id, 2).trials] == [1, 1]
