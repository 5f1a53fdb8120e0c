"""Arrays that are prepared once per machine, and mapped into memory by every process on it."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


def prepared(folder: Path, prepare: Callable[[], Arrays]) -> Arrays:
    """The arrays in ``folder``, read-only; made by ``prepare`` if they are not there."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Prepared aside and renamed: another process sees all of it or nothing; who comes second throws its copy away.
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, array in prepare().items():
                np.save(draft / f"{name}.npy", array)
            draft.chmod(0o755)
            draft.rename(folder)
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
