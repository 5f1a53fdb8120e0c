"""Checkpoints of trials in training, one file per attempt, so that a trial outlives its slot and can make room for others.

A file that is damaged, or belongs to something else, must never be continued from: it starts with a digest of the rest
(torch itself does not look at the check sums of its archives), and says which trial it was made for. Nothing in it is
executed when it is read.
"""

import hashlib
import io
import logging
import os
import pickle
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from search.trial import Report, StepCost, TrialSpec

KEEP_DAYS = 60.0
"""Days after which a checkpoint is taken to be forgotten. Its trial, if it still waits, begins anew."""

_FORMAT = 4
_KEY = re.compile(r"(?P<trial>[A-Za-z0-9]{1,64}-[0-9]{1,12})-(?P<attempt>[0-9]{1,12})")
_DIGEST_BYTES = hashlib.sha256().digest_size
_UNREADABLE = (OSError, EOFError, pickle.UnpicklingError, RuntimeError, ValueError, LookupError, TypeError)
"""What reading a file can raise that nobody wrote here."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A run between two steps: ``training`` as ``Training.state_dict`` gives it, its curve, and its seconds so far: those of
    the clock and of the processor."""

    training: dict[str, Any]
    curve: tuple[Report, ...]
    seconds: float
    cpu_seconds: float


class Checkpoints:
    """The files of one trial, as one of its attempts sees them.

    Raises:
        ValueError: ``key`` is not the id of an attempt, which could lead out of ``folder``.
    """

    def __init__(self, folder: Path, key: str, spec: TrialSpec) -> None:
        named = _KEY.fullmatch(key)
        if not named:
            raise ValueError(f"expected a key like 5f0c2ab91d3e-7-2 (search, trial, attempt), got {key[:100]!r}")
        self._folder = folder
        self._trial = named["trial"]
        self._attempt = int(named["attempt"])
        self._fingerprint = fingerprint(spec)
        self.path = folder / f"{key}.pt"

    def newest(self) -> Checkpoint | None:
        """The checkpoint of the latest of the earlier attempts that left one for this very trial, on this torch."""
        earlier = sorted((item for item in self._files() if item[0] < self._attempt), reverse=True)
        for _, path in earlier:
            try:
                return _read(path, self._fingerprint)
            except _UNREADABLE as error:
                logger.warning("%s is not continued from: %s", path, error)
        return None

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace this attempt's file, at once or not at all.

        Raises:
            OSError: it cannot be written; what was there before still is.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = _encode(checkpoint, self._fingerprint)
        handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=f"{self.path.stem}.", suffix=".tmp")
        try:
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync(self._folder)

    def delete(self) -> None:
        """Delete the files of this attempt and of those before it: the trial is over."""
        _delete(path for path in self._folder.glob(f"{self._trial}-*") if _attempt_of(path) <= self._attempt)

    def _files(self) -> Iterator[tuple[int, Path]]:
        for path in self._folder.glob(f"{self._trial}-*.pt"):
            if _KEY.fullmatch(path.stem):
                yield _attempt_of(path), path


def delete_forgotten(folder: Path, *, now: float | None = None) -> None:
    """Delete what was left by trials that were cancelled while they waited, or whose end nobody saw."""
    oldest = (time.time() if now is None else now) - KEEP_DAYS * 86400
    _delete(path for path in folder.glob("*-*-*.*") if path.suffix in (".pt", ".tmp") and _written(path) < oldest)


def fingerprint(spec: TrialSpec) -> str:
    """What a checkpoint must have in common with a run that continues it."""
    return hashlib.sha256(repr((_FORMAT, torch.__version__, spec)).encode()).hexdigest()


def _encode(checkpoint: Checkpoint, mark: str) -> bytes:
    buffer = io.BytesIO()
    curve = [asdict(report) for report in checkpoint.curve]
    content = {"for": mark, "training": checkpoint.training, "curve": curve, "seconds": checkpoint.seconds}
    content["cpu_seconds"] = checkpoint.cpu_seconds
    torch.save(content, buffer)
    payload = buffer.getvalue()
    return hashlib.sha256(payload).digest() + payload


def _read(path: Path, mark: str) -> Checkpoint:
    content = path.read_bytes()
    digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError("its content does not have the digest that it starts with; it is damaged or no checkpoint")
    saved = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    if saved["for"] != mark:
        raise ValueError("it was made for another structure, other settings or another version of torch")
    curve = tuple(_report(**report) for report in saved["curve"])
    return Checkpoint(
        training=saved["training"], curve=curve, seconds=saved["seconds"], cpu_seconds=saved["cpu_seconds"]
    )


def _report(*, step_cost: dict[str, Any] | None, **point: Any) -> Report:
    return Report(**point, step_cost=StepCost(**step_cost) if step_cost else None)


def _attempt_of(path: Path) -> int:
    named = _KEY.fullmatch(path.name.split(".")[0])
    return int(named["attempt"]) if named else 10**12


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")  # somebody else deletes it just now


def _delete(paths: Iterator[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be deleted: %s", path, error)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
