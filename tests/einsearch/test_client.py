import io
import socket
from collections.abc import Callable

import pytest

from einlayers.errors import FieldError
from einlayers.theta import NAMED
from einsearch.client import Client, Patience, Refused, Unreachable
from tests.einsearch.answers import event, search
from tests.einsearch.scripted import (
    DROP,
    Answer,
    Scripted,
    json_answer,
    page,
    problem,
    stream_of_events,
)

SPEC = {"name": "first", "budget": {"max_trials": 4}}
AWAY = problem(503, "database_unavailable", "the database does not answer")
IN_FLIGHT = problem(409, "in_flight", Retry_After="0")
OF_A_PROXY = Answer(status=502, body=b"<h1>Bad Gateway</h1>", kind="text/html")
CREATED = json_answer(search(), 201)


def keys(server: Scripted) -> list[str | None]:
    return [asked.headers.get("idempotency-key") for asked in server.asked]


class TestSubmit:
    def test_sends_one_key_and_one_body_however_often_it_has_to_be_sent(self, server: Scripted, client: Client) -> None:
        server.says(DROP, AWAY, IN_FLIGHT, OF_A_PROXY, CREATED)
        assert client.submit(SPEC)["id"] == "5f0c2ab91d3e"
        assert len(server.asked) == 5
        assert len(set(keys(server))) == 1
        assert len({asked.body for asked in server.asked}) == 1

    def test_sends_another_key_with_another_call(self, server: Scripted, client: Client) -> None:
        server.says(CREATED)
        client.submit(SPEC)
        client.submit(SPEC)
        first, second = keys(server)
        assert first
        assert second
        assert first != second

    def test_sends_the_key_that_it_is_given(self, server: Scripted, client: Client) -> None:
        server.says(CREATED)
        client.submit(SPEC, idempotency_key="of mine")
        assert keys(server) == ["of mine"]

    def test_does_not_argue_with_a_refusal(self, server: Scripted, client: Client) -> None:
        body = {
            "status": 422,
            "code": "invalid_value",
            "detail": "no",
            "errors": [{"pointer": "/budget", "detail": "x"}],
        }
        server.says(json_answer(body, 422))
        with pytest.raises(Refused, match="no\n  /budget: x") as refused:
            client.submit(SPEC)
        assert refused.value.problem["code"] == "invalid_value"
        assert len(server.asked) == 1


class TestCallsThatChangeSomethingWithoutAKey:
    @pytest.mark.parametrize(
        "call",
        [
            lambda client: client.pause("5f"),
            lambda client: client.cancel("5f"),
            lambda client: client.exclude("5f-0", "why"),
            lambda client: client.delete_webhook("0c"),
        ],
    )
    def test_are_sent_once_and_an_answer_that_did_not_arrive_is_told(
        self, server: Scripted, client: Client, call: Callable[[Client], object]
    ) -> None:
        server.says(DROP)
        with pytest.raises(Unreachable, match="its answer did not arrive"):
            call(client)
        assert len(server.asked) == 1

    def test_are_sent_later_where_there_were_too_many_requests(self, server: Scripted, client: Client) -> None:
        server.says(problem(429, "too_many", Retry_After="0"), json_answer(search(state="PAUSED")))
        assert client.pause("5f", "checkpoint")["state"] == "PAUSED"
        assert [asked.parameters for asked in server.asked] == [{"mode": "checkpoint"}] * 2


class TestReading:
    def test_outlives_what_a_restart_of_the_service_does(self, server: Scripted, client: Client) -> None:
        server.says(DROP, AWAY, OF_A_PROXY, Answer(body=b"{", breaks=True), json_answer(search()))
        assert client.search("5f0c2ab91d3e")["name"] == "first"
        assert len(server.asked) == 5

    def test_ends_with_the_refusal_when_patience_ends(self, server: Scripted) -> None:
        server.says(AWAY)
        patience = Patience(once_met=0.05, first_pause=0.001, longest_pause=0.002)
        with Client(server.url, patience=patience) as client, pytest.raises(Refused, match="does not answer"):
            client.search("5f")
        assert len(server.asked) > 1

    def test_waits_as_long_as_the_service_asks_for(self, server: Scripted) -> None:
        server.says(problem(503, "database_unavailable", Retry_After="60"))
        with Client(server.url) as client, pytest.raises(Refused):
            client.search("5f")
        assert len(server.asked) == 1, "a minute is more than its patience, so it does not even begin to wait"

    def test_tells_a_service_that_is_none(self, server: Scripted, client: Client) -> None:
        for strange in (Answer(status=404, body=b"<h1>Not Found</h1>"), json_answer({"code": 7, "message": "no"}, 404)):
            server.says(strange)
            with pytest.raises(Unreachable, match="is not einsearch: HTTP 404"):
                client.search("5f")
        for strange in (Answer(body=b"<h1>Hello</h1>"), json_answer([]), Answer(status=302)):
            server.says(strange)
            with pytest.raises(Unreachable, match="is not einsearch: no JSON"):
                client.search("5f")

    def test_tells_a_proxy_without_a_service_behind_it(self, server: Scripted) -> None:
        server.says(OF_A_PROXY)
        with (
            Client(server.url, patience=Patience(once_met=0.0)) as client,
            pytest.raises(Unreachable, match=r"the service behind .* does not answer: HTTP 502"),
        ):
            client.search("5f")

    def test_says_how_to_start_a_service_where_nothing_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        patience = Patience(at_first=0.0)
        with Client(f"http://127.0.0.1:{port}", patience=patience) as client:
            with pytest.raises(Unreachable, match="Start one with: einsearch up"):
                client.search("5f")
            assert not client.is_ready()

    def test_is_direct_on_this_machine_whatever_proxy_the_environment_names(
        self, server: Scripted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        server.says(json_answer(search()))
        with Client(server.url) as client:
            assert client.search("5f")["name"] == "first"


class TestLimitsOfRequests:
    def test_are_kept_by_asking_again_when_the_service_says(self, server: Scripted, client: Client) -> None:
        server.says(*[problem(429, "too_many", Retry_After="0.01")] * 3, json_answer(search()))
        assert client.search("5f")["name"] == "first"

    @pytest.mark.parametrize("headers", [{"Retry_After": "86400"}, {"Retry_After": "tomorrow"}, {}])
    def test_are_told_at_once_where_waiting_does_not_help(
        self, server: Scripted, client: Client, headers: dict[str, str]
    ) -> None:
        server.says(problem(429, "too_many", "ask for less", **headers))
        with pytest.raises(Refused, match="ask for less"):
            client.search("5f")
        assert len(server.asked) == 1


class TestApiKeys:
    def test_are_those_of_the_argument_then_of_the_environment(
        self, server: Scripted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.says(json_answer(search()))
        for api_key in (None, "es_1_a"):
            for environment in ("", "es_2_b\n"):
                monkeypatch.setenv("EINSEARCH_API_KEY", environment)
                with Client(server.url, api_key=api_key) as client:
                    client.search("5f")
        assert [asked.headers.get("authorization") for asked in server.asked] == [
            None,
            "Bearer es_2_b",
            "Bearer es_1_a",
            "Bearer es_1_a",
        ]

    @pytest.mark.parametrize("key", ["es_1_gehéim", "es_1 geheim", "es_1\ngeheim"])
    def test_that_cannot_be_sent_are_refused_without_being_shown(self, key: str) -> None:
        with pytest.raises(FieldError, match="es_<id>_<secret>") as refused:
            Client("http://127.0.0.1:9", api_key=key)
        assert "im" not in str(refused.value)


class TestEvents:
    def test_go_on_after_the_last_one_where_a_connection_breaks_in_the_middle(
        self, server: Scripted, client: Client
    ) -> None:
        server.says(
            stream_of_events(event(1), event(2), breaks=True, rest='id: 3\ndata: {"numb'),
            AWAY,
            stream_of_events(event(2), event(3)),
            DROP,
            stream_of_events(event(4, "search.state", state="COMPLETED")),
            Answer(status=204),
        )
        assert [each["number"] for each in client.events("5f")] == [1, 2, 3, 4]
        assert [asked.headers["last-event-id"] for asked in server.asked] == ["0", "2", "2", "3", "3", "4"]

    def test_begin_after_the_one_that_is_named(self, server: Scripted, client: Client) -> None:
        server.says(Answer(status=204))
        assert list(client.events("5f", after=7)) == []
        assert server.asked[0].headers["last-event-id"] == "7"

    def test_of_no_search_are_refused(self, server: Scripted, client: Client) -> None:
        server.says(problem(404, "not_found", "there is no search"))
        with pytest.raises(Refused, match="there is no search"):
            next(client.events("5f"))

    @pytest.mark.parametrize(
        "answer",
        [
            json_answer({}),
            Answer(body=b"data: [1]\n\n", kind="text/event-stream"),
            Answer(body=b"data: {\n\n", kind="text/event-stream"),
        ],
    )
    def test_that_are_none_are_told(self, server: Scripted, client: Client, answer: Answer) -> None:
        server.says(answer)
        with pytest.raises(Unreachable, match="sends no events"):
            next(client.events("5f"))


class TestExport:
    def test_is_written_as_it_came(self, server: Scripted, client: Client) -> None:
        server.says(DROP, Answer(body=b"PAR1\0\n\xff", kind="application/vnd.apache.parquet"))
        file = io.BytesIO()
        assert client.export("5f", "parquet", file) == 7
        assert file.getvalue() == b"PAR1\0\n\xff"
        assert server.asked[-1].parameters == {"format": "parquet"}

    def test_that_breaks_off_is_told(self, server: Scripted, client: Client) -> None:
        server.says(Answer(body=b"id,number\n", kind="text/csv", breaks=True))
        with pytest.raises(Unreachable, match="broke off after 10 bytes"):
            client.export("5f", "csv", io.BytesIO())


class TestLists:
    def test_are_read_page_by_page_with_the_same_filters(self, server: Scripted, client: Client) -> None:
        server.says(page({"id": "a"}, token="next"), page({"id": "b"}))
        found = client.trials("5f", state="COMPLETED", omega_max=0.5, descending=True, order_by="loss")
        assert [trial["id"] for trial in found] == ["a", "b"]
        filters = {"state": "COMPLETED", "omega_max": "0.5", "descending": "true", "order_by": "loss"}
        assert [asked.parameters for asked in server.asked] == [filters, filters | {"page_token": "next"}]

    def test_know_their_filters(self, client: Client) -> None:
        with pytest.raises(TypeError, match=r"omega_max.*got 'omgea_max'"):
            client.structures(omgea_max=0.5)  # type: ignore[call-arg]  # what is tested
        with pytest.raises(TypeError, match="got 'state'"):
            client.structures(state="COMPLETED")  # type: ignore[call-arg]  # of one search only

    def test_of_webhooks_and_of_one_owner(self, server: Scripted, client: Client) -> None:
        server.says(page())
        assert [*client.webhooks(), *client.searches(owner="me")] == []
        assert [(asked.path, asked.parameters) for asked in server.asked] == [
            ("/v1/webhooks", {}),
            ("/v1/searches", {"owner": "me"}),
        ]


class TestHypervolume:
    def test_is_asked_for_by_metrics_and_a_reference_to_the_last_digit(self, server: Scripted, client: Client) -> None:
        server.says(json_answer({"reference": {"loss": 0.1, "macs": 2e6}, "points": []}))
        assert client.hypervolume("5f")["points"] == []
        client.hypervolume("5f", ("loss", "latency"), reference=(0.1 + 0.2, 3))
        assert [(asked.path, asked.parameters) for asked in server.asked] == [
            ("/v1/searches/5f/hypervolume", {"metrics": "loss,macs"}),
            ("/v1/searches/5f/hypervolume", {"metrics": "loss,latency", "reference": "0.30000000000000004,3.0"}),
        ]


class TestPaths:
    def test_hold_an_id_as_one_segment_whatever_was_typed(self, server: Scripted, client: Client) -> None:
        server.says(problem(404, "not_found"))
        with pytest.raises(Refused):
            client.search("../../x?y#z")
        assert server.asked[0].path == "/v1/searches/..%2F..%2Fx%3Fy%23z"

    def test_of_steering_are_those_of_the_api(self, server: Scripted, client: Client) -> None:
        server.says(json_answer(search()))
        client.extend("5f", {"max_trials": 9})
        client.enqueue("5f", NAMED["monarch"])
        client.exclude("5f-0", "a bad slot")
        client.include("5f-0")
        client.validate(SPEC)
        client.create_webhook("https://example.org/", kinds=["trial.state"])
        assert [(asked.method, asked.path) for asked in server.asked] == [
            ("PATCH", "/v1/searches/5f"),
            ("POST", "/v1/searches/5f/trials"),
            ("POST", "/v1/trials/5f-0:exclude"),
            ("POST", "/v1/trials/5f-0:include"),
            ("POST", "/v1/searches:validate"),
            ("POST", "/v1/webhooks"),
        ]
        assert server.asked[0].body == b'{"budget":{"max_trials":9}}'
        assert server.asked[2].body == b'{"reason":"a bad slot"}'
        assert [bool(key) for key in keys(server)] == [False, True, False, False, False, True]
