"""``/metrics``: what an operator watches, in the text format of Prometheus.

What concerns the searches is read from the database at that moment, so that every process of the API says the same. Only
requests are counted in each process for itself.
"""

import time
from collections.abc import Iterable, Iterator
from itertools import accumulate

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.database import Database
from service.figures import Figures, read_figures
from service.models import LATENCY_BOUNDS, Latency

router = APIRouter(tags=["health"])

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The metrics of one process of the API."""

    def __init__(self, database: Database) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_DatabaseCollector(database))
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "einsearch_http_requests",
            "Requests answered by this process of the API.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "einsearch_http_request_seconds",
            "Seconds from a request to the start of its answer.",
            ["method", "route"],
            registry=self._registry,
        )

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request, by the template of its path: paths themselves are without number."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", None) or "none"
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        """All of them as they are now."""
        return generate_latest(self._registry)


class MeteredRequests:
    """Counts the requests that pass."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, until its answer starts: a stream of events goes on for hours."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, answered = time.perf_counter(), False

        def observe(status: int) -> None:
            nonlocal answered
            answered = True
            self._metrics.observe(scope, status, time.perf_counter() - started)

        async def metered(message: Message) -> None:
            if message["type"] == "http.response.start":
                observe(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, metered)
        finally:
            if not answered:
                observe(500)


@router.get("/metrics", response_class=PlainTextResponse)
def get_metrics(request: Request) -> PlainTextResponse:
    """Searches, trials, slots, runners, latencies and requests, for Prometheus."""
    metrics: Metrics = request.app.state.metrics
    return PlainTextResponse(metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class _DatabaseCollector(Collector):
    """Reads the figures when they are asked for; without a database there is only the news that it is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[Metric]:
        try:
            with self._database.read() as session:
                figures = read_figures(session)
        except SQLAlchemyError:
            figures = None
        yield _gauge(
            "database_up", "Whether the database answers, with the schema of this version.", figures is not None
        )
        if figures is not None:
            yield from _families(figures)


def _families(figures: Figures) -> Iterator[Metric]:
    yield _gauge_by_state("searches", "Searches.", figures.searches.items())
    yield _gauge_by_state("trials", "Trials.", figures.trials.items())
    yield _gauge("queue_depth", "Trials that wait, of searches that go on.", figures.queue_depth)
    yield _gauge("running_attempts", "Attempts that run.", figures.running_attempts)
    yield _gauge("slots", "Slots of all runners.", figures.slots)
    yield _gauge("slots_busy", "Slots that train.", figures.slots_busy)
    yield _gauge("runners", "Runners that are alive.", len(figures.runners))
    retries = "Attempts after which a trial had to run again."
    yield CounterMetricFamily("einsearch_retries", retries, value=figures.retries)
    asked = ((runner.id, runner.stats.ask) for runner in figures.runners)
    yield _histogram("ask_seconds", "Seconds to propose a trial.", asked)
    recorded = ((runner.id, runner.stats.record) for runner in figures.runners)
    yield _histogram("record_seconds", "Seconds to record what slots report.", recorded)


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"einsearch_{name}", documentation, value=value)


def _gauge_by_state(name: str, documentation: str, counts: Iterable[tuple[str, int]]) -> Metric:
    family = GaugeMetricFamily(f"einsearch_{name}", documentation, labels=["state"])
    for state, count in counts:
        family.add_metric([state], count)
    return family


def _histogram(name: str, documentation: str, latencies: Iterable[tuple[str, Latency]]) -> Metric:
    """A series for each runner, because only that one begins at zero and never falls."""
    family = HistogramMetricFamily(f"einsearch_{name}", documentation, labels=["runner"])
    bounds = [*map(str, LATENCY_BOUNDS), "+Inf"]
    for runner, latency in latencies:
        buckets = list(zip(bounds, accumulate(latency.counts), strict=True))
        family.add_metric([runner], buckets, sum_value=latency.seconds)
    return family
