"""The schedule of a soak is the same whenever it is made from the same seed."""

import json

from pydantic import TypeAdapter

from einlayers.theta import NAMED
from search.spec import SearchSpec
from tests.faults.harm import FAULTS
from tests.faults.schedule import HEAVY, LIGHT, OF_POSTGRES, make_schedule, make_search
from tests.faults.workload import STRUCTURES

ALL = {**LIGHT, **HEAVY, **OF_POSTGRES}


class TestSchedule:
    def test_follows_from_its_seed(self) -> None:
        assert make_schedule(3, 40, ALL) == make_schedule(3, 40, ALL)
        assert make_schedule(3, 40, ALL) != make_schedule(4, 40, ALL)

    def test_has_every_fault_and_exactly_as_many_as_were_asked_for(self) -> None:
        steps = make_schedule(0, 40, ALL)
        assert len(steps) == 40
        assert {step.fault for step in steps} == set(ALL) == set(FAULTS)
        assert len(make_schedule(0, 5, ALL)) == 5


class TestSearches:
    def test_follow_from_seed_and_number(self) -> None:
        made = [json.dumps(make_search(0, number)) for number in range(20)]
        assert made == [json.dumps(make_search(0, number)) for number in range(20)]
        assert len(set(made)) == 20

    def test_are_such_as_the_service_accepts(self) -> None:
        for number in range(50):
            TypeAdapter(SearchSpec).validate_python(make_search(1, number))

    def test_are_added_to_with_known_structures(self) -> None:
        assert set(STRUCTURES) <= set(NAMED)
