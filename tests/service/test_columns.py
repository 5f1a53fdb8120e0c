import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import count

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text

from einlayers.theta import NAMED, Theta
from search.axes import Axes, Bounds
from search.proxies.char_lm import CharLM, FileCorpus, StdlibCorpus
from search.sampling import Random, Tpe
from search.spec import Budget, Constraints, Resources, SearchSpec, Space
from service.models import Search, Trial
from tests.rows import SPEC, Rows
from tests.strategies import thetas

printable = st.text(min_size=1, max_size=200).filter(str.isprintable)
sampler_seeds = st.integers(0, 2**63 - 1)

proxies = st.builds(
    CharLM,
    dense_width=st.integers(1, 64).map(lambda heads: 4 * heads),
    width=st.none() | st.integers(1, 64).map(lambda heads: 4 * heads),
    train_flops=st.floats(1e6, 1e21),
    base_lr=st.floats(1e-8, 1e8),
    corpus=st.builds(StdlibCorpus) | st.builds(FileCorpus, path=printable),
)
spaces = st.builds(
    Space,
    subspace=st.sampled_from(["full", "btt", "low-rank", "tensor-train"]),
    constraints=st.builds(
        Constraints, omega_max=st.none() | st.floats(0, 2), params_min=st.none() | st.floats(0, 1e15)
    ),
    axes=st.builds(
        Axes, gamma=st.none() | st.builds(Bounds, max=st.floats(0, 1)), rho=st.none() | st.just(Bounds(min=0, max=0))
    ),
    ties=st.sampled_from([(), ("gamma=phi",), ("gamma=phi", "beta=delta")]),
    seeds=st.lists(st.sampled_from(sorted(NAMED)), unique=True).map(tuple),
)
specs = st.builds(
    SearchSpec,
    name=printable,
    budget=st.builds(Budget, max_trials=st.integers(1, 100_000)),
    proxy=proxies,
    space=spaces,
    sampler=st.builds(Tpe, seed=sampler_seeds) | st.builds(Random, seed=sampler_seeds),
    replicates=st.integers(1, 100),
    concurrency=st.integers(1, 1024),
    resources=st.builds(Resources, cpus=st.floats(0.01, 1024), gpus=st.floats(0, 1)),
)


class TestValues:
    @given(theta=thetas())
    def test_a_theta_comes_back_equal(self, shared: Rows, theta: Theta) -> None:
        trial_id = shared.trial(shared.search(), theta)
        with shared.database.read() as session:
            stored = session.scalars(select(Trial.theta).where(Trial.id == trial_id)).one()
            assert stored.exponents == theta.exponents

    @given(spec=specs)
    def test_a_spec_comes_back_equal(self, shared: Rows, spec: SearchSpec) -> None:
        search = _search(spec, datetime.now(UTC))
        with shared.database.write() as session:
            session.add(search)
        with shared.database.read() as session:
            assert session.scalars(select(Search.spec).where(Search.id == search.id)).one() == spec

    def test_are_written_as_the_json_that_the_api_speaks(self, rows: Rows) -> None:
        search_id = rows.search(SPEC)
        rows.trial(search_id, NAMED["btt"])
        with rows.database.read() as session:
            spec = session.scalar(text("SELECT CAST(spec AS TEXT) FROM searches"))
            theta = session.scalar(text("SELECT CAST(theta AS TEXT) FROM trials"))
        assert json.loads(str(spec))["proxy"]["dense_width"] == SPEC.proxy.dense_width
        assert json.loads(str(theta)) == {
            "alpha": 0.5,
            "beta": 0.0,
            "gamma": 0.5,
            "delta": 0.0,
            "epsilon": 0.5,
            "phi": 0.5,
            "rho": 0.25,
        }

    def test_that_cannot_change_are_made_once_from_the_same_json(self, rows: Rows) -> None:
        search_ids = [rows.search(SPEC), rows.search(SPEC), rows.search(replace(SPEC, name="another"))]

        def read() -> list[SearchSpec]:
            with rows.database.read() as session:
                return [session.get_one(Search, search_id).spec for search_id in search_ids]

        first, again = read(), read()
        assert first == [SPEC, SPEC, replace(SPEC, name="another")]
        assert {*map(id, first), *map(id, again)} == {id(first[0]), id(first[2])}


class TestTimes:
    @given(
        time=st.datetimes(
            min_value=datetime(1970, 1, 3),
            max_value=datetime(9999, 12, 29),
            timezones=st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes))),
        )
    )
    def test_come_back_as_the_same_instant_in_utc(self, shared: Rows, time: datetime) -> None:
        search = _search(SPEC, time)
        with shared.database.write() as session:
            session.add(search)
        with shared.database.read() as session:
            read = session.scalars(select(Search.created_at).where(Search.id == search.id)).one()
        assert read == time
        assert read.tzinfo is UTC

    def test_that_are_not_there_stay_away(self, rows: Rows) -> None:
        rows.search()
        with rows.database.read() as session:
            assert session.scalars(select(Search.finished_at)).one() is None


_numbers = count()


def _search(spec: SearchSpec, time: datetime) -> Search:
    return Search(
        id=f"{next(_numbers)}",
        name=spec.name,
        owner="local",
        spec=spec,
        proxy_kind=spec.proxy.kind,
        task="task",
        state_since=time,
        created_at=time,
    )
