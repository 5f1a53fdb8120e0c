"""Arrays that are prepared once per machine, and mapped into memory by every process on it."""

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


def prepared(folder: Path, prepare: Callable[[Path], None]) -> Arrays:
    """The arrays in ``folder``, read-only; made by ``prepare`` if they are not there, in the folder that it is given."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Prepared aside and renamed: another process sees all of it or nothing; who comes second throws its copy away.
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            prepare(draft)
            draft.chmod(0o755)
            draft.rename(folder)
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}


def prepared_by_one(folder: Path, prepare: Callable[[Path], None]) -> Arrays:
    """The same for what is too large to be prepared twice: of all processes on the machine one does, the others wait."""
    if folder.exists():
        return prepared(folder, prepare)
    with _alone(folder):
        # What was begun and is not locked any more is of a process that was killed, and may be large.
        for left_over in folder.parent.glob(f".{folder.name}-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        return prepared(folder, prepare)


def save(folder: Path, arrays: Arrays) -> None:
    """Write whole arrays."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


class GrowingArray:
    """An array in a file, of a length that only its end tells: rows are appended, and nothing of it is kept in memory.

    The header leaves room for any length, as NumPy's format provides, and is written anew at the end.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike, row: tuple[int, ...] = ()) -> None:
        self._dtype, self._row = np.dtype(dtype), row
        self._length = 0
        self._file = path.open("xb")
        self._write_header()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()

    def __len__(self) -> int:
        return self._length

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Write rows behind those that there are."""
        assert rows.dtype == self._dtype, "the type of an array is one"
        assert rows.shape[1:] == self._row, "so is the shape of its rows"
        self._file.write(np.ascontiguousarray(rows).data)
        self._length += len(rows)

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self._length, *self._row)}
        np.lib.format.write_array_header_1_0(self._file, header)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other process of the machine is: the lock goes with the process that holds it, whatever ends that."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
