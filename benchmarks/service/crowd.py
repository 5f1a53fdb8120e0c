"""Very many clients at once, for minutes: no request may fail, no event be missed, and the API's memory must stay flat.

Each client submits a search, follows its events to the end and meanwhile looks at everything; then it submits the next
one. A runner whose trials take no time carries them out.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.service.rows import fill
from benchmarks.service.server import Served, served
from service.database import Database

FLAT = 1.05
"""How much more memory the API may hold in the last fifth of the time than in the middle one. Until then its pools and
caches fill: SQLite alone keeps up to 2 MiB of pages for each of up to 15 connections."""

_NUM_OLD = 10_000
"""Trials that are there before: caches of the database fill at once, and not for as long as it grows."""

_BODY = {
    "name": "crowd",
    "proxy": {
        "kind": "char_lm",
        "dense_width": 8,
        "num_heads": 1,
        "depth": 1,
        "context": 16,
        "train_flops": 1e6,
        "base_lr": 5e-3,
    },
    "space": {"subspace": "full"},
    "sampler": {"kind": "random"},
    "budget": {"max_trials": 6},
    "concurrency": 4,
}


@dataclass(frozen=True, slots=True)
class Tally:
    """What the clients did: milliseconds of every request by its kind, streams by their number of events, failures."""

    deadline: float
    taken: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    streamed: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether it is time to begin nothing more."""
        return time.monotonic() > self.deadline


def measure(kind: str, url: str, folder: Path, *, num_clients: int, minutes: float) -> None:
    """Let the crowd loose on an API and print what became of it."""
    print(
        f"\n{kind}: {num_clients} clients for {minutes:g} minutes; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    with closing(Database(url)) as database:
        fill(database, _NUM_OLD)
    with served(url, folder) as api, _runner(url, folder):
        tally = Tally(deadline=time.monotonic() + 60 * minutes)
        memory = asyncio.run(_run(api, num_clients, tally))
    _print(tally, minutes)
    _print_memory(memory)


@contextmanager
def _runner(url: str, folder: Path) -> Iterator[None]:
    with (folder / "runner.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.service.instant", url],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError(f"the runner has ended; it said:\n{(folder / 'runner.log').read_text()}")
    finally:
        process.terminate()
        process.wait()


async def _run(api: Served, num_clients: int, tally: Tally) -> list[float]:
    """The memory of the API, in MiB, every second."""
    # Uvicorn closes connections that were idle for 5 s; a client that keeps them as long may send into one that closes.
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2)
    async with httpx2.AsyncClient(base_url=api.url, timeout=60, limits=limits) as client:
        clients = asyncio.gather(*(_Client(client, tally, number).live() for number in range(num_clients)))
        memory = []
        while not clients.done():
            memory.append(api.resident_mib)
            await asyncio.sleep(1)
        await clients
        return memory


@dataclass(frozen=True, slots=True)
class _Client:
    http: httpx2.AsyncClient
    tally: Tally
    number: int

    async def live(self) -> None:
        """Submit one search after the other, and see each through."""
        for turn in count():
            if self.tally.is_over:
                return
            key = {"Idempotency-Key": f"{self.number}-{turn}-{time.time_ns()}"}
            search = await self._ask("submit", "POST", "/v1/searches", json=_BODY, headers=key)
            if search is not None:
                stream = asyncio.create_task(self._guarded("stream", self._follow(search["id"])))
                await self._look(search["id"], stream, cancel=turn % 5 == 4)
                await stream

    async def _look(self, search_id: str, stream: "asyncio.Task[None]", *, cancel: bool) -> None:
        """Ask for this and that until the stream has ended."""
        search = f"/v1/searches/{search_id}"
        if cancel:
            await self._ask("cancel", "POST", f"{search}:cancel", refusals=(409,))
        while not stream.done() and not self.tally.is_over:
            page = await self._ask("list searches", "GET", "/v1/searches?page_size=50")
            if page is not None and page["next_page_token"] is not None:
                token = {"page_size": 50, "page_token": page["next_page_token"]}
                await self._ask("list searches, page 2", "GET", "/v1/searches", params=token)
            await self._ask("search", "GET", search)
            await self._ask("list trials", "GET", f"{search}/trials?order_by=loss")
            await self._ask("best", "GET", f"{search}/best")
            await self._ask("pareto", "GET", f"{search}/pareto?metrics=loss,macs,psi")
            await self._ask("structures", "GET", "/v1/structures?omega_max=0.5&page_size=20")

    async def _follow(self, search_id: str) -> None:
        """Read all events of a search; they come in order, without gaps, and the last is that of its end."""
        numbers = [number async for number in self._events(f"/v1/searches/{search_id}/events")]
        search = (await self.http.get(f"/v1/searches/{search_id}")).raise_for_status().json()
        if numbers != list(range(1, search["last_event"] + 1)) or search["finished_at"] is None:
            raise RuntimeError(f"expected events 1 to {search['last_event']} of {search['state']}, got {numbers}")
        self.tally.streamed.append(len(numbers))

    async def _events(self, path: str) -> AsyncIterator[int]:
        async with self.http.stream("GET", path) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("id:"):
                    yield int(line.removeprefix("id:"))

    async def _ask(self, what: str, method: str, path: str, *, refusals: Sequence[int] = (), **request: Any) -> Any:
        """The JSON of an answer; None where there was none, or it was a refusal, or a failure, which is noted."""

        async def ask() -> Any:
            begin = time.perf_counter()
            response = await self.http.request(method, path, **request)
            self.tally.taken[what].append(1e3 * (time.perf_counter() - begin))
            if response.status_code in refusals:
                return None
            if response.is_error:
                raise RuntimeError(f"{response.status_code} {response.text[:200]}")
            return response.json()

        return await self._guarded(what, ask())

    async def _guarded(self, what: str, asked: Awaitable[Any]) -> Any:
        try:
            return await asked
        except (httpx2.HTTPError, RuntimeError) as error:
            self.tally.failures.append(f"{what}: {type(error).__name__} {error}")
            return None


def _print(tally: Tally, minutes: float) -> None:
    print(f"{'request':24} {'number':>7} {'median ms':>10} {'p99 ms':>8}")
    for what, taken in tally.taken.items():
        p99 = statistics.quantiles(taken, n=100)[-1] if len(taken) > 1 else taken[0]
        print(f"{what:24} {len(taken):7} {statistics.median(taken):10.1f} {p99:8.1f}")
    num_requests = sum(map(len, tally.taken.values())) + len(tally.streamed)
    print(f"{len(tally.streamed)} streams with {sum(tally.streamed)} events, each complete and in order;", end=" ")
    print(f"{num_requests} requests, {num_requests / minutes / 60:.0f} a second")
    print(f"failures: {len(tally.failures)}  {'MISSED: the goal is none' if tally.failures else 'ok'}")
    for failure in tally.failures[:10]:
        print(f"  {failure}")


def _print_memory(memory: Sequence[float]) -> None:
    size = max(1, len(memory) // 5)
    fifths = [statistics.fmean(memory[place * size : (place + 1) * size]) for place in range(min(5, len(memory)))]
    growth = fifths[-1] / fifths[len(fifths) // 2]
    verdict = "ok" if growth <= FLAT else f"MISSED: the goal is at most {FLAT:g} times"
    print(f"memory of the API, MiB, by fifths of the time: {', '.join(f'{mean:.0f}' for mean in fifths)};", end=" ")
    print(f"the last is {growth:.3f} times the middle one  {verdict}")
