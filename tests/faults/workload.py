"""What users do during a soak: submit short searches, a few at a time, and steer them."""

from collections.abc import Callable, Mapping
from typing import Any

from einlayers.theta import NAMED
from einsearch.answers import FINAL_STATES, Search
from einsearch.client import Client, Patience, Refused, Unreachable
from tests.faults.schedule import make_search

OPEN = 4
"""Searches that are under way at any time: more than two slots and two runners can carry out at once."""

STRUCTURES = ("low-rank", "kronecker", "tensor-train", "monarch", "btt", "dense")


class Workload:
    """The searches of a soak so far, and the client that made them; patient, because the service is killed all the time."""

    def __init__(self, url: str, seed: int) -> None:
        self.client = Client(url, patience=Patience(once_met=300, at_first=300))
        self.ids: dict[str, str] = {}
        self.cancelled: set[str] = set()
        self.actions: dict[str, int] = {}
        self._seed = seed
        self._paused: set[str] = set()
        self._ended: set[str] = set()

    def close(self) -> None:
        """Close the client."""
        self.client.close()

    def id_of(self, name: str) -> str:
        """The id of a search by its name."""
        return self.ids[name]

    def some_id(self, pick: int) -> str:
        """The id of any search."""
        return list(self.ids.values())[pick % len(self.ids)]

    def next_search(self) -> tuple[str, dict[str, Any]]:
        """The search that comes next, and its name, which is its ``Idempotency-Key`` too."""
        body = make_search(self._seed, len(self.ids))
        return body["name"], body

    def submit(self, key: str, body: Mapping[str, Any]) -> None:
        """Submit it."""
        self.ids[key] = self.client.submit(body, idempotency_key=key)["id"]

    def top_up(self) -> None:
        """Go on with what is paused, after what is to be paused has had a fault's time; submit until enough is under way."""
        for search_id in list(self._paused):
            self._try("resume", lambda: self.client.resume(search_id))  # noqa: B023  # called at once
            self._paused.discard(search_id)
        while len(self._under_way()) < OPEN:
            self.submit(*self.next_search())

    def act(self, action: str, pick: int) -> None:
        """Do something to a search that is under way; what is refused because it has just ended, is refused."""
        found = self._under_way()
        if found:
            search = found[pick % len(found)]
            self._try(action, lambda: _ACTIONS[action](self, search, pick))

    def finish(self) -> bool:
        """Go on with whatever is paused; whether all has ended."""
        for search in self._under_way():
            if search["state"] == "PAUSED":
                self._try("resume", lambda: self.client.resume(search["id"]))  # noqa: B023  # called at once
        return not self._under_way()

    def enqueue(self, search: Search, pick: int) -> None:
        """Add a structure of the user's own."""
        self.client.enqueue(search["id"], NAMED[STRUCTURES[pick % len(STRUCTURES)]])

    def drain(self, search: Search, pick: int) -> None:
        """Pause until the next step, and let trials end."""
        self._paused.add(search["id"])
        self.client.pause(search["id"])

    def checkpoint(self, search: Search, pick: int) -> None:
        """Pause until the next step, and have trials write checkpoints."""
        self._paused.add(search["id"])
        self.client.pause(search["id"], "checkpoint")

    def extend(self, search: Search, pick: int) -> None:
        """Pay for one trial more, in whatever the budget is."""
        budget = search["spec"]["budget"]
        steps = {"max_trials": 1, "max_train_flops": search["spec"]["proxy"]["train_flops"]}
        more = {name: budget[name] + step for name, step in steps.items() if budget.get(name) is not None}
        self.client.extend(search["id"], more)

    def cancel(self, search: Search, pick: int) -> None:
        """End it; also where no answer tells that it was heard."""
        self.cancelled.add(search["id"])
        self.client.cancel(search["id"])

    def _under_way(self) -> list[Search]:
        found = [self.client.search(search_id) for search_id in self.ids.values() if search_id not in self._ended]
        self._ended |= {search["id"] for search in found if search["state"] in FINAL_STATES}
        return [search for search in found if search["state"] not in FINAL_STATES]

    def _try(self, action: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Refused as refused:
            if refused.problem["status"] != 409:
                raise
            action = f"{action}, refused"
        except Unreachable:
            action = f"{action}, unanswered"
        self.actions[action] = self.actions.get(action, 0) + 1


_ACTIONS: Mapping[str, Callable[[Workload, Search, int], None]] = {
    "enqueue a structure": Workload.enqueue,
    "pause, and let trials end": Workload.drain,
    "pause, and write checkpoints": Workload.checkpoint,
    "extend the budget": Workload.extend,
    "cancel": Workload.cancel,
}
