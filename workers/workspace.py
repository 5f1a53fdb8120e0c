"""The directories of the machine that a trial runs on."""

from dataclasses import dataclass
from pathlib import Path

CHECKPOINT_EVERY = 60.0
"""Seconds of training between checkpoints that nobody asked for: what a lost slot costs at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Where prepared data is cached; below which directory users' text files lie (None: nowhere); where checkpoints are
    kept (None: none are written), which machines that share their trials share too; how often one is written; where data
    sets of Hugging Face lie, as ``OWNER/NAME``, that were fetched beforehand (None: nowhere)."""

    cache_dir: Path
    corpora_dir: Path | None = None
    checkpoints_dir: Path | None = None
    checkpoint_every: float = CHECKPOINT_EVERY
    hub_dir: Path | None = None
