"""A disk without room for another page of the SQLite file: what cannot be written down has not happened."""

from contextlib import closing
from pathlib import Path

import httpx2

from service.database import Database
from tests.embedded_service import EmbeddedService, small_search
from tests.faults.disks import can_mount, service_on_a_disk
from tests.faults.ledger import assert_exactly_the_budget
from tests.faults.site import LONG, SHORT
from tests.waiting import wait_for


def submit(service: EmbeddedService) -> httpx2.Response:
    """The answer to a small search, without the client's patience."""
    body = small_search("meanwhile", trials=1, train_flops=SHORT)
    return httpx2.post(f"{service.url}/v1/searches", json=body, timeout=60)


class TestFullDisk:
    def test_is_told_as_503_and_the_service_goes_on_when_there_is_room(self, tmp_path: Path) -> None:
        with service_on_a_disk(tmp_path / "home", mounted=can_mount()) as (service, disk):
            search_id = service.submit("disk full", trials=2, train_flops=LONG)
            service.wait_until_running(search_id)
            disk.fill()
            num_accepted = 0
            while (answer := submit(service)).status_code == 201:
                num_accepted += 1
            runner_log = service.home / "logs" / "runner.log"
            wait_for(lambda: "does not answer" in runner_log.read_text(), what="the runner to find the disk full")
            disk.free()
            assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
            assert (answer.json()["code"], answer.headers["retry-after"]) == ("database_unavailable", "5")
            wait_for(lambda: submit(service).status_code == 201, what="the API to accept searches again")
            searches = list(service.client.searches())
            assert len(searches) == 1 + num_accepted + 1
            for search in searches:
                service.wait_until_final(search["id"])
            disk.copy(tmp_path / "copy.db")
        with closing(Database(f"sqlite:///{tmp_path / 'copy.db'}")) as database:
            ledgers = [
                assert_exactly_the_budget(database, s["id"], s["spec"]["budget"]["max_trials"]) for s in searches
            ]
        # There was one runner, whose lease nobody took: nothing that ran had to run again.
        assert all(len(trial.attempts) == 1 for ledger in ledgers for trial in ledger.trials)
