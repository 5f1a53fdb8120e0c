"""The embedded service as a user meets it: commands typed, output read."""

import csv
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fidelity.__main__ import measure
from benchmarks.fidelity.report import report
from benchmarks.fidelity.studies import STUDIES, slice_of
from tests.embedded_service import COMMAND, EmbeddedService, Process, descendants, embedded_service, processes
from tests.waiting import wait_for

QUICK = 1e9
LONG = 1e12


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedService]:
    with embedded_service(tmp_path_factory.mktemp("e2e") / "home") as running:
        yield running


def einsearch(
    service: EmbeddedService | None, *arguments: str, stdin: str = "", **environment: str
) -> "subprocess.CompletedProcess[str]":
    url = {"EINSEARCH_URL": service.url} if service else {}
    return subprocess.run(
        [COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **url, **environment},
    )


def search_body(**fields: object) -> str:
    return json.dumps({"name": "typed", "budget": {"max_trials": 2}, "proxy": {"train_flops": QUICK}} | fields)


class TestCommands:
    def test_submit_watch_best_and_searches_tell_one_story(self, service: EmbeddedService) -> None:
        submitted = einsearch(service, "submit", "-", stdin=search_body(space={"seeds": ["dense", "monarch"]}))
        search_id = submitted.stdout.strip()
        watched = einsearch(service, "watch", search_id)
        assert (watched.returncode, "2/2" in watched.stdout) == (0, True)
        table = einsearch(service, "best", search_id).stdout
        best = service.client.best(search_id)
        assert [item["rank"] for item in best] == [1, 2]
        for item in best:
            assert item["trial"]["family"] in table
            assert f"{item['loss']:.4f}" in table
            assert str(item["replicates"][0]["seed"]) in table
        assert search_id in einsearch(service, "searches").stdout

    def test_a_search_is_extended_added_to_corrected_and_taken_home(
        self, service: EmbeddedService, tmp_path: Path
    ) -> None:
        # Another one has both slots: trials of a moment would be over before they can be paused.
        in_the_way = service.submit("in the way", trials=2, train_flops=LONG)
        wait_for(
            lambda: service.wait_until_running(in_the_way), until=lambda ids: len(ids) == 2, what="both slots taken"
        )
        search_id = service.submit("steered", trials=2, train_flops=QUICK)
        assert einsearch(service, "pause", search_id, "--checkpoint").stdout == "PAUSED\n"
        assert einsearch(service, "cancel", in_the_way).returncode == 0
        assert "max_trials 3," in einsearch(service, "extend", search_id, "--max-trials", "3").stdout
        enqueued = einsearch(service, "enqueue", search_id, "low-rank").stdout.strip()
        assert enqueued.startswith(f"{search_id}-")
        assert einsearch(service, "resume", search_id).stdout == "RUNNING\n"
        events = einsearch(service, "events", search_id).stdout.splitlines()
        assert [int(line.split()[0]) for line in events] == list(range(1, len(events) + 1))
        assert "state=COMPLETED reason=BUDGET_TRIALS" in events[-1]
        assert "low-rank" in einsearch(service, "best", search_id).stdout
        assert "that no other beats" in einsearch(service, "pareto", search_id, "--metrics", "loss,params").stdout
        assert einsearch(service, "exclude", enqueued, "--reason", "on trial").returncode == 0
        assert "low-rank" not in einsearch(service, "best", search_id).stdout
        table = tmp_path / "all.csv"
        assert einsearch(service, "export", search_id, "-o", str(table)).returncode == 0
        rows = list(csv.DictReader(table.read_text().splitlines()))
        assert [row["id"] for row in rows] == [f"{search_id}-{number}" for number in range(3)]
        assert [row["id"] for row in rows if row["excluded"] == "true"] == [enqueued]

    def test_describe_shows_the_axes_of_a_named_structure(self, service: EmbeddedService) -> None:
        shown = einsearch(service, "describe", "monarch", "--d-in", "1024", "--d-out", "1024").stdout
        assert "alpha 32, beta 1, gamma 32, delta 1, epsilon 32, phi 32, rho 1" in shown
        assert "65,536" in shown

    def test_a_typo_is_answered_with_the_field_and_no_traceback(self, service: EmbeddedService) -> None:
        refused = einsearch(service, "submit", "-", stdin=search_body(budget={"max_trails": 2}))
        assert refused.returncode == 1
        assert "/budget/max_trails" in refused.stderr
        assert "Traceback" not in refused.stderr

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (("best", "nonsense"), "there is nothing at"),
            (("best", "0123456789ab"), "there is no search"),
            (("describe", "0.5|0.9", "--d-in", "4", "--d-out", "4"), "expected seven exponents"),
            (("describe", "0.5|.9|0|0|.5|.5|0", "--d-in", "4", "--d-out", "4"), "sum to 1, got 1.4"),
            (("submit", "no-such-file.json"), "No such file"),
            (("searches", "--url", "http://127.0.0.1:9"), "einsearch up"),
        ],
    )
    def test_wrong_input_costs_a_message(
        self, service: EmbeddedService, arguments: tuple[str, ...], expected: str
    ) -> None:
        refused = einsearch(service, *arguments)
        assert refused.returncode in (1, 2)
        assert expected in refused.stderr
        assert "Traceback" not in refused.stderr

    def test_a_second_service_in_the_same_home_is_refused_with_the_address_of_the_first(
        self, service: EmbeddedService
    ) -> None:
        refused = einsearch(service, "up", "--home", str(service.home), "--port", "0")
        assert refused.returncode == 1
        assert service.url in refused.stderr

    def test_a_taken_port_is_named(self, service: EmbeddedService, tmp_path: Path) -> None:
        port = service.url.rpartition(":")[2]
        refused = einsearch(service, "up", "--home", str(tmp_path), "--port", port)
        assert refused.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr


class TestBeyondThisMachine:
    def test_nobody_is_let_in_without_a_key_and_nothing_is_started_before_there_is_one(self, tmp_path: Path) -> None:
        home = str(tmp_path / "home")
        refused = einsearch(None, "up", "--home", home, "--host", "0.0.0.0", "--port", "0")
        assert refused.returncode == 1
        assert "einsearch keys create --owner NAME" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert [log.name for log in (tmp_path / "home" / "logs").iterdir()] == ["api.log"]

    def test_those_with_a_key_are_served_until_it_is_revoked(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        made = einsearch(None, "keys", "create", "--owner", "ada", "--home", str(home))
        key = {"EINSEARCH_API_KEY": made.stdout.strip()}
        with embedded_service(home, {"EINSEARCH_HOST": "0.0.0.0"}, runners=2) as service:
            assert len(service.children("service.runner")) == 2
            refused = einsearch(service, "searches")
            assert (refused.returncode, "--api-key" in refused.stderr) == (1, True)
            search_id = einsearch(
                service, "submit", "-", stdin=search_body(budget={"max_trials": 1}), **key
            ).stdout.strip()
            assert "1/1" in einsearch(service, "watch", search_id, **key).stdout
            assert "ada" in einsearch(None, "keys", "list", "--home", str(home)).stdout
            key_id = made.stdout.split("_")[1]
            assert einsearch(None, "keys", "revoke", key_id, "--home", str(home)).returncode == 0
            assert "was revoked" in einsearch(service, "searches", **key).stderr


class TestRayDashboard:
    def test_shows_the_running_trial_by_its_name_and_the_slots(self, service: EmbeddedService) -> None:
        search_id = service.submit("seen", trials=1, train_flops=LONG)
        service.wait_until_running(search_id)
        names = wait_for(
            lambda: {
                task["name"]
                for task in service.dashboard("/api/v0/tasks?detail=1&limit=1000")
                if task["state"] == "RUNNING"
            },
            until=lambda names: any(name.startswith("seen") for name in names),
            what="the trial in the dashboard",
        )
        assert "seen trial 0 monarch(0.5|0|0.5|0|0.5|0.5|0)" in names
        # Questions to the slots are no tasks that anybody wants to see there.
        tasks = {task["name"] for task in service.dashboard("/api/v0/tasks?detail=1&limit=1000")}
        assert {name for name in tasks if name.startswith("Slot.")} <= {"Slot.__init__"}
        actors = service.dashboard("/api/v0/actors?detail=1&limit=1000")
        assert [actor for actor in actors if actor["state"] == "ALIVE" and actor["name"].startswith("slot-")]
        service.client.cancel(search_id)
        assert service.wait_until_final(search_id)["state"] == "CANCELLED"

    def test_refuses_whoever_has_no_token(self, service: EmbeddedService) -> None:
        import httpx2

        assert httpx2.get(f"{service.dashboard_url}/api/v0/tasks").status_code == 401

    def test_two_trials_share_a_gpu_by_halves(self, service: EmbeddedService) -> None:
        spec = {
            "name": "halves",
            "budget": {"max_trials": 2},
            "proxy": {"train_flops": LONG},
            "resources": {"cpus": 0.5, "gpus": 0.5},
        }
        search_id = service.client.submit(spec)["id"]
        wait_for(
            lambda: service.wait_until_running(search_id), until=lambda ids: len(ids) == 2, what="two trials on one GPU"
        )
        service.client.cancel(search_id)
        service.wait_until_final(search_id)

    def test_a_request_that_no_node_can_meet_says_what_is_there(self, service: EmbeddedService) -> None:
        spec = {"name": "greedy", "budget": {"max_trials": 1}, "resources": {"cpus": 1, "gpus": 2}}
        search_id = service.client.submit(spec)["id"]
        reason = wait_for(lambda: service.client.search(search_id)["waiting_for"], what="the reason")
        assert reason == "a trial asks for 1 CPUs and 2 GPUs; the cluster has 2 CPUs, 1 GPUs"
        service.client.cancel(search_id)
        assert service.wait_until_final(search_id)["state"] == "CANCELLED"


class TestDivergence:
    def test_ends_the_trial_as_infeasible_with_its_reason_and_the_search_goes_on(
        self, service: EmbeddedService
    ) -> None:
        search_id = service.submit("too fast", trials=3, train_flops=QUICK, base_lr=1000.0)
        search = service.wait_until_final(search_id)
        trials = list(service.client.trials(search_id))
        assert (search["state"], search["progress"]["counts"]) == ("COMPLETED", {"INFEASIBLE": 3})
        assert all("loss is" in (trial["reason"] or "") for trial in trials)


class TestFidelity:
    """A slice of what ``make fidelity`` does."""

    def test_is_measured_written_down_and_not_measured_twice(self, service: EmbeddedService) -> None:
        names = ("screening", "standard", "control: equal steps", "the papers' order")
        specs = [slice_of(spec) for spec in STUDIES if spec["name"] in names]
        found = measure(service.client, specs)
        assert [(study["name"], study["state"], study["reason"]) for study in found] == [
            (spec["name"], "COMPLETED", None) for spec in specs
        ]
        again = measure(service.client, specs)
        assert [study["id"] for study in again] == [study["id"] for study in found]
        page = report(found, {"exponent of C": 95}, "two CPUs")
        for row in (
            "| screening: CPU-seconds a trial |",
            "| psi < 1 less omega = 0, psi = 1 |",
            "| exponent of C | 95 |",
        ):
            assert row in page
        assert "Without a result" not in page


def _left_after(service: EmbeddedService, number: int) -> list[Process]:
    """The processes of a service that are still there after a signal has stopped it."""
    below = descendants(service.process.pid)
    assert service.stop(number) == 0
    return [process for process in below if processes().get(process.pid) == process]


class TestCtrlC:
    def test_ends_a_start_and_what_has_been_started(self, tmp_path: Path) -> None:
        process = subprocess.Popen(
            [COMMAND, "up", "--home", str(tmp_path / "home"), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            wait_for((tmp_path / "home" / "logs" / "api.log").exists, what="the first process")
            below = descendants(process.pid)
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        assert (process.returncode, said) == (130, "stopped before it was up\n")
        assert not [child for child in below if processes().get(child.pid) == child]

    def test_stops_every_process_and_the_next_start_goes_on(self, tmp_path: Path) -> None:
        with embedded_service(tmp_path / "home") as service:
            search_id = service.submit("interrupted", trials=1, train_flops=4e9)
            service.wait_until_running(search_id)
            assert _left_after(service, signal.SIGINT) == []
        with embedded_service(tmp_path / "home") as service:
            assert service.wait_until_final(search_id)["progress"]["counts"] == {"COMPLETED": 1}
            assert _left_after(service, signal.SIGTERM) == []
