from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis.stateful import run_state_machine_as_test
from hypothesis.strategies import one_of
from schemathesis import Case, GenerationMode, Response

from service.keys import Scope
from service.settings import Settings
from tests.api.fuzzing import Known, Target, new_key, populate
from tests.api.test_app import CALLS, STUDIES
from tests.corpora import make_corpora
from tests.fuzzing import everything, fuzz_settings
from tests.rows import Rows

MODES = list(GenerationMode)
EXCEPT_FRONTS = {"pareto_fronts"}
"""Fronts are kept by whoever asks for them."""


@pytest.fixture(scope="module")
def settings(shared: Rows, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("fuzz")
    url = shared.database.engine.url.render_as_string(hide_password=False)
    return Settings(home=folder / "home", database_url=url, corpora_dir=make_corpora(folder / "corpora"))


@pytest.fixture(scope="module")
def known(shared: Rows) -> Known:
    return populate(shared)


@pytest.fixture(scope="module")
def target(settings: Settings, shared: Rows, known: Known) -> Target:
    return Target.of(settings, shared, known)


def _operation(target: Target, call: str) -> Any:
    method, path = call.split()
    return target.schema[path][method]


def _attack(target: Target, call: str, num_examples: int, *modes: GenerationMode) -> None:
    operation = _operation(target, call)

    @fuzz_settings(num_examples)
    @given(case=one_of([operation.as_strategy(generation_mode=mode) for mode in modes]))
    def attack(case: Case[Any]) -> None:
        target.attack(case)

    attack()


def _num_borders(call: str, target: Target) -> int | None:
    """All that there are, on one database; of studies, whose kinds share their code and whose bodies are large, some."""
    if call in {f"POST /v1/{plural}" for plural in STUDIES}:
        return 30 if target.rows.database.is_sqlite else 10
    return None if target.rows.database.is_sqlite else 20


class TestEveryCall:
    @pytest.mark.parametrize("call", sorted(CALLS))
    def test_keeps_to_the_document_and_changes_nothing_if_refused(self, call: str, target: Target) -> None:
        _attack(target, call, 20 if target.rows.database.is_sqlite else 5, *MODES)

    @pytest.mark.parametrize("call", sorted(CALLS))
    def test_keeps_to_the_document_at_its_borders(self, call: str, target: Target) -> None:
        operation = _operation(target, call)
        config = target.schema.config.generation_for(operation=operation, phase="coverage")
        cases = target.schema.iter_coverage_cases(operation, generation_modes=MODES, generation_config=config)
        for case in islice(cases, _num_borders(call, target)):
            target.attack(case)


class TestWalk:
    def test_along_the_links_keeps_to_the_document(self, target: Target) -> None:
        class Walk(target.schema.as_state_machine()):  # type: ignore[misc]  # made for the document at hand
            def before_call(self, case: Case[Any]) -> None:
                target.prepare(case)

            def after_call(self, response: Response, case: Case[Any]) -> None:
                super().after_call(response, case)
                target.check(case, response)

        run_state_machine_as_test(Walk, settings=fuzz_settings(10, stateful_step_count=30))


class TestKeys:
    def test_are_asked_for_wherever_the_document_says_so(self, settings: Settings, shared: Rows, known: Known) -> None:
        target = Target.of(settings, shared, known, key=new_key(shared, Scope.ADMIN))
        for call in sorted(CALLS):
            _attack(target, call, 3, GenerationMode.POSITIVE)

    def test_that_may_look_change_nothing(self, settings: Settings, shared: Rows, known: Known) -> None:
        target = Target.of(settings, shared, known, key=new_key(shared, Scope.READ))
        before = everything(shared.database)
        for call in sorted(CALLS):
            _attack(target, call, 3, GenerationMode.POSITIVE)
        after = everything(shared.database)
        assert [table for table in before if after[table] != before[table]] in ([], ["pareto_fronts"])

    def test_of_others_change_nothing_that_was_there(self, settings: Settings, shared: Rows, known: Known) -> None:
        target = Target.of(settings, shared, known, key=new_key(shared, Scope.SUBMIT, owner="stranger"))
        before = everything(shared.database)
        for call in sorted(CALLS):
            _attack(target, call, 6, GenerationMode.POSITIVE)
        after = everything(shared.database)
        for table in before.keys() - EXCEPT_FRONTS:
            assert all(row in after[table] for row in before[table]), table
        assert {"submit_search", "add_webhook"} <= target.accepted
