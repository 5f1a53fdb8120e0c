from service.models import Runner, RunnerStats
from service.shares import fair_share


def runner(name: str, **stats: int | bool) -> Runner:
    return Runner(id=name, stats=RunnerStats(**stats))  # type: ignore[arg-type]  # the fields of the stats


class TestFairShare:
    def test_is_no_limit_while_nobody_else_waits(self) -> None:
        assert fair_share("a", [runner("a", slots=8, busy=8, waiting=True)]) is None
        assert fair_share("a", [runner("a", slots=8, waiting=True), runner("b", slots=1, busy=1)]) is None

    def test_is_that_of_all_who_want_slots(self) -> None:
        alive = [
            runner("a", slots=7, busy=7),
            runner("b", waiting=True),
            runner("c", slots=2, busy=1),
            runner("idle", slots=0),
        ]
        assert fair_share("a", alive) == 3
        # Who waits is limited only by others who wait.
        assert fair_share("b", alive) is None

    def test_counts_what_there_is_room_for_so_that_slots_that_died_are_made_again(self) -> None:
        # Eight slots, of which six have just died; each of the two sees room for six.
        alive = [runner("a", slots=1, busy=1, waiting=True, room=6), runner("b", slots=1, waiting=True, room=6)]
        assert fair_share("a", alive) == fair_share("b", alive) == 4

    def test_is_one_slot_at_least(self) -> None:
        alive = [runner("a", waiting=True), runner("b", waiting=True)]
        assert fair_share("a", alive) == fair_share("b", alive) == 1
