"""How long the fuzz tests look: seconds, at the same examples on every machine. ``FUZZ=20``: twenty times as long, and
elsewhere every time; what is found then comes with the seed that finds it again."""

import os
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from sqlalchemy import Table

from service.database import Database
from service.models import Base

FACTOR = int(os.environ.get("FUZZ", "1"))

Everything = Mapping[str, Sequence[Any]]


def fuzz_settings(num_examples: int, **changes: Any) -> settings:
    """The settings of a test with so many examples, each of them slow and none of them worth to be shrunk for long."""
    return settings(
        **{
            "max_examples": num_examples * FACTOR,
            "derandomize": FACTOR == 1,
            "database": None,
            "deadline": None,
            "print_blob": FACTOR > 1,
            "phases": (Phase.explicit, Phase.generate, Phase.shrink),
            "suppress_health_check": (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
            **changes,
        }
    )


def run_machine(make: Callable[[], RuleBasedStateMachine], *, num_runs: int, num_steps: int) -> None:
    """Run a state machine from its beginning to its end, many times.

    In portions of nine: from the tenth example on Hypothesis repeats what it has had, with small changes, more than it looks
    for something else, and that finds less in long chains of steps.
    """
    for portion in range(num_runs * FACTOR // 9):
        seed = portion if FACTOR == 1 else random.randrange(2**32)
        try:
            options = fuzz_settings(9, max_examples=9, derandomize=False, stateful_step_count=num_steps)
            seeded = hypothesis.seed(seed)(lambda: make())
            run_state_machine_as_test(seeded, settings=options)  # type: ignore[arg-type]  # whatever makes a machine
        except Exception as error:
            error.add_note(f"the seed was {seed}")
            raise


def everything(database: Database) -> Everything:
    """All that is in a database, as it is: ``contents`` without making values of it, a hundred times a second."""
    with database.read() as session:
        connection = session.connection()
        return {
            table.name: connection.exec_driver_sql(f"SELECT * FROM {table.name} ORDER BY {_key(table)}").all()
            for table in Base.metadata.sorted_tables
        }


def _key(table: Table) -> str:
    return ", ".join(table.primary_key.columns.keys())
