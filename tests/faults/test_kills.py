"""kill -9 of every process of the service, with real processes: nothing is lost, nothing is done twice."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from einsearch.client import Trial
from tests.databases import Server
from tests.embedded_service import EmbeddedService, descendants, embedded_service, processes
from tests.waiting import wait_for

NUM_TRIALS = 4
LONG_ENOUGH = 2e10
"""Training FLOPs of a trial that takes a second or more, so that a kill can hit it."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[EmbeddedService]:
    """A service on SQLite, and another one on Postgres; it makes the tables itself."""
    with (
        server.empty() as url,
        embedded_service(tmp_path_factory.mktemp("kills") / "home", {"EINSEARCH_DATABASE_URL": url}) as running,
    ):
        yield running


def assert_exactly_the_budget(service: EmbeddedService, search_id: str) -> list[Trial]:
    search = service.wait_until_final(search_id)
    trials = list(service.client.trials(search_id))
    assert (search["state"], search["reason"]) == ("COMPLETED", "BUDGET_TRIALS")
    assert [trial["number"] for trial in trials] == list(range(NUM_TRIALS))
    assert {trial["state"] for trial in trials} == {"COMPLETED"}
    # Every trial ended by exactly one attempt; the others before it were lost.
    for trial in trials:
        states = [attempt["state"] for attempt in trial["attempts"]]
        assert Counter(states)["ENDED"] == 1
        assert set(states[:-1]) <= {"LOST"}
    return trials


class TestKillOfASlot:
    def test_runs_the_trial_again_as_attempt_2_and_completes_the_search(self, service: EmbeddedService) -> None:
        search_id = service.submit("slot killed", trials=NUM_TRIALS, train_flops=LONG_ENOUGH)
        running = service.wait_until_running(search_id)
        tasks = wait_for(
            lambda: [
                task
                for task in service.dashboard("/api/v0/tasks?detail=1&limit=1000")
                if task["name"].startswith("slot killed trial") and task["state"] == "RUNNING"
            ],
            what="the task of a trial",
        )
        victim = processes()[tasks[0]["worker_pid"]]
        victim.kill()
        trials = assert_exactly_the_budget(service, search_id)
        hit = [trial for trial in trials if len(trial["attempts"]) > 1]
        assert [trial["id"] for trial in hit if trial["id"] in running]
        for trial in hit:
            assert [attempt["state"] for attempt in trial["attempts"]] == ["LOST", "ENDED"]
            assert trial["attempts"][0]["reason"]


class TestKillOfTheRunner:
    def test_the_next_runner_takes_the_running_trials_over(self, service: EmbeddedService) -> None:
        search_id = service.submit("runner killed", trials=NUM_TRIALS, train_flops=4 * LONG_ENOUGH)
        # Both slots are seen to train, and neither is about to end: no call is on its way when the runner dies.
        wait_for(
            lambda: [t for t in service.wait_until_running(search_id) if any(service.client.measurements(t))],
            until=lambda training: len(training) == 2,
            what="two trials that train",
        )
        victim = service.child("service.runner")
        victim.kill()
        trials = assert_exactly_the_budget(service, search_id)
        assert service.child("service.runner").pid != victim.pid
        # The slots went on meanwhile: no trial had to be run again.
        assert {len(trial["attempts"]) for trial in trials} == {1}


class TestKillOfTheAPI:
    def test_loses_no_search(self, service: EmbeddedService) -> None:
        search_id = service.submit("api killed", trials=NUM_TRIALS, train_flops=LONG_ENOUGH)
        service.wait_until_running(search_id)
        service.child("-m api").kill()
        wait_for(lambda: not service.client.is_ready() or service.child("-m api"), what="the end of the API")
        wait_for(service.client.is_ready, what="the API to be back")
        trials = assert_exactly_the_budget(service, search_id)
        assert {len(trial["attempts"]) for trial in trials} == {1}


class TestKillOfRay:
    def test_runs_the_lost_trials_again_on_the_next_cluster(self, service: EmbeddedService) -> None:
        search_id = service.submit("ray killed", trials=NUM_TRIALS, train_flops=LONG_ENOUGH)
        running = service.wait_until_running(search_id)
        victim = service.child("bin/ray start")
        victim.kill()
        trials = assert_exactly_the_budget(service, search_id)
        assert [trial["id"] for trial in trials if len(trial["attempts"]) > 1 and trial["id"] in running]


class TestKillOfEverything:
    def test_leaves_no_process_and_the_next_start_goes_on(self, tmp_path: Path) -> None:
        with embedded_service(tmp_path / "home") as service:
            search_id = service.submit("all killed", trials=NUM_TRIALS, train_flops=LONG_ENOUGH)
            service.wait_until_running(search_id)
            below = descendants(service.process.pid)
            service.process.kill()
            service.process.wait()
            wait_for(
                lambda: [process for process in below if processes().get(process.pid) == process],
                until=lambda left: not left,
                what="the end of all processes",
            )
        with embedded_service(tmp_path / "home") as service:
            assert_exactly_the_budget(service, search_id)
