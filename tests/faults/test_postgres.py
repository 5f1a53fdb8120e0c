"""kill -9 of the Postgres server, with a search in the middle of it."""

import httpx2
import pytest

from tests.embedded_service import small_search
from tests.faults.site import LONG, Site
from tests.waiting import wait_for


@pytest.mark.parametrize("site", ["postgres"], indirect=True)
class TestKillOfPostgres:
    def test_is_told_as_503_and_waited_for(self, site: Site) -> None:
        assert site.postgres is not None
        search_id = site.submit("postgres killed", trials=2, train_flops=LONG)
        site.training(search_id)
        site.postgres.kill()
        refused = wait_for(lambda: submit(site), until=lambda answer: answer.status_code != 201, what="a refusal")
        site.postgres.start()
        assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
        assert (refused.json()["code"], refused.headers["retry-after"]) == ("database_unavailable", "5")
        wait_for(site.service.client.is_ready, what="the API to be ready again")
        ledger = site.settled(search_id, 2)
        # Whose lease was over by then had its slots adopted: nothing that ran had to run again.
        assert [len(trial.attempts) for trial in ledger.trials] == [1, 1]


def submit(site: Site) -> httpx2.Response:
    """The answer to a small search, without the client's patience."""
    return httpx2.post(
        f"{site.service.url}/v1/searches", json=small_search("meanwhile", trials=1, train_flops=1e6), timeout=60
    )
