"""Arrays that grow in files, and what is prepared by one process of many."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from workers.cache import GrowingArray, prepared_by_one

BATCHES = 500


def count_and_write(folder: Path) -> None:
    with (folder.parent / "calls").open("a") as calls:
        calls.write("x")
    with GrowingArray(folder / "numbers.npy", np.int64) as numbers:
        for number in range(BATCHES):
            numbers.append(np.arange(number))


def prepare(folder: Path) -> int:
    return int(prepared_by_one(folder, count_and_write)["numbers"].sum())


class TestGrowingArray:
    @pytest.mark.parametrize("row", [(), (3,), (2, 1)])
    @pytest.mark.parametrize("lengths", [(), (0,), (1,), (5, 0, 70_000)])
    def test_is_all_that_was_appended(self, tmp_path: Path, row: tuple[int, ...], lengths: tuple[int, ...]) -> None:
        draw = np.random.default_rng(0)
        parts = [draw.integers(0, 65_536, (length, *row), dtype=np.uint16) for length in lengths]
        with GrowingArray(tmp_path / "array.npy", np.uint16, row) as array:
            for part in parts:
                array.append(part)
            assert len(array) == sum(lengths)
        found = np.load(tmp_path / "array.npy", mmap_mode="r")
        assert (found.dtype, found.shape) == (np.uint16, (sum(lengths), *row))
        assert np.array_equal(found, np.concatenate([np.empty((0, *row), np.uint16), *parts]))

    def test_takes_rows_in_any_order_of_memory(self, tmp_path: Path) -> None:
        with GrowingArray(tmp_path / "array.npy", np.uint8, (2,)) as array:
            array.append(np.arange(6, dtype=np.uint8).reshape(2, 3).T)
        assert np.load(tmp_path / "array.npy").tolist() == [[0, 3], [1, 4], [2, 5]]


class TestPreparedByOne:
    def test_is_prepared_once_by_processes_that_need_it_at_once(self, tmp_path: Path) -> None:
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
            sums = list(processes.map(prepare, [tmp_path / "cache"] * 4))
        assert sums == [sum(sum(range(number)) for number in range(BATCHES))] * 4
        assert (tmp_path / "calls").read_text() == "x"

    def test_leaves_nothing_where_preparing_fails(self, tmp_path: Path) -> None:
        def fail(folder: Path) -> None:
            (folder / "begun.npy").write_bytes(b"x")
            raise ConnectionError("the network is away")

        with pytest.raises(ConnectionError):
            prepared_by_one(tmp_path / "cache", fail)
        assert [path.name for path in tmp_path.iterdir()] == [".cache.lock"]
        assert prepare(tmp_path / "cache")
