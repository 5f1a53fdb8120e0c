from collections.abc import Iterator
from dataclasses import dataclass
from threading import Thread
from typing import Annotated

import pytest
from fastapi import Body, FastAPI
from starlette.testclient import TestClient

from api.errors import add_handlers
from api.limits import MAX_BODY_BYTES, BodyLimit, RateLimit
from service.errors import TooMany
from tests.api.local import LocalClient
from tests.api.problems import problem_of


@dataclass(slots=True)
class Clock:
    """A clock that stands until it is told."""

    time: float = 12345.678

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limit(clock: Clock) -> RateLimit:
    return RateLimit(clock)


def taken(limit: RateLimit, caller: str, per_minute: int) -> int:
    """How many requests of a caller pass until one does not."""
    for number in range(10_000):
        try:
            limit.take(caller, per_minute)
        except TooMany:
            return number
    raise AssertionError("nothing is limited")


def retry_after(limit: RateLimit, caller: str, per_minute: int) -> int:
    with pytest.raises(TooMany, match=f"at most {per_minute} requests a minute") as refusal:
        limit.take(caller, per_minute)
    return refusal.value.retry_after


class TestRateLimit:
    @pytest.mark.parametrize("per_minute", [1, 2, 7, 60, 6000])
    def test_lets_as_many_pass_at_once_as_in_a_minute(self, limit: RateLimit, per_minute: int) -> None:
        assert taken(limit, "ann", per_minute) == per_minute

    @pytest.mark.parametrize(("per_minute", "seconds"), [(1, 60), (2, 30), (7, 9), (60, 1), (6000, 1)])
    def test_says_after_how_many_seconds_the_next_one_passes(
        self, limit: RateLimit, clock: Clock, per_minute: int, seconds: int
    ) -> None:
        taken(limit, "ann", per_minute)
        assert retry_after(limit, "ann", per_minute) == seconds
        clock.time += seconds
        limit.take("ann", per_minute)

    @pytest.mark.parametrize("per_minute", [1, 3, 7, 19, 97, 6000])
    def test_gives_back_evenly_and_keeps_to_the_promise_in_spite_of_rounding(
        self, limit: RateLimit, clock: Clock, per_minute: int
    ) -> None:
        taken(limit, "ann", per_minute)
        for _ in range(50):
            clock.time += 60 / per_minute
            assert taken(limit, "ann", per_minute) == 1

    def test_of_refusals_counts_none(self, limit: RateLimit, clock: Clock) -> None:
        taken(limit, "ann", 60)
        for _ in range(100):
            retry_after(limit, "ann", 60)
        clock.time += 30
        assert taken(limit, "ann", 60) == 30

    def test_keeps_no_more_than_a_minute_holds(self, limit: RateLimit, clock: Clock) -> None:
        limit.take("ann", 60)
        clock.time += 1e6
        assert taken(limit, "ann", 60) == 60

    def test_has_a_bucket_for_each_caller(self, limit: RateLimit) -> None:
        assert taken(limit, "ann", 5) == 5
        assert taken(limit, "bob", 7) == 7

    def test_goes_by_the_number_that_is_told_last(self, limit: RateLimit, clock: Clock) -> None:
        limit.take("ann", 60)
        assert taken(limit, "ann", 5) == 5
        clock.time += 60
        assert taken(limit, "ann", 10) == 5
        clock.time += 60
        assert taken(limit, "ann", 10) == 10

    def test_forgets_callers_that_have_not_asked_for_a_minute(self, limit: RateLimit, clock: Clock) -> None:
        for number in range(50_000):
            limit.take(f"host {number}", 60)
            clock.time += 0.1
        assert len(limit) < 2000

    def test_remembers_who_has_asked_too_often_while_many_others_come(self, limit: RateLimit, clock: Clock) -> None:
        taken(limit, "ann", 60)
        for number in range(5000):
            limit.take(f"host {number}", 60)
        assert retry_after(limit, "ann", 60) == 1

    def test_counts_right_in_many_threads(self, limit: RateLimit) -> None:
        passed: list[int] = []
        threads = [Thread(target=lambda: passed.append(taken(limit, "ann", 1000))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(passed) == 1000


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = FastAPI()
    app.add_middleware(BodyLimit)
    add_handlers(app)

    @app.post("/size")
    def size(body: Annotated[list[str], Body()]) -> int:
        return len(body[0])

    with LocalClient(app) as opened:
        yield opened


class TestBodyLimit:
    def test_lets_the_largest_pass(self, client: TestClient) -> None:
        text = "x" * (MAX_BODY_BYTES - 4)
        assert client.post("/size", content=f'["{text}"]', headers={"Content-Type": "application/json"}).json() == len(
            text
        )

    def test_refuses_a_byte_more(self, client: TestClient) -> None:
        text = "x" * (MAX_BODY_BYTES - 3)
        answer = client.post("/size", content=f'["{text}"]', headers={"Content-Type": "application/json"})
        assert "at most 1,000,000 bytes" in problem_of(answer, 413, "content_too_large").detail
