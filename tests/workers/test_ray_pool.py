"""The pool on a real Ray of this process: two CPUs, and one GPU that exists on paper."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from search.spec import Resources
from search.trial import OutcomeKind, Report
from tests.contracts.pool import WHOLE, Driver, PoolContract, assignment_of
from tests.waiting import wait_for
from tests.workers.actors import actor, pid, slots, view
from tests.workers.slot_kinds import DeafSlot, DoomedSlot, FullSlot, ImpatientSlot
from tests.workers.specs import ENDLESS, micro_trial
from workers.evaluate import evaluate
from workers.pool import Lost, Pool, Progress
from workers.ray_pool import RayPool
from workers.slot import Slot
from workers.workspace import Workspace

HALF = Resources(cpus=1)
HALF_A_GPU = Resources(cpus=0.25, gpus=0.5)

ME, HEIR = "aaaaaa000001", "bbbbbb000002"

MakePool = Callable[..., RayPool]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster that ends with these tests."""
    # Not below pytest's own folders: Ray makes sockets there, whose paths must be short.
    folder = tempfile.mkdtemp(prefix="ray-")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's workers are nice by default: on a busy machine they would get next to nothing.
        environment.setenv("RAY_worker_niceness", "0")
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=1,
            object_store_memory=100_000_000,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def namespace(cluster: str) -> Iterator[str]:
    """A namespace of its own for each test, whose slots end with it."""
    name = f"test-{uuid.uuid4().hex}"
    yield name
    for slot in slots(name):
        ray.kill(actor(name, slot))


@pytest.fixture
def make_pool(cluster: str, namespace: str) -> MakePool:
    def make(workspace: Workspace, owner: str = ME, **options: Any) -> RayPool:
        return RayPool(workspace, address=cluster, owner=owner, namespace=namespace, **options)

    return make


@pytest.fixture
def pool(make_pool: MakePool, workspace: Workspace) -> RayPool:
    return make_pool(workspace)


@pytest.fixture
def driver(pool: RayPool) -> Driver:
    return Driver(pool)


@pytest.fixture
def successor(make_pool: MakePool, workspace: Workspace) -> Callable[[], Driver]:
    """Makes the pool of the next runner."""
    return lambda: Driver(make_pool(workspace, HEIR))


class TestRayPool(PoolContract):
    @pytest.fixture
    def make_pool(self, cluster: str, namespace: str) -> Callable[[Workspace], Pool]:
        return lambda workspace: RayPool(workspace, address=cluster, owner=ME, namespace=namespace)


class TestRunningTrial:
    def test_tells_each_point_once_and_ends_at_once_when_stopped(self, driver: Driver) -> None:
        slot = driver.start("a", micro_trial(train_flops=1e10))

        def told() -> list[Report]:
            driver.wait()
            return [event.report for event in driver.events if isinstance(event, Progress)]

        reports = wait_for(told, until=lambda reports: len(reports) >= 3, what="progress")
        driver.pool.stop("a")
        outcome = driver.outcome("a")
        assert outcome.kind is OutcomeKind.CANCELLED
        positions = [outcome.curve.index(report) for report in reports]
        assert positions == sorted(set(positions))
        assert driver.reserve() == slot


class TestCapacity:
    def test_allows_as_many_slots_as_fit(self, driver: Driver, namespace: str) -> None:
        assert not driver.pool.reserve(HALF, wanted=5)
        for key in ("a", "b"):
            start_endless(driver, namespace, key, HALF)
        assert not driver.pool.reserve(HALF, wanted=5)
        assert slots(namespace) == {"slot-aaaaaa-0", "slot-aaaaaa-1"}
        assert set(driver.pool.assignments().values()) == {"slot-aaaaaa-0", "slot-aaaaaa-1"}

    def test_allows_no_more_slots_than_are_wanted(self, driver: Driver, namespace: str) -> None:
        for _ in range(3):
            driver.pool.reserve(HALF, wanted=1)
        assert driver.reserve(HALF) == "slot-aaaaaa-0"
        assert slots(namespace) == {"slot-aaaaaa-0"}

    def test_shares_a_gpu_among_as_many_as_it_holds(self, driver: Driver, namespace: str) -> None:
        for key in ("a", "b"):
            start_endless(driver, namespace, key, HALF_A_GPU)
        # Both run now, and there is CPU left for a third one. Ray's own account of what is free lags behind a little.
        wait_for(
            ray.available_resources,
            until=lambda free: free["CPU"] == 1.5 and "GPU" not in free,
            what="Ray to have given half a CPU and the whole GPU away",
        )
        assert not driver.pool.reserve(HALF_A_GPU, wanted=1)
        assert driver.pool.missing(HALF_A_GPU) is None
        assert len(slots(namespace)) == 2
        driver.pool.stop("a")
        assert driver.outcome("a").kind is OutcomeKind.CANCELLED
        assert set(driver.pool.reserve(HALF_A_GPU, wanted=1)) < slots(namespace)
        assert set(driver.pool.assignments()) == {"b"}

    def test_is_taken_back_from_idle_slots_of_another_shape(
        self, pool: RayPool, driver: Driver, namespace: str
    ) -> None:
        for resources, num_slots in ((HALF, 2), (WHOLE, 1)):
            driver.reserve_some(num_slots, resources)
            driver.reserve(resources)
            wait_for(lambda: slots(namespace) == set(pool.slots()), what="the end of the slots of the other shape")
            assert pool.num_slots == num_slots

    def test_is_told_by_how_many_more_slots_would_fit(self, pool: RayPool, driver: Driver) -> None:
        wait_for(lambda: pool.room(HALF), until=lambda room: room == 2, what="both CPUs to be free")
        assert (pool.room(WHOLE), pool.room(HALF_A_GPU), pool.room(Resources(cpus=9))) == (1, 2, 0)
        driver.reserve(HALF)
        # For some seconds the pool counts the new slot twice, itself and in Ray's account, rather than not at all.
        wait_for(lambda: pool.room(HALF), until=lambda room: room == 1, what="room for one slot more")
        assert pool.room(WHOLE) == 0

    def test_is_not_taken_from_slots_that_are_about_to_serve(self, driver: Driver, namespace: str) -> None:
        driver.reserve_some(2, HALF)
        assert not driver.pool.reserve(WHOLE, wanted=1)
        assert slots(namespace) == {"slot-aaaaaa-0", "slot-aaaaaa-1"}

    def test_is_not_taken_from_busy_slots_nor_from_idle_ones_where_that_does_not_help(
        self, driver: Driver, namespace: str
    ) -> None:
        driver.pool.reserve(HALF, wanted=2)
        busy = start_endless(driver, namespace, "a", HALF)
        idle = driver.reserve(HALF)
        assert idle != busy
        assert not driver.pool.reserve(WHOLE, wanted=1)
        assert driver.pool.reserve(HALF, wanted=1) == [idle]
        assert slots(namespace) == {busy, idle}
        driver.pool.stop("a")
        assert driver.outcome("a").kind is OutcomeKind.CANCELLED

    @pytest.mark.parametrize(
        ("resources", "reason"),
        [
            (Resources(cpus=64), "a trial asks for 64 CPUs and 0 GPUs; the cluster has 2 CPUs, 1 GPUs"),
            (Resources(cpus=0.5, gpus=2), "a trial asks for 0.5 CPUs and 2 GPUs; the cluster has 2 CPUs, 1 GPUs"),
        ],
    )
    def test_that_is_missing_is_explained_and_not_waited_for(
        self, driver: Driver, namespace: str, resources: Resources, reason: str
    ) -> None:
        assert driver.pool.missing(resources) == reason
        assert not driver.pool.reserve(resources, wanted=1)
        assert slots(namespace) == set()

    def test_is_enough_for_all_that_fits(self, driver: Driver) -> None:
        for resources in (WHOLE, HALF, HALF_A_GPU, Resources(cpus=2, gpus=1), Resources(cpus=0, gpus=1)):
            assert driver.pool.missing(resources) is None


class TestLoss:
    def test_of_a_process_loses_its_trial_once_and_no_other(self, driver: Driver, namespace: str) -> None:
        driver.pool.reserve(HALF, wanted=2)
        slot = start_endless(driver, namespace, "a", HALF)
        start_endless(driver, namespace, "b", HALF)
        os.kill(pid(namespace, slot), signal.SIGKILL)
        end = driver.end("a")
        assert isinstance(end, Lost)
        assert end.reason.startswith("Actor")
        assert "\n" not in end.reason
        assert set(driver.pool.assignments()) == {"b"}
        driver.pool.stop("b")
        assert driver.outcome("b").kind is OutcomeKind.CANCELLED
        assert len(driver.ends("a")) == 1

    def test_of_a_process_makes_room_for_a_new_one(self, driver: Driver, namespace: str) -> None:
        slot = start_endless(driver, namespace, "a")
        os.kill(pid(namespace, slot), signal.SIGKILL)
        assert isinstance(driver.end("a"), Lost)
        assert driver.start("b", micro_trial()) != slot
        assert driver.outcome("b").kind is OutcomeKind.COMPLETED

    def test_of_a_process_continues_from_its_last_checkpoint(
        self, make_pool: MakePool, workspace: Workspace, namespace: str, tmp_path: Path
    ) -> None:
        spec = micro_trial(train_flops=1e9)
        file = tmp_path / "checkpoints" / "5f0c2ab91d3e-0-1.pt"
        driver = Driver(make_pool(replace(workspace, checkpoints_dir=file.parent, checkpoint_every=0.05)))
        slot = driver.start("5f0c2ab91d3e-0-1", spec)
        process = pid(namespace, slot)
        wait_for(file.exists, what="a checkpoint")
        os.kill(process, signal.SIGKILL)
        assert isinstance(driver.end("5f0c2ab91d3e-0-1"), Lost)
        driver.start("5f0c2ab91d3e-0-2", spec)
        outcome, expected = driver.outcome("5f0c2ab91d3e-0-2"), evaluate(spec, workspace)
        assert outcome.resumed_step > 0
        assert (outcome.loss, outcome.curve) == (expected.loss, expected.curve)
        assert list(file.parent.iterdir()) == []

    def test_of_an_idle_process_costs_one_attempt_at_most(self, driver: Driver, namespace: str) -> None:
        os.kill(pid(namespace, driver.reserve()), signal.SIGKILL)
        driver.start("a", micro_trial())
        driver.end("a")
        driver.start("b", micro_trial())
        assert driver.outcome("b").kind is OutcomeKind.COMPLETED

    def test_of_a_slot_for_good_makes_room_for_a_new_one(self, driver: Driver, namespace: str) -> None:
        slot = start_endless(driver, namespace, "a")
        ray.kill(actor(namespace, slot), no_restart=True)
        assert isinstance(driver.end("a"), Lost)
        driver.start("b", micro_trial())
        assert driver.outcome("b").kind is OutcomeKind.COMPLETED


class TestAdoption:
    def test_takes_over_what_a_runner_that_is_gone_has_started(
        self, cluster: str, namespace: str, workspace: Workspace, successor: Callable[[], Driver]
    ) -> None:
        # A process of its own submits, lets go of its pool and ends.
        arguments = [cluster, namespace, str(workspace.cache_dir), str(workspace.corpora_dir), "a", "9", "3e8"]
        subprocess.run([sys.executable, "-m", "tests.workers.short_lived_runner", *arguments], check=True)
        heir = successor()
        assert heir.pool.assignments() == {}
        assert heir.pool.adopt("slot-cccccc-0", "a")
        assert heir.pool.assignments() == {"a": "slot-cccccc-0"}
        expected = evaluate(micro_trial(seed=9, train_flops=3e8), workspace)
        assert heir.outcome("a").loss == expected.loss
        assert heir.pool.assignments() == {}
        assert heir.start("b", micro_trial()) == "slot-cccccc-0"
        assert heir.outcome("b").kind is OutcomeKind.COMPLETED
        assert slots(namespace) == {"slot-cccccc-0"}

    def test_can_stop_what_it_took_over(self, driver: Driver, successor: Callable[[], Driver], namespace: str) -> None:
        slot = start_endless(driver, namespace, "a")
        heir = successor()
        assert heir.pool.adopt(slot, "a")
        heir.pool.stop("a")
        assert heir.outcome("a").kind is OutcomeKind.CANCELLED

    def test_hears_of_what_ended_while_nobody_listened(
        self, driver: Driver, successor: Callable[[], Driver], namespace: str, workspace: Workspace
    ) -> None:
        slot = driver.start("a", micro_trial())
        wait_for(lambda: view(namespace, slot).outcome, what="the end of a")
        heir = successor()
        assert heir.pool.adopt(slot, "a")
        assert heir.outcome("a").loss == evaluate(micro_trial(), workspace).loss

    def test_follows_what_takes_longer_than_one_question(
        self, make_pool: MakePool, workspace: Workspace, namespace: str
    ) -> None:
        driver = Driver(make_pool(workspace, slot_class=ImpatientSlot))
        slot = start_endless(driver, namespace, "a")
        heir = Driver(make_pool(workspace, HEIR))
        assert heir.pool.adopt(slot, "a")
        for _ in range(5):
            heir.wait()
        assert heir.events == []
        heir.pool.stop("a")
        assert heir.outcome("a").kind is OutcomeKind.CANCELLED

    def test_loses_what_it_took_over_where_the_slot_dies(
        self, driver: Driver, successor: Callable[[], Driver], namespace: str
    ) -> None:
        slot = start_endless(driver, namespace, "a")
        heir = successor()
        assert heir.pool.adopt(slot, "a")
        os.kill(pid(namespace, slot), signal.SIGKILL)
        assert isinstance(heir.end("a"), Lost)
        assert heir.pool.assignments() == {}

    def test_is_refused_where_the_slot_died(
        self, driver: Driver, successor: Callable[[], Driver], namespace: str
    ) -> None:
        slot = start_endless(driver, namespace, "a")
        heir = successor()
        ray.kill(actor(namespace, slot))
        wait_for(lambda: slot not in slots(namespace), what="the end of the slot")
        assert not heir.pool.adopt(slot, "a")

    def test_makes_the_slot_refuse_its_former_runner(self, driver: Driver, successor: Callable[[], Driver]) -> None:
        slot = driver.start("a", micro_trial())
        driver.outcome("a")
        assert driver.reserve() == slot
        heir = successor()
        assert heir.pool.adopt(slot, "a")
        driver.pool.submit(slot, assignment_of("late", micro_trial()))
        end = driver.end("late")
        assert isinstance(end, Lost)
        assert end.reason == f"Refused: the slot is runner {HEIR}'s, not {ME}'s: late was not started"
        # Neither does the former runner use it again, nor did it hurt the slot.
        assert driver.pool.num_slots == 0
        heir.outcome("a")
        assert heir.start("b", micro_trial()) == slot
        assert heir.outcome("b").kind is OutcomeKind.COMPLETED

    def test_takes_back_what_another_runner_has_taken_over(
        self, driver: Driver, successor: Callable[[], Driver], namespace: str
    ) -> None:
        slot = start_endless(driver, namespace, "a")
        assert successor().pool.adopt(slot, "a")
        assert driver.pool.adopt(slot, "a")
        assert view(namespace, slot).owner == ME
        driver.pool.stop("a")
        assert driver.outcome("a").kind is OutcomeKind.CANCELLED
        assert len(driver.ends("a")) == 1

    def test_forgets_what_a_slot_does_not_hold_any_more(
        self, driver: Driver, successor: Callable[[], Driver], namespace: str
    ) -> None:
        slot = driver.start("a", micro_trial())
        wait_for(lambda: view(namespace, slot).outcome, what="the end of a")
        heir = successor()
        assert heir.pool.adopt(slot, "a")
        heir.outcome("a")
        heir.start("b", micro_trial())
        wait_for(lambda: view(namespace, slot).key == "b", what="the start of b")
        assert not driver.pool.adopt(slot, "a")
        assert driver.pool.assignments() == {}

    def test_leaves_a_slot_that_holds_something_else_to_its_owner(
        self, driver: Driver, successor: Callable[[], Driver], namespace: str
    ) -> None:
        slot = start_endless(driver, namespace, "a")
        assert not successor().pool.adopt(slot, "b")
        assert view(namespace, slot).owner == ME


class TestReclaiming:
    def test_takes_idle_slots_of_runners_that_are_gone(
        self, driver: Driver, successor: Callable[[], Driver], namespace: str
    ) -> None:
        slot = driver.reserve(HALF_A_GPU)
        heir = successor()

        def reclaim() -> int:
            heir.pool.reclaim({HEIR})
            heir.wait()
            return heir.pool.num_slots

        wait_for(reclaim, what="the slot to be taken over")
        assert view(namespace, slot).owner == HEIR
        assert heir.pool.assignments() == {}
        assert heir.pool.reserve(HALF_A_GPU, wanted=1) == [slot]

    def test_leaves_other_slots_alone(self, driver: Driver, successor: Callable[[], Driver], namespace: str) -> None:
        busy = start_endless(driver, namespace, "a", HALF)
        idle = driver.reserve(HALF_A_GPU)
        heir = successor()
        ask = actor(namespace, busy).inherit.options(concurrency_group="control")
        for living in ({ME, HEIR}, {HEIR}):
            heir.pool.reclaim(living if living == {ME, HEIR} else living | {ME})
            assert ray.get(ask.remote(HEIR, living, 0.0)).owner == ME
            heir.wait()
        assert view(namespace, idle).owner == ME
        assert heir.pool.num_slots == 0

    def test_leaves_the_slots_of_other_services_alone(self, driver: Driver, cluster: str, workspace: Workspace) -> None:
        driver.reserve(HALF)
        other = RayPool(workspace, address=cluster, owner=HEIR, namespace="another service")
        other.reclaim({HEIR})
        other.wait(0)
        assert other.slots() == []
        assert not other.reserve(HALF_A_GPU, wanted=0)


class TestStopping:
    def test_ends_by_force_what_does_not_heed_it(self, make_pool: MakePool, workspace: Workspace) -> None:
        pool = make_pool(workspace, slot_class=DeafSlot)
        driver = Driver(pool)
        slot = driver.start("a", micro_trial())
        driver.pool.stop("a")
        asked = time.monotonic()
        while not driver.ends("a"):
            driver.pool.stop("a")
            driver.events += driver.pool.wait(60)
        assert time.monotonic() - asked < 30
        assert driver.outcome("a").kind is OutcomeKind.CANCELLED
        assert slot not in pool.slots()
        driver.wait()
        assert len(driver.ends("a")) == 1


class TestMemory:
    @pytest.mark.parametrize("slot_class", [FullSlot, DoomedSlot])
    def test_that_ran_out_costs_the_slot(
        self, make_pool: MakePool, workspace: Workspace, namespace: str, slot_class: type[Slot]
    ) -> None:
        driver = Driver(make_pool(workspace, slot_class=slot_class))
        slot = driver.start("a", micro_trial())
        assert driver.outcome("a").kind is OutcomeKind.OUT_OF_MEMORY
        assert driver.pool.assignments() == {}
        wait_for(lambda: slot not in slots(namespace), what="the end of the slot")
        assert driver.reserve() != slot

    @pytest.mark.parametrize(
        ("resources", "alone"),
        [
            (Resources(cpus=0.5), Resources(cpus=2)),
            (Resources(cpus=0.5, gpus=0.25), Resources(cpus=0.5, gpus=1)),
            (Resources(cpus=0.5, gpus=3), Resources(cpus=0.5, gpus=3)),
        ],
    )
    def test_is_not_shared_by_a_trial_that_is_alone(
        self, driver: Driver, resources: Resources, alone: Resources
    ) -> None:
        assert driver.pool.alone(resources) == alone


class TestIdleSlots:
    def test_are_given_back(self, make_pool: MakePool, workspace: Workspace, namespace: str) -> None:
        driver = Driver(make_pool(workspace, idle_seconds=0.2))
        driver.reserve(HALF)

        def left() -> set[str]:
            driver.wait()
            return slots(namespace)

        wait_for(left, until=lambda left: not left, what="the end of the slot")
        assert driver.pool.num_slots == 0

    def test_are_ended_where_there_are_too_many(self, pool: RayPool, driver: Driver, namespace: str) -> None:
        driver.reserve_some(2, HALF)
        busy = start_endless(driver, namespace, "a", HALF)
        driver.pool.keep_at_most(1)
        assert pool.slots() == [busy]
        wait_for(lambda: slots(namespace), until=lambda left: left == {busy}, what="the end of the other slot")
        assert not driver.pool.reserve(HALF, wanted=2)
        assert driver.pool.num_slots == 1

    def test_that_were_ended_since_they_were_reserved_lose_what_comes(self, driver: Driver) -> None:
        slot = driver.reserve(HALF)
        driver.pool.keep_at_most(0)
        driver.pool.submit(slot, assignment_of("a", micro_trial()))
        assert isinstance(driver.end("a"), Lost)

    def test_are_not_made_where_another_runner_holds_the_room(
        self, driver: Driver, successor: Callable[[], Driver], namespace: str
    ) -> None:
        start_endless(driver, namespace, "a", WHOLE)
        wait_for(ray.available_resources, until=lambda free: free["CPU"] == 0.5, what="Ray to have given 1.5 CPUs away")
        heir = successor()
        assert not heir.pool.reserve(HALF, wanted=1)
        assert heir.pool.num_slots == 0
        driver.pool.stop("a")
        driver.outcome("a")
        driver.pool.keep_at_most(0)
        assert heir.reserve(HALF).startswith("slot-bbbbbb-")


def start_endless(driver: Driver, namespace: str, key: str, resources: Resources = WHOLE) -> str:
    """Start an assignment that has no end of its own; it runs when this returns. Its slot."""
    slot = driver.start(key, micro_trial(train_flops=ENDLESS), resources)
    wait_for(lambda: view(namespace, slot).key == key, what=f"the start of {key}")
    return slot
