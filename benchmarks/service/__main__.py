"""How the service holds up: its answers over very many trials, and itself under very many clients.

    python -m benchmarks.service answers [--trials 100000] [--rounds 30]
    python -m benchmarks.service crowd [--clients 50] [--minutes 10]

Both on SQLite, and on Postgres where its programs are installed: a server of its own, in a temporary directory and without
durability (fsync is off). ``--database sqlite`` or ``postgres`` is that one alone. Both through the API as it is served:
uvicorn in a process of its own, HTTP over loopback.
"""

import argparse
import tempfile
from contextlib import closing
from pathlib import Path

from benchmarks.service import answers, crowd
from tests.databases import KINDS, Databases, MissingPrograms


def main() -> None:
    """Measure what was asked for and print it."""
    asked = _arguments().parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="einsearch-benchmark-") as folder,
        closing(Databases(Path(folder))) as databases,
    ):
        for kind in asked.database or KINDS:
            try:
                server = databases.of(kind)
            except MissingPrograms as missing:
                print(f"{kind}: {missing}")
                continue
            with server.migrated() as url:
                if asked.what == "answers":
                    answers.measure(kind, url, Path(folder), num_trials=asked.trials, rounds=asked.rounds)
                else:
                    crowd.measure(kind, url, Path(folder), num_clients=asked.clients, minutes=asked.minutes)
    if asked.what == "answers":
        print(answers.ELSEWHERE)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service")
    parser.add_argument("what", choices=["answers", "crowd"])
    parser.add_argument("--database", choices=KINDS, action="append", help="this one alone; may be given again")
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10.0)
    return parser


if __name__ == "__main__":
    main()
