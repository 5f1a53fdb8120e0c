"""Clients that are killed in the middle of a request: what they began is done wholly or not at all, and harms nobody."""

from collections.abc import Iterator

import pytest

from tests.embedded_service import small_search
from tests.faults.site import A_WHILE, SHORT, Site
from tests.faults.vanishing import half_a_body, half_an_answer, unread_answer
from tests.waiting import wait_for

MANY = 40
"""More than the API has connections to its database, threads, or whatever else could leak."""


@pytest.fixture
def quiet(site: Site) -> Iterator[None]:
    """A client that goes away is nothing that the operator has to look into."""
    log = site.service.home / "logs" / "api.log"
    begin = len(log.read_text())
    yield
    assert site.service.client.is_ready()
    assert "Traceback" not in log.read_text()[begin:]


def names(site: Site) -> list[str]:
    return [search["name"] for search in site.service.client.searches()]


class TestClientThatGoesAway:
    @pytest.mark.usefixtures("quiet")
    def test_within_its_request_has_asked_for_nothing(self, site: Site) -> None:
        before = names(site)
        for _ in range(MANY):
            half_a_body(site.service.url)
        assert names(site) == before

    @pytest.mark.usefixtures("quiet")
    def test_before_the_answer_finds_its_search_when_it_asks_again(self, site: Site) -> None:
        body = small_search("unread", trials=1, train_flops=SHORT)
        for number in range(5):
            unread_answer(site.service.url, body, f"unread {number}")
        ids = {site.service.client.submit(body, idempotency_key=f"unread {number}")["id"] for number in range(5)}
        assert names(site).count("unread") == len(ids) == 5
        for search_id in ids:
            site.settled(search_id, 1)

    @pytest.mark.usefixtures("quiet")
    def test_while_it_follows_a_search_goes_on_where_it_stopped(self, site: Site) -> None:
        search_id = site.submit("followed", trials=2, train_flops=A_WHILE)
        wait_for(lambda: site.running(search_id), what="a trial that runs")
        for _ in range(MANY):
            half_an_answer(site.service.url, f"/v1/searches/{search_id}/events")
        followed = [event["number"] for event in site.service.client.events(search_id, after=1)]
        ledger = site.settled(search_id, 2)
        assert followed == list(range(2, ledger.search.last_event + 1))
        assert site.service.client.is_ready()

    @pytest.mark.usefixtures("quiet")
    def test_within_an_export_leaves_nothing_open(self, site: Site) -> None:
        search_id = site.submit("exported", trials=2, train_flops=SHORT)
        site.settled(search_id, 2)
        for number in range(MANY):
            format = ("csv", "jsonl", "parquet")[number % 3]
            half_an_answer(site.service.url, f"/v1/searches/{search_id}/export?format={format}")
