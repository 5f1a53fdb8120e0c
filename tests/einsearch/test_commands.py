"""The commands against a service that says what a test wrote down; the real service is in ``tests/e2e``."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from einsearch.cli import main
from tests.einsearch.answers import best, event, ranked, search
from tests.einsearch.scripted import Answer, Scripted, json_answer, page, problem, stream_of_events


@dataclass(frozen=True)
class Typed:
    """What a command left behind."""

    status: object
    out: str
    err: str


Type = Callable[..., Typed]


@pytest.fixture
def einsearch(server: Scripted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Type:
    """Types a command."""
    monkeypatch.setenv("EINSEARCH_URL", server.url)

    def run(*arguments: str) -> Typed:
        monkeypatch.setattr(sys, "argv", ["einsearch", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return Typed(end.value.code, *capsys.readouterr())

    return run


class TestBest:
    def test_shows_what_a_structure_is_worth_and_where_its_rate_does_not_transfer(
        self, server: Scripted, einsearch: Type
    ) -> None:
        worth = {"value": 0.84, "low": 0.71, "high": 0.99}
        items = [ranked(1, multiplier=worth, transfers=True), ranked(2, transfers=False), ranked(3)]
        server.says(json_answer(search()), json_answer(best(*items)))
        out = einsearch("best", "5f").out
        assert "0.84 [0.71, 0.99]" in out
        assert "the learning rate does not transfer to #2: a tuned one may do better." in out
        assert "fidelity of the proxy: unmeasured." in out

    def test_shows_what_steps_cost_where_that_was_measured(self, server: Scripted, einsearch: Type) -> None:
        measured = [ranked(1, latency=0.0125, peak_memory=3 * 2**20), ranked(2, latency=None, peak_memory=None)]
        server.says(json_answer(search()), json_answer(best(*measured)))
        out = einsearch("best", "5f").out
        assert all(text in out for text in ("latency", "12.50 ms", "peak memory", "3.0 MiB"))
        server.says(json_answer(search()), json_answer(best(ranked(1), ranked(2))))
        assert "latency" not in einsearch("best", "5f").out

    def test_shows_what_trials_change_of_their_proxy_where_any_does(self, server: Scripted, einsearch: Type) -> None:
        theta = {"alpha": 1.0, "beta": 0.0, "gamma": 0.0, "delta": 0.0, "epsilon": 1.0, "phi": 0.0, "rho": 0.25}
        thetas = {"attention": None, "feed_forward": theta}
        changed = ranked(1, variant={"num_experts": 8, "top_k": 1, "thetas": None})
        own = ranked(3, variant={"num_experts": None, "top_k": None, "thetas": thetas})
        server.says(json_answer(search()), json_answer(best(changed, ranked(2, variant=None), own)))
        out = einsearch("best", "5f").out
        assert "8 experts, 1 active" in out
        assert "feed-forward" in out
        assert "variant: what a trial changes of the model of the search's proxy." in out
        server.says(json_answer(search()), json_answer(best(ranked(1))))
        assert "variant" not in einsearch("best", "5f").out

    @pytest.mark.parametrize(("truthful", "verdict"), [(True, "truthful;"), (False, "NOT truthful;")])
    def test_says_how_far_the_order_can_be_trusted(
        self, server: Scripted, einsearch: Type, truthful: bool, verdict: str
    ) -> None:
        fidelity = {
            "study_id": "0123456789ab",
            "between_seeds": {"value": 0.97, "low": 0.9, "high": 1.0},
            "against_reference": {"value": 0.6, "low": 0.2, "high": 0.8},
            "truthful": truthful,
        }
        server.says(json_answer(search(fidelity=fidelity)), json_answer(best(ranked(1))))
        out = einsearch("best", "5f").out
        assert f"fidelity of the proxy: {verdict} Spearman between seeds 0.97 [0.90, 1.00], with the truth 0.60" in out
        assert "does not transfer" not in out

    def test_says_how_sure_the_first_place_is(self, server: Scripted, einsearch: Type) -> None:
        items = [ranked(1, better_than_next=0.8765), ranked(2)]
        for confidence, said in ((0.5, "of 0.50"), (0.999, "over 0.99"), (0.0, "under 0.01")):
            server.says(json_answer(search()), json_answer(best(*items, confidence=confidence)))
            out = einsearch("best", "5f").out
            assert f"#1 is the best with a probability {said}, and better than #2 with one of 0.88." in out
        server.says(json_answer(search()), json_answer(best(ranked(1), confidence=1.0)))
        assert "#1 is the best with a probability over 0.99.\n" in einsearch("best", "5f").out
        server.says(json_answer(search()), json_answer(best(ranked(1), ranked(2))))
        assert "#1 is" not in einsearch("best", "5f").out


class TestCompare:
    A: ClassVar = {"trial_id": "5f0c2ab91d3e-1", "num_trials": 3, "loss": 1.5}
    B: ClassVar = {"trial_id": "5f0c2ab91d3e-2", "num_trials": 1, "loss": 1.6}

    def test_says_which_is_better_and_by_how_much(self, server: Scripted, einsearch: Type) -> None:
        difference = {"value": -0.0645, "low": -0.1, "high": 0.02}
        known = {"probability": 0.93, "difference": difference, "noise_sd": 0.02}
        server.says(json_answer({"a": self.A, "b": self.B, **known, "scale": "log"}))
        typed = einsearch("compare", "5f", "5f0c2ab91d3e-1", "5f0c2ab91d3e-2")
        assert typed.out.splitlines() == [
            "5f0c2ab91d3e-1: loss 1.5000, the mean of 3",
            "5f0c2ab91d3e-2: loss 1.6000, the mean of 1",
            "5f0c2ab91d3e-1 is better than 5f0c2ab91d3e-2 with a probability of 0.93.",
            "The log of its loss differs by -0.0645 [-0.1000, +0.0200].",
        ]
        (asked,) = server.asked
        assert (asked.path, asked.parameters) == (
            "/v1/searches/5f/comparison",
            {"a": "5f0c2ab91d3e-1", "b": "5f0c2ab91d3e-2"},
        )

    def test_says_when_it_cannot_say(self, server: Scripted, einsearch: Type) -> None:
        unknown = dict.fromkeys(("probability", "difference", "noise_sd", "scale"))
        server.says(json_answer({"a": self.A, "b": self.B, **unknown}))
        assert "Nothing is known of the noise" in einsearch("compare", "5f", "5f-1", "5f-2").out


class TestWatch:
    def test_tells_of_time_where_no_number_of_trials_ends_a_search(self, server: Scripted, einsearch: Type) -> None:
        budget = {"max_trials": None, "max_seconds": 120}
        server.says(
            json_answer(search(budget=budget, progress={"max_trials": None, "seconds": 30.9})),
            json_answer(search(budget=budget, progress={"max_trials": None, "seconds": 31.5})),
            json_answer(
                search(
                    budget=budget,
                    state="COMPLETED",
                    reason="BUDGET_SECONDS",
                    progress={"max_trials": None, "seconds": 120.1, "finished": 5},
                )
            ),
        )
        lines = einsearch("watch", "5f").out.splitlines()
        assert len(lines) == 2, "time alone is no step"
        assert "1 in 0:30/2:00" in lines[0]
        assert "1:29 left" in lines[0]
        assert "5 in 2:00/2:00" in lines[1]
        assert "completed (budget_seconds)" in lines[1]

    def test_expects_the_limit_that_is_nearest(self, server: Scripted, einsearch: Type) -> None:
        ended = search(state="COMPLETED")
        budget = {"max_trials": 4, "max_seconds": 70}
        server.says(json_answer(search(budget=budget)), json_answer(ended))
        assert "0:40 left" in einsearch("watch", "5f").out
        server.says(json_answer(search(budget=budget | {"max_seconds": 7200})), json_answer(ended))
        assert "1/4 in 0:30/2:00:00 best loss 2.5000 1:30 left" in einsearch("watch", "5f").out

    def test_says_what_a_search_waits_for(self, server: Scripted, einsearch: Type) -> None:
        server.says(json_answer(search(waiting_for="a GPU")), json_answer(search(state="CANCELLED", reason="USER")))
        assert "a GPU" in einsearch("watch", "5f").out


class TestNames:
    def test_are_shown_as_they_are_whatever_they_mean_to_a_terminal(self, server: Scripted, einsearch: Type) -> None:
        name = "[/b] [red]x :smile:"
        server.says(page(search(name=name)))
        assert name in einsearch("searches").out
        server.says(json_answer(search(name=name, state="COMPLETED")))
        assert name in einsearch("watch", "5f").out
        server.says(json_answer(search(name=name)), json_answer(best()))
        assert name in einsearch("best", "5f").out

    def test_of_owners_are_shown_where_there_are_several(self, server: Scripted, einsearch: Type) -> None:
        server.says(page(search(owner="ada"), search(owner="ada")))
        assert "ada" not in einsearch("searches").out
        server.says(page(search(owner="ada"), search(owner="bob")))
        assert "bob" in einsearch("searches").out


class TestEvents:
    def test_are_a_line_each(self, server: Scripted, einsearch: Type) -> None:
        told = event(1, "trial.state", number=0, state="FAILED", reason="a traceback\nof two lines", loss=None)
        server.says(stream_of_events(told, event(2, "search.budget", budget={"max_trials": 3})), Answer(status=204))
        first, second = einsearch("events", "5f").out.splitlines()
        assert first.split()[0] == "1"
        assert first.endswith("trial.state     5f0c2ab91d3e-0    state=FAILED reason=a traceback of two lines")
        assert second.endswith("search.budget   -                 budget=max_trials:3")

    def test_are_json_where_that_is_asked_for(self, server: Scripted, einsearch: Type) -> None:
        server.says(stream_of_events(event(4)), Answer(status=204))
        assert '"number": 4' in einsearch("events", "5f", "--json", "--after", "3").out
        assert server.asked[0].headers["last-event-id"] == "3"


class TestExport:
    def test_takes_the_format_from_the_name_of_the_file(
        self, server: Scripted, einsearch: Type, tmp_path: Path
    ) -> None:
        server.says(Answer(body=b"{}\n", kind="application/jsonl"))
        assert einsearch("export", "5f", "-o", str(tmp_path / "all.jsonl")).status == 0
        assert (tmp_path / "all.jsonl").read_bytes() == b"{}\n"
        einsearch("export", "5f", "-o", str(tmp_path / "all.jsonl"), "--format", "csv")
        assert [asked.parameters for asked in server.asked] == [{"format": "jsonl"}, {"format": "csv"}]

    def test_that_breaks_off_leaves_the_file_that_was_there(
        self, server: Scripted, einsearch: Type, tmp_path: Path
    ) -> None:
        (tmp_path / "all.csv").write_text("of yesterday")
        server.says(Answer(body=b"id,num", kind="text/csv", breaks=True))
        done = einsearch("export", "5f", "-o", str(tmp_path / "all.csv"))
        assert done.status == 1
        assert "broke off after 6 bytes" in done.err
        assert [file.name for file in tmp_path.iterdir()] == ["all.csv"]
        assert (tmp_path / "all.csv").read_text() == "of yesterday"

    def test_of_a_file_that_cannot_be_written_costs_a_message(
        self, server: Scripted, einsearch: Type, tmp_path: Path
    ) -> None:
        server.says(Answer(body=b"id\n"))
        done = einsearch("export", "5f", "-o", str(tmp_path / "missing" / "all.csv"))
        assert done.status == 2
        assert "cannot write" in done.err


class TestExtend:
    def test_keeps_the_limits_that_are_not_given(self, server: Scripted, einsearch: Type) -> None:
        budget = {"max_trials": 4, "max_seconds": None, "max_train_flops": 1e12, "max_failures": 10}
        server.says(json_answer(search(budget=budget)), json_answer(search(budget=budget | {"max_trials": 9})))
        assert einsearch("extend", "5f", "--max-trials", "9").out == (
            "max_trials 9, max_train_flops 1e+12, max_failures 10\n"
        )
        assert server.asked[1].method == "PATCH"
        assert b'"max_trials":9' in server.asked[1].body
        assert b'"max_train_flops":1000000000000.0' in server.asked[1].body

    def test_wants_a_limit(self, server: Scripted, einsearch: Type) -> None:
        assert einsearch("extend", "5f").status == 2
        assert server.asked == []


class TestSteering:
    def test_pauses_with_checkpoints_where_that_is_asked_for(self, server: Scripted, einsearch: Type) -> None:
        server.says(json_answer(search(state="PAUSED")))
        assert einsearch("pause", "5f").out == "PAUSED\n"
        einsearch("pause", "5f", "--checkpoint")
        assert [asked.parameters["mode"] for asked in server.asked] == ["drain", "checkpoint"]

    def test_enqueues_a_structure_by_its_name(self, server: Scripted, einsearch: Type) -> None:
        server.says(json_answer({"id": "5f-7"}, 201))
        assert einsearch("enqueue", "5f", "monarch").out == "5f-7\n"
        assert b'"alpha":0.5' in server.asked[0].body

    def test_enqueues_it_with_other_numbers_of_experts(self, server: Scripted, einsearch: Type) -> None:
        server.says(json_answer({"id": "5f-7"}, 201))
        einsearch("enqueue", "5f", "monarch", "--num-experts", "8", "--top-k", "1")
        assert json.loads(server.asked[0].body)["variant"] == {"num_experts": 8, "top_k": 1}

    def test_enqueues_it_with_another_structure_for_attention(self, server: Scripted, einsearch: Type) -> None:
        server.says(json_answer({"id": "5f-7"}, 201))
        einsearch("enqueue", "5f", "monarch", "--attention", "dense")
        thetas = json.loads(server.asked[0].body)["variant"]["thetas"]
        assert (set(thetas), thetas["attention"]["phi"]) == ({"attention"}, 1.0)

    def test_excludes_for_a_reason(self, server: Scripted, einsearch: Type) -> None:
        assert einsearch("exclude", "5f-7").status == 2
        server.says(json_answer({"id": "5f-7"}))
        assert einsearch("exclude", "5f-7", "--reason", "a bad slot").status == 0
        assert server.asked[-1].body == b'{"reason":"a bad slot"}'


class TestWebhooks:
    def test_are_listed_with_what_went_wrong(self, server: Scripted, einsearch: Type) -> None:
        webhook = {"id": "0c", "url": "https://example.org/", "search_id": None, "kinds": ["search.state"]}
        failing = {
            "search_id": "5f",
            "delivered": 1,
            "failures": 2,
            "last_error": "status 500",
            "not_before": "2026-01-01T00:00:00Z",
        }
        server.says(page(webhook), json_answer(webhook | {"deliveries": [failing]}))
        shown = einsearch("webhooks", "list").out
        assert "0c  https://example.org/  search.state  all" in shown
        assert "search 5f: status 500" in shown

    def test_that_do_not_listen_end_a_test_with_a_status(self, server: Scripted, einsearch: Type) -> None:
        server.says(json_answer({"ok": False, "status": 500, "seconds": 0.1, "error": "answered 500"}))
        done = einsearch("webhooks", "test", "0c")
        assert (done.status, done.out) == (1, "answered 500\n")


class TestStudies:
    STUDY: ClassVar = {
        **{"id": "0c", "kind": "calibration", "name": "rates", "owner": "local", "state": "COMPLETED", "reason": None},
        **{"searches": {"warm-up of 50 steps": "5f"}, "spec": {}, "finished_at": None},
        "created_at": "2026-01-01T00:00:00Z",
        "finding": {
            **{"kind": "calibration", "base_lr": 0.01, "warmup_steps": 50, "loss": 2.0, "bracketed": False},
            "sweep": [
                {"base_lr": 0.005, "warmup_steps": 50, "losses": [2.5], "loss": 2.5},
                {"base_lr": 0.01, "warmup_steps": 50, "losses": [2.0], "loss": 2.0},
                {"base_lr": 0.02, "warmup_steps": 50, "losses": [None], "loss": None},
            ],
        },
    }

    def test_are_begun_in_the_place_of_their_kind(self, server: Scripted, einsearch: Type, tmp_path: Path) -> None:
        (tmp_path / "study.json").write_text('{"kind": "calibration", "name": "rates"}')
        server.says(json_answer(self.STUDY, 201))
        assert einsearch("studies", "submit", str(tmp_path / "study.json")).out == "calibration 0c\n"
        assert server.asked[0].path == "/v1/calibrations"
        (tmp_path / "study.json").write_text('{"kind": "guess"}')
        refused = einsearch("studies", "submit", str(tmp_path / "study.json"))
        assert refused.status == 2
        assert "guess" in refused.err

    def test_are_listed_by_kind(self, server: Scripted, einsearch: Type) -> None:
        server.says(page(self.STUDY))
        assert "rates" in einsearch("studies", "list", "calibration").out
        assert einsearch("studies", "list", "guess").status == 2

    def test_show_what_they_found(self, server: Scripted, einsearch: Type) -> None:
        server.says(json_answer(self.STUDY))
        shown = einsearch("studies", "show", "calibration", "0c").out
        for text in ("completed", "2.5000", "best", "diverged", "calibrate again around it"):
            assert text in shown
        assert json.loads(einsearch("studies", "show", "calibration", "0c", "--json").out) == self.STUDY

    def test_show_their_searches_until_they_have_found_it(self, server: Scripted, einsearch: Type) -> None:
        server.says(json_answer({**self.STUDY, "state": "RUNNING", "finding": None}))
        assert "warm-up of 50 steps: search 5f" in einsearch("studies", "show", "calibration", "0c").out


class TestRefusals:
    def test_for_want_of_a_key_say_where_to_put_one(self, server: Scripted, einsearch: Type) -> None:
        server.says(problem(401, "unauthorized", "this service needs an API key"))
        done = einsearch("searches")
        assert done.status == 1
        assert done.err == (
            "einsearch: this service needs an API key\nGive a key as --api-key or in EINSEARCH_API_KEY\n"
        )

    def test_of_an_address_that_is_none_say_what_one_looks_like(self, einsearch: Type) -> None:
        done = einsearch("searches", "--url", "localhost:8000")
        assert (done.status, done.err) == (
            2,
            "einsearch: url: expected a URL such as http://127.0.0.1:8000, got 'localhost:8000'\n",
        )

    def test_do_not_show_a_key_that_was_mistyped(self, einsearch: Type) -> None:
        done = einsearch("searches", "--api-key", "es_1 secret")
        assert done.status == 2
        assert "secret_" not in done.err
        assert "es_1" not in done.err
