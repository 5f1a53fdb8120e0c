from itertools import product

import pytest

from search.states import AttemptState, IllegalTransition, SearchState, State, TrialState

LEGAL = {
    SearchState: """
        QUEUED   -> RUNNING PAUSED STOPPING
        RUNNING  -> PAUSED STOPPING
        PAUSED   -> RUNNING STOPPING
        STOPPING -> COMPLETED CANCELLED FAILED
        COMPLETED ->
        CANCELLED ->
        FAILED    ->
    """,
    TrialState: """
        PROPOSED -> RUNNING CANCELLED COMPLETED INFEASIBLE
        RUNNING  -> PROPOSED COMPLETED PRUNED INFEASIBLE FAILED CANCELLED
        COMPLETED  ->
        PRUNED     ->
        INFEASIBLE ->
        FAILED     ->
        CANCELLED  ->
    """,
    AttemptState: """
        RUNNING -> ENDED LOST OUT_OF_MEMORY CHECKPOINTED CANCELLED
        ENDED         ->
        LOST          ->
        OUT_OF_MEMORY ->
        CHECKPOINTED  ->
        CANCELLED     ->
    """,
}
"""The machines as DESIGN.md, section 6, tells them, written out once more."""

PAIRS = [(machine, current, new) for machine in LEGAL for current, new in product(machine, machine)]


def _table(machine: type[State]) -> dict[str, set[str]]:
    rows = (line.split("->") for line in LEGAL[machine].strip().splitlines())
    return {current.strip(): set(successors.split()) for current, successors in rows}


class TestEveryPair:
    @pytest.mark.parametrize(("machine", "current", "new"), PAIRS)
    def test_is_legal_exactly_where_the_table_says(self, machine: type[State], current: State, new: State) -> None:
        if new.value in _table(machine)[current.value]:
            assert current.to(new) is new
        else:
            with pytest.raises(IllegalTransition) as caught:
                current.to(new)
            assert caught.value.current is current
            assert caught.value.new is new

    @pytest.mark.parametrize("machine", LEGAL)
    def test_is_covered_by_the_table(self, machine: type[State]) -> None:
        assert set(_table(machine)) == {state.value for state in machine}


class TestState:
    @pytest.mark.parametrize("machine", LEGAL)
    def test_is_final_exactly_where_nothing_follows(self, machine: type[State]) -> None:
        final = {state.value for state in machine if state.is_final}
        assert final == {current for current, successors in _table(machine).items() if not successors}

    @pytest.mark.parametrize("state", [state for machine in LEGAL for state in machine], ids=repr)
    def test_is_followed_by_states_of_its_own_machine(self, state: State) -> None:
        assert {type(successor) for successor in state.successors()} <= {type(state)}

    @pytest.mark.parametrize("machine", LEGAL)
    def test_can_be_reached_and_can_reach_an_end(self, machine: type[State]) -> None:
        table = _table(machine)
        start = next(iter(machine)).value
        assert _reachable(table, start) == set(table)
        ends = {state for state, successors in table.items() if not successors}
        assert all(_reachable(table, state) & ends for state in table)

    def test_is_its_own_name_in_the_database_and_on_the_wire(self) -> None:
        assert all(str(state) == state.value == state.name for machine in LEGAL for state in machine)


class TestIllegalTransition:
    def test_says_what_would_have_been_legal(self) -> None:
        with pytest.raises(IllegalTransition) as caught:
            SearchState.QUEUED.to(SearchState.COMPLETED)
        assert str(caught.value) == "QUEUED does not lead to COMPLETED; it leads to PAUSED, RUNNING, STOPPING"

    def test_says_that_an_end_is_an_end(self) -> None:
        with pytest.raises(
            IllegalTransition, match=r"^FAILED does not lead to RUNNING; it leads to nothing: it is final$"
        ):
            TrialState.FAILED.to(TrialState.RUNNING)


def _reachable(table: dict[str, set[str]], start: str) -> set[str]:
    reached, frontier = {start}, [start]
    while frontier:
        fresh = table[frontier.pop()] - reached
        reached |= fresh
        frontier += fresh
    return reached
