"""Checkpoint files: whose they are, what is done with damaged ones, and what a failure leaves behind."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from search.trial import Report
from tests.workers.specs import micro_trial
from workers.checkpoints import KEEP_DAYS, Checkpoint, Checkpoints, delete_forgotten

SPEC = micro_trial()


def files(folder: Path, attempt: int, trial: int = 7) -> Checkpoints:
    return Checkpoints(folder, f"5f0c2ab91d3e-{trial}-{attempt}", SPEC)


def checkpoint(step: int) -> Checkpoint:
    report = Report(step=step, examples=64 * step, train_flops=1e6 * step, loss=2.5)
    return Checkpoint(
        training={"step": step, "worst": torch.tensor(3.0)}, curve=(report,), seconds=1.5, cpu_seconds=0.5
    )


def step_of(found: Checkpoint | None) -> int | None:
    return found.training["step"] if found else None


class TestKey:
    @pytest.mark.parametrize(
        "key",
        ["", "a", "a-1", "a-1-", "a-1-1-1", "../a-1-1", "a/b-1-1", "a-1-1\n", "a-x-1", "-1-1", "a-1-\u0661", "*-1-1"],
    )
    def test_that_is_no_attempts_is_refused(self, tmp_path: Path, key: str) -> None:
        with pytest.raises(ValueError, match=r"^expected a key like 5f0c2ab91d3e-7-2 "):
            Checkpoints(tmp_path, key, SPEC)

    def test_names_the_file(self, tmp_path: Path) -> None:
        assert files(tmp_path, 2).path == tmp_path / "5f0c2ab91d3e-7-2.pt"


class TestNewest:
    def test_is_nothing_where_there_is_no_folder(self, tmp_path: Path) -> None:
        assert files(tmp_path / "nowhere", 2).newest() is None

    def test_is_what_was_written(self, tmp_path: Path) -> None:
        files(tmp_path, 1).write(checkpoint(5))
        found, expected = files(tmp_path, 2).newest(), checkpoint(5)
        assert found
        assert (found.curve, found.seconds) == (expected.curve, expected.seconds)
        assert found.training == expected.training

    def test_is_that_of_the_latest_attempt_before(self, tmp_path: Path) -> None:
        for attempt in (2, 9, 10, 11):
            files(tmp_path, attempt).write(checkpoint(attempt))
        assert step_of(files(tmp_path, 11).newest()) == 10

    def test_is_not_another_trials(self, tmp_path: Path) -> None:
        for trial in (70, 77, 8):
            files(tmp_path, 1, trial).write(checkpoint(5))
        assert files(tmp_path, 2).newest() is None

    def test_is_not_another_structures(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        Checkpoints(tmp_path, "5f0c2ab91d3e-7-1", micro_trial("btt")).write(checkpoint(5))
        assert files(tmp_path, 2).newest() is None
        assert "is not continued from: it was made for another structure" in caplog.text

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: b"",
            lambda content: content[:20],
            lambda content: content[: len(content) // 2],
            lambda content: content[:-1],
            lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],
            lambda content: b"something else altogether" * 100,
        ],
    )
    def test_is_the_one_before_where_the_last_is_damaged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
    ) -> None:
        for attempt in (1, 2):
            files(tmp_path, attempt).write(checkpoint(attempt))
        path = files(tmp_path, 2).path
        path.write_bytes(damage(path.read_bytes()))
        assert step_of(files(tmp_path, 3).newest()) == 1
        assert f"{path} is not continued from" in caplog.text

    def test_ignores_what_only_looks_like_one(self, tmp_path: Path) -> None:
        (tmp_path / "5f0c2ab91d3e-7-x.pt").write_text("x")
        (tmp_path / "5f0c2ab91d3e-7-1.pt").mkdir()
        assert files(tmp_path, 2).newest() is None


class TestWriting:
    def test_makes_a_file_for_its_owner_only(self, tmp_path: Path) -> None:
        files(tmp_path / "new", 1).write(checkpoint(1))
        (path,) = (tmp_path / "new").iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_replaces_what_the_attempt_wrote_before(self, tmp_path: Path) -> None:
        for step in (1, 2):
            files(tmp_path, 1).write(checkpoint(step))
        assert step_of(files(tmp_path, 2).newest()) == 2
        assert len(list(tmp_path.iterdir())) == 1

    def test_that_fails_leaves_what_was_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        files(tmp_path, 1).write(checkpoint(1))
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            files(tmp_path, 1).write(checkpoint(2))
        assert step_of(files(tmp_path, 2).newest()) == 1
        assert len(list(tmp_path.iterdir())) == 1


class TestDeletion:
    def test_takes_what_its_attempt_and_those_before_left_and_nothing_else(self, tmp_path: Path) -> None:
        for attempt in (1, 2, 3):
            files(tmp_path, attempt).write(checkpoint(1))
        files(tmp_path, 1, trial=70).write(checkpoint(1))
        (tmp_path / "5f0c2ab91d3e-7-1.abc.tmp").touch()
        files(tmp_path, 2).delete()
        assert {path.name for path in tmp_path.iterdir()} == {"5f0c2ab91d3e-7-3.pt", "5f0c2ab91d3e-70-1.pt"}

    def test_of_nothing_is_harmless(self, tmp_path: Path) -> None:
        files(tmp_path / "nowhere", 1).delete()

    def test_of_what_was_forgotten_goes_by_age(self, tmp_path: Path) -> None:
        files(tmp_path, 1).write(checkpoint(1))
        (tmp_path / "5f0c2ab91d3e-7-1.abc.tmp").touch()
        (tmp_path / "somebody's notes").touch()
        now = (tmp_path / "5f0c2ab91d3e-7-1.pt").stat().st_mtime
        delete_forgotten(tmp_path, now=now + 0.9 * KEEP_DAYS * 86400)
        assert len(list(tmp_path.iterdir())) == 3
        delete_forgotten(tmp_path, now=now + 1.1 * KEEP_DAYS * 86400)
        assert [path.name for path in tmp_path.iterdir()] == ["somebody's notes"]
