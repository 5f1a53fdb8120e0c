"""Questions to a cluster that may be gone."""

import threading

import pytest
from ray.exceptions import RayError

from workers.cluster import in_time
from workers.pool import PoolGone


class TestQuestion:
    def test_gets_its_answer_whatever_that_is(self) -> None:
        assert in_time("count", lambda: 3) == 3
        assert in_time("say nothing", lambda: None) is None

    def test_passes_on_that_there_is_no_such_name(self) -> None:
        with pytest.raises(ValueError, match="invalid literal"):
            in_time("find a slot", lambda: int("x"))

    @pytest.mark.parametrize(
        "error", [RayError("broken"), RuntimeError("broken"), ConnectionError("broken"), OSError("broken")]
    )
    def test_finds_the_cluster_gone_where_ray_fails(self, error: Exception) -> None:
        def fail() -> None:
            raise error

        with pytest.raises(PoolGone, match=r"^the cluster did not list its nodes: .*broken"):
            in_time("list its nodes", fail)

    def test_finds_the_cluster_gone_where_it_does_not_answer(self) -> None:
        with pytest.raises(PoolGone, match=r"^the cluster did not end a slot: no answer within 0\.01 s$"):
            in_time("end a slot", threading.Event().wait, seconds=0.01)
