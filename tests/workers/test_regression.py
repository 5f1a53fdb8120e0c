"""The regression proxy: what the teacher is, where its rows come from, and what they are."""

# N rows, I inputs

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from search.proxies.regression import Regression
from tests.contracts.proxy import ProxyContract
from workers.proxies.registry import proxy_for
from workers.teachers import HELD_OUT_ROWS, POOL_ROWS, Teacher, TeacherRows, load_rows
from workers.workspace import Workspace

SMALL = Regression(dense_width=8, inputs=3, teacher_width=6, teacher_depth=3, batch_size=64, train_flops=1e9)
SEVERAL = replace(SMALL, outputs=4)
BEYOND_THE_POOL = 1e13
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A cache that all tests share: the pool takes a second to draw."""
    return Workspace(cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def rows(workspace: Workspace) -> TeacherRows:
    return load_rows(SMALL, workspace)


class TestRegression(ProxyContract):
    @pytest.fixture
    def settings(self) -> Regression:
        return SEVERAL


class TestTeacher:
    def test_is_a_relu_network_without_biases(self) -> None:
        teacher = Teacher(SMALL, CPU)
        first, second, last = (weight.double().numpy() for weight in teacher.weights_IO)
        assert (first.shape, second.shape, last.shape) == ((3, 6), (6, 6), (6, 1))
        x_NI = np.random.default_rng(0).standard_normal((50, 3))
        expected = np.maximum(np.maximum(x_NI @ first, 0) @ second, 0) @ last
        assert teacher(torch.tensor(x_NI, dtype=torch.float32)).numpy() == pytest.approx(expected, rel=1e-4, abs=1e-5)

    def test_starts_as_he_did_but_for_the_layer_that_reads_the_inputs(self) -> None:
        first, *hidden, last = Teacher(Regression(), CPU).weights_IO
        assert first.std().item() == pytest.approx(8**-0.5, rel=0.1)
        assert last.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.15)
        assert [weight.std().item() for weight in hidden] == pytest.approx([(2 / 256) ** 0.5] * 3, rel=0.02)

    def test_is_another_one_for_another_seed(self) -> None:
        one, other = (Teacher(Regression(teacher_seed=seed), CPU).weights_IO[0] for seed in (0, 1))
        assert not torch.equal(one, other)


class TestRows:
    def test_are_gaussian_inputs_with_a_standardised_output(self, rows: TeacherRows) -> None:
        assert rows.train.shape == (POOL_ROWS, 4)
        assert rows.held_out.shape == (HELD_OUT_ROWS, 4)
        assert np.abs(np.cov(rows.train[:, :3].T) - np.eye(3)).max() < 0.005
        assert rows.train[:, -1].mean(dtype=float) == pytest.approx(0, abs=1e-3)
        assert rows.train[:, -1].std(dtype=float) == pytest.approx(1, abs=1e-3)

    def test_have_every_output_standardised(self, workspace: Workspace) -> None:
        outputs_NO = load_rows(SEVERAL, workspace).train[:, 3:]
        assert outputs_NO.mean(axis=0, dtype=float) == pytest.approx(np.zeros(4), abs=1e-3)
        assert outputs_NO.std(axis=0, dtype=float) == pytest.approx(np.ones(4), abs=1e-3)

    @pytest.mark.parametrize("settings", [SMALL, SEVERAL])
    def test_are_what_the_teacher_says(self, workspace: Workspace, settings: Regression) -> None:
        rows = load_rows(settings, workspace)
        for part in (rows.train[-1000:], rows.held_out[:1000]):
            outputs_NO = Teacher(settings, CPU)(torch.from_numpy(part[:, :3].copy())).numpy()
            assert part[:, 3:] == pytest.approx((outputs_NO - rows.mean) / rows.sd, abs=1e-4)

    def test_score_with_none_that_were_trained_on(self, rows: TeacherRows) -> None:
        assert not {row.tobytes() for row in rows.held_out} & {row.tobytes() for row in rows.train[:500_000]}

    def test_are_drawn_once_per_machine(self, workspace: Workspace, rows: TeacherRows) -> None:
        folder = workspace.cache_dir / "teachers" / "3-6x3-1-42"
        before = (folder / "train.npy").stat()
        assert np.array_equal(load_rows(SMALL, workspace).train[:10], rows.train[:10])
        assert (folder / "train.npy").stat() == before

    def test_differ_from_teacher_to_teacher(self, tmp_path: Path, rows: TeacherRows) -> None:
        other = Regression(inputs=3, teacher_width=6, teacher_depth=3, teacher_seed=1)
        assert not np.array_equal(load_rows(other, Workspace(cache_dir=tmp_path)).train[:10], rows.train[:10])


class TestBatches:
    def test_come_from_the_pool_where_it_is_large_enough(self, workspace: Workspace, rows: TeacherRows) -> None:
        known = {row.tobytes() for row in np.asarray(rows.train)}
        for batch in islice(proxy_for(SMALL).task(0, workspace, CPU).batches, 5):
            drawn = torch.cat(batch, dim=1).numpy()
            assert {row.tobytes() for row in drawn} <= known

    def test_are_drawn_anew_where_it_is_not(self, workspace: Workspace) -> None:
        settings = replace(SEVERAL, batch_size=512, train_flops=BEYOND_THE_POOL)
        rows = load_rows(settings, workspace)
        inputs_BI, targets_BO = next(proxy_for(settings).task(0, workspace, CPU).batches)
        assert len(set(inputs_BI[:, 0].tolist()) - set(rows.train[:, 0].tolist())) > 400
        outputs_BO = (Teacher(settings, CPU)(inputs_BI).numpy() - rows.mean) / rows.sd
        torch.testing.assert_close(targets_BO, torch.from_numpy(outputs_BO))
