"""The faults of a soak: each does its harm, and says how to tell that the service is over it."""

import re
import time
from collections.abc import Callable, Mapping
from functools import partial

from sqlalchemy import func, select

from search.states import AttemptState, SearchState, TrialState
from service.models import Attempt, Runner, Search, Trial
from tests.faults.site import LEASE_SECONDS, Site, freeze, kill, thaw, wait_until
from tests.faults.vanishing import half_a_body, half_an_answer, unread_answer
from tests.faults.workload import Workload

Over = Callable[[], object]
"""Whether the service is over a fault."""


def _kill_a_slot(site: Site, work: Workload, pick: int) -> Over:
    """One that trains; over it when its trial has ended, or may not run for now."""
    titles: list[tuple[int, str, int]] = []

    def look() -> bool:
        for slot in site.slots():
            if found := re.match(r"ray::(soak \d+) trial (\d+) ", slot.command):
                titles.append((slot.pid, found[1], int(found[2])))
        return bool(titles)

    wait_until(look, "a slot that trains")
    pid, name, number = titles[pick % len(titles)]
    kill(pid)
    trial_id = f"{work.id_of(name)}-{number}"
    return lambda: _rests(site, trial_id)


def _kill_a_runner(site: Site, work: Workload, pick: int) -> Over:
    """Over it when nothing is held by it any more."""
    victim = _some_runner(site, pick)
    kill(victim.pid)
    return lambda: not _holds(site, victim.id)


def _freeze_a_runner(site: Site, work: Workload, pick: int) -> Over:
    """Until others have taken over what it held; over it when it is alive again, or has found out and ended itself."""
    victim = _some_runner(site, pick)
    freeze(site.database, victim.pid)
    try:
        wait_until(
            lambda: not _holds(site, victim.id) and victim.id not in {runner.id for runner in site.runners()},
            f"others to take over from runner {victim.id}",
        )
    finally:
        thaw(victim.pid)
    return lambda: (
        _is_alive(site, victim) or not any(p.pid == victim.pid for p in site.service.children("service.runner"))
    )


def _kill_the_api(site: Site, work: Workload, pick: int) -> Over:
    victim = site.service.child("-m api")
    kill(victim.pid)
    return lambda: site.service.child("-m api").pid != victim.pid and work.client.is_ready()


def _leave_within_a_request(site: Site, work: Workload, pick: int) -> Over:
    half_a_body(site.service.url)
    return work.client.is_ready


def _leave_before_the_answer(site: Site, work: Workload, pick: int) -> Over:
    """The client that asks again, with the same key, finds the search that it has made."""
    key, body = work.next_search()
    unread_answer(site.service.url, body, key)
    work.submit(key, body)
    return work.client.is_ready


def _leave_while_following(site: Site, work: Workload, pick: int) -> Over:
    half_an_answer(site.service.url, f"/v1/searches/{work.some_id(pick)}/events")
    return work.client.is_ready


def _leave_within_an_export(site: Site, work: Workload, pick: int) -> Over:
    half_an_answer(site.service.url, f"/v1/searches/{work.some_id(pick)}/export?format=csv")
    return work.client.is_ready


def _kill_of_ray(part: str, site: Site, work: Workload, pick: int) -> Over:
    """Over it when there is another cluster, and a trial has ended on it."""
    head = site.service.child("bin/ray start").pid
    kill(site.service.child(part).pid)
    wait_until(lambda: site.service.child("bin/ray start").pid != head, "another head of Ray")
    before = _num_ended(site)
    return lambda: _num_ended(site) > before


def _kill_postgres(site: Site, work: Workload, pick: int) -> Over:
    """For no time, or longer than a lease; over it when a trial has ended."""
    assert site.postgres is not None
    before = _num_ended(site)
    site.postgres.kill()
    time.sleep(2 * LEASE_SECONDS * (pick % 2))
    site.postgres.start()
    return lambda: _num_ended(site) > before


FAULTS: Mapping[str, Callable[[Site, Workload, int], Over]] = {
    "kill a slot": _kill_a_slot,
    "kill a runner": _kill_a_runner,
    "freeze a runner beyond its lease": _freeze_a_runner,
    "kill the API": _kill_the_api,
    "client gone within its request": _leave_within_a_request,
    "client gone before the answer": _leave_before_the_answer,
    "client gone while it follows": _leave_while_following,
    "client gone within an export": _leave_within_an_export,
    "kill Ray's GCS": partial(_kill_of_ray, "gcs_server"),
    "kill the raylet": partial(_kill_of_ray, "raylet/raylet"),
    "kill Ray's head": partial(_kill_of_ray, "bin/ray start"),
    "kill Postgres": _kill_postgres,
}


def num_lost_attempts(site: Site) -> int:
    """How many attempts were lost so far."""
    return _count(site, AttemptState.LOST)


def _num_ended(site: Site) -> int:
    return _count(site, AttemptState.ENDED)


def _count(site: Site, state: AttemptState) -> int:
    with site.database.read() as session:
        return session.scalar(select(func.count()).select_from(Attempt).where(Attempt.state == state)) or 0


def _some_runner(site: Site, pick: int) -> Runner:
    """A living runner, rather one that holds a search."""
    wait_until(site.runners, "a runner that is alive")
    alive = sorted(site.runners(), key=lambda runner: runner.started_at)
    holding = [runner for runner in alive if _holds(site, runner.id)]
    return (holding or alive)[pick % len(holding or alive)]


def _holds(site: Site, runner_id: str) -> bool:
    with site.database.read() as session:
        return session.scalar(select(Search.id).where(Search.runner_id == runner_id).limit(1)) is not None


def _is_alive(site: Site, runner: Runner) -> bool:
    return runner.id in {found.id for found in site.runners()}


def _rests(site: Site, trial_id: str) -> bool:
    """Whether a trial has ended, or waits for its search to be resumed."""
    query = select(Trial.state, Search.state).join(Search, Search.id == Trial.search_id).where(Trial.id == trial_id)
    with site.database.read() as session:
        trial, search = session.execute(query).one()
    return trial.is_final or (trial is TrialState.PROPOSED and search is SearchState.PAUSED)
