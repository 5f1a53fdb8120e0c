"""The directories of the machine that a trial runs on."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Where prepared data is cached, and below which directory users' text files lie (None: nowhere)."""

    cache_dir: Path
    corpora_dir: Path | None = None
