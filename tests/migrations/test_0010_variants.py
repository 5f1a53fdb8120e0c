"""Variants of trials, and searches that choose them, which the code before does not know."""

import json
from dataclasses import replace

from alembic import command
from sqlalchemy import select, text

from einlayers.theta import NAMED
from search.axes import Axes, Bounds
from search.cube import MixtureAxes, WholeRange
from search.proxies.shapes import GroupThetas, Mixture
from search.spec import Constraints, Space
from search.stopping import Convergence
from search.variant import Variant
from service import migrate, trials
from service.models import Search, Trial
from tests.rows import SPEC, Rows


class TestDowngrade:
    def test_forgets_variants_and_nothing_else(self, rows: Rows, database_url: str) -> None:
        mixed = replace(SPEC, proxy=replace(SPEC.proxy, mixture=Mixture()), space=Space(seeds=("btt",)))
        axes = MixtureAxes(top_k=WholeRange(min=1, max=4))
        new = replace(mixed, space=replace(mixed.space, mixture=axes, groups=("attention",)))
        fixed = replace(SPEC, proxy=replace(SPEC.proxy, thetas=GroupThetas(attention=NAMED["dense"])))
        bounded = Space(axes=Axes(gamma=Bounds(min=0.5)), ties=("gamma=phi",), constraints=Constraints(padding_max=0.1))
        expecting = replace(SPEC, space=bounded, convergence=Convergence(min_improvement=0.1))
        ids = [rows.search(), rows.search(new), rows.search(fixed), rows.search(expecting)]
        with rows.database.write() as session:
            trial_id = trials.enqueue(session, ids[1], NAMED["btt"], variant=Variant(top_k=1)).id
        rows.database.close()
        command.downgrade(migrate.configuration(database_url), "0009")
        with rows.database.read() as session:
            written = [spec for spec in session.scalars(text("select spec from searches"))]
            assert "variant" not in set(session.execute(text("select * from trials")).keys())
        for spec in written:
            read = json.loads(spec) if isinstance(spec, str) else spec
            assert not {"mixture", "groups", "axes", "ties"} & set(read["space"])
            assert "padding_max" not in read["space"]["constraints"]
            assert "thetas" not in read["proxy"]
        migrate.upgrade(database_url)
        with rows.database.read() as session:
            assert {search.id: search.spec for search in session.scalars(select(Search))} == {
                ids[0]: SPEC,
                ids[1]: mixed,
                ids[2]: SPEC,
                ids[3]: replace(SPEC, space=Space()),
            }
            assert session.get_one(Trial, trial_id).variant is None
