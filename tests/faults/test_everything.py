"""kill -9 of ``einsearch up`` itself."""

from pathlib import Path

from tests.embedded_service import descendants, processes
from tests.faults.site import LONG, new_site
from tests.waiting import wait_for


class TestKillOfEverything:
    def test_leaves_no_process_and_the_next_start_goes_on(self, tmp_path: Path) -> None:
        with new_site("sqlite", tmp_path / "home", runners=1) as site:
            search_id = site.submit("all killed", trials=1, train_flops=LONG)
            site.training(search_id)
            below = descendants(site.service.process.pid)
            site.service.process.kill()
            site.service.process.wait()
            wait_for(
                lambda: [process for process in below if processes().get(process.pid) == process],
                until=lambda left: not left,
                what="the end of all processes",
            )
        with new_site("sqlite", tmp_path / "home", runners=1) as site:
            site.settled(search_id, 1)
