import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import pytest
from sqlalchemy.orm import Session

from einlayers.theta import NAMED
from search.corpora import READ_AT_MOST
from search.proxies.char_lm import CharLM, FileCorpus, HubCorpus
from search.proxies.image_mlp import ImageMLP
from search.proxies.image_vit import ImageViT
from search.proxies.images import Cifar5m, Cifar10, Cifar100, HubImages, ImageFiles
from search.proxies.next_pixel import NextPixel
from search.spec import Budget, SearchSpec, Space
from search.states import SearchState
from search.structure import structure_of
from search.trial import Outcome
from service import leases, repositories, searches
from service.database import Database
from service.errors import Forbidden, InvalidValue, NotFound, WrongState
from service.keys import Caller
from service.models import Reason
from service.searches import SearchDetail
from tests.rows import SPEC, Rows, contents

Action = Callable[[Session, str], SearchDetail]

ACTIONS: dict[str, Action] = {"pause": searches.pause, "resume": searches.resume, "cancel": searches.cancel}

ALLOWED = {
    ("pause", SearchState.QUEUED): SearchState.PAUSED,
    ("pause", SearchState.RUNNING): SearchState.PAUSED,
    ("resume", SearchState.PAUSED): SearchState.RUNNING,
    ("cancel", SearchState.QUEUED): SearchState.STOPPING,
    ("cancel", SearchState.RUNNING): SearchState.STOPPING,
    ("cancel", SearchState.PAUSED): SearchState.STOPPING,
}

REFUSED = [(action, state) for action in ACTIONS for state in SearchState if (action, state) not in ALLOWED]


def _caller(owner: str, *scopes: str) -> Caller:
    return Caller(owner=owner, scopes=frozenset(scopes))  # type: ignore[arg-type]  # scopes by their names


@pytest.fixture
def private() -> Iterator[Path]:
    """An allowed directory that everybody may enter: those of pytest are their owner's alone."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """A file that this process may not read, also where it is root's, to whom modes say nothing."""
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        path.chmod(0o600)


class TestSubmit:
    def test_queues_the_search_as_it_was_asked_for(self, database: Database) -> None:
        with database.write() as session:
            submitted = searches.submit(session, SPEC, None)
        with database.read() as session:
            found = searches.detail(session, submitted.search.id)
        assert found.search.spec == SPEC
        assert (found.search.name, found.search.proxy_kind) == ("test", "char_lm")
        assert found.search.state is SearchState.QUEUED
        assert (found.search.reason, found.search.started_at, found.search.finished_at) == (None, None, None)
        assert found.search.created_at == submitted.search.created_at
        assert (found.search.counts, found.search.num_trials, found.search.best_loss) == ({}, 0, None)
        assert (found.search.owner, found.search.last_event) == ("local", 1)

    def test_gives_every_search_an_id_of_its_own(self, rows: Rows) -> None:
        assert len({rows.search() for _ in range(20)}) == 20

    def test_of_a_corpus_that_may_not_be_read_writes_nothing(self, database: Database) -> None:
        spec = replace(SPEC, proxy=CharLM(corpus=FileCorpus(path="corpus.txt")))
        with pytest.raises(InvalidValue), database.write() as session:
            searches.submit(session, spec, None)
        assert contents(database)["searches"] == []


class TestValidate:
    def test_estimates_the_compute_of_all_trials(self) -> None:
        spec = replace(SPEC, budget=Budget(max_trials=7), proxy=replace(SPEC.proxy, train_flops=3e9))
        estimate = searches.validate(spec, None)
        assert (estimate.train_flops, estimate.max_trials) == (2.1e10, 7)

    def test_shows_the_dense_baseline_and_the_seeds_in_their_order(self) -> None:
        spec = replace(SPEC, space=Space(seeds=("btt", "kronecker")))
        estimate = searches.validate(spec, None)
        assert estimate.baseline == structure_of(NAMED["dense"], spec.proxy)
        assert estimate.baseline.width == spec.proxy.dense_width
        assert [structure.theta for structure in estimate.seeds] == [NAMED["btt"], NAMED["kronecker"]]


class TestCorpus:
    @staticmethod
    def _spec(path: str, context: int = 16) -> SearchSpec:
        return replace(SPEC, proxy=CharLM(dense_width=8, context=context, corpus=FileCorpus(path=path)))

    def _refused(self, path: str, corpora_dir: Path | None, context: int = 16) -> str:
        with pytest.raises(InvalidValue) as refusal:
            searches.validate(self._spec(path, context), corpora_dir)
        (problem,) = refusal.value.problems
        assert problem.pointer == "/proxy/corpus/path"
        return problem.detail

    def test_below_the_allowed_directory_is_accepted(self, corpora_dir: Path) -> None:
        (corpora_dir / "more").mkdir()
        (corpora_dir / "corpus.txt").rename(corpora_dir / "more" / "text.txt")
        (corpora_dir / "link.txt").symlink_to(corpora_dir / "more" / "text.txt")
        for path in ("more/text.txt", "more/../more/text.txt", "link.txt", str(corpora_dir / "more" / "text.txt")):
            searches.validate(self._spec(path), corpora_dir)

    def test_is_refused_where_the_operator_allows_none(self) -> None:
        assert "EINSEARCH_CORPORA_DIR is not set" in self._refused("corpus.txt", None)

    def test_elsewhere_is_refused_whether_it_is_there_or_not(self, corpora_dir: Path) -> None:
        outside = corpora_dir.parent / "secret.txt"
        outside.write_text("secret " * 10_000)
        (corpora_dir / "link.txt").symlink_to(outside)
        (corpora_dir / "folder").symlink_to(corpora_dir.parent)
        (corpora_dir / "loop").symlink_to(corpora_dir / "loop")
        for path in (
            "../secret.txt",
            "../missing.txt",
            "missing.txt",
            "corpus.txt/../../secret.txt",
            str(outside),
            str(outside.with_name("missing.txt")),
            "link.txt",
            "folder/secret.txt",
            "loop",
            ".",
            "",
            "..",
            "x" * 5000,
            "x/" * 5000,
        ):
            detail = self._refused(path, corpora_dir)
            assert detail.startswith("expected a text file below the directory that the operator allows, got ")

    @pytest.mark.parametrize("path", ["corpus.txt\0", "\0", "\ud800", "a\nb"])
    def test_that_no_file_can_be_is_refused(self, path: str, corpora_dir: Path) -> None:
        assert self._refused(path, corpora_dir).startswith("expected a printable path, got ")

    def test_that_is_too_short_for_the_context_is_refused(self, corpora_dir: Path) -> None:
        (corpora_dir / "corpus.txt").write_text("x" * 1299)
        detail = self._refused("corpus.txt", corpora_dir, context=64)
        assert detail == "expected a file of at least 1300 bytes for this context, got '1299 bytes'"
        (corpora_dir / "corpus.txt").write_text("x" * 1300)
        searches.validate(self._spec("corpus.txt", context=64), corpora_dir)

    @pytest.mark.parametrize(
        ("text", "got"),
        [
            (b"\tindented\n" * 1000, "0 characters"),
            ("naïve\n".encode() * 1000, "0 characters"),
            (b"one line without an end, and a NUL \0" * 1000, "0 characters"),
            (b"old\rmac\r" * 1000, "0 characters"),
            (b"x" * 338 + b"\n" + b"\t\n" * 1000, "339 characters"),
        ],
    )
    def test_of_which_nothing_is_left_is_refused(self, text: bytes, got: str, corpora_dir: Path) -> None:
        (corpora_dir / "corpus.txt").write_bytes(text)
        detail = self._refused("corpus.txt", corpora_dir)
        expected = "at least 340 characters in lines of printable ASCII only; other lines are dropped"
        assert detail == f"expected {expected}, got '{got}'"

    @pytest.mark.parametrize(
        "text",
        [
            b"x" * 339 + b"\n" + b"\t\n" * 1000,
            b"\t\n" * 1000 + b"x" * 340,
            b"ends as on Windows\r\n" * 18,
            b"\xff" * 5_000_000 + b"\n" + b"x" * 340,
        ],
        ids=["just enough", "at the end", "Windows", "after megabytes of others"],
    )
    def test_of_which_enough_is_left_is_accepted(self, text: bytes, corpora_dir: Path) -> None:
        (corpora_dir / "corpus.txt").write_bytes(text)
        searches.validate(self._spec("corpus.txt"), corpora_dir)

    def test_is_not_looked_through_without_end(self, corpora_dir: Path) -> None:
        (corpora_dir / "corpus.txt").write_bytes(b"\xff" * READ_AT_MOST + b"\n" + b"x" * 340)
        assert "340 characters in its first 16 MiB in lines" in self._refused("corpus.txt", corpora_dir)

    def test_that_may_not_be_read_is_refused(self, private: Path) -> None:
        (private / "corpus.txt").write_text("x" * 1000)
        with unreadable(private / "corpus.txt"):
            assert (
                self._refused("corpus.txt", private) == "expected a file that this service may read, got 'corpus.txt'"
            )

    def test_of_hugging_face_is_left_to_a_worker(self) -> None:
        corpus = HubCorpus(name="nobody/has-this")
        searches.validate(replace(SPEC, proxy=CharLM(corpus=corpus)), None)


class TestImages:
    @staticmethod
    def _refused(images: ImageFiles, corpora_dir: Path | None) -> str:
        details = []
        for proxy in (ImageMLP(images=images), ImageViT(images=images), NextPixel(images=images)):  # type: ignore[arg-type]  # each is one of the union
            with pytest.raises(InvalidValue) as refusal:
                searches.validate(replace(SPEC, proxy=proxy), corpora_dir)
            (problem,) = refusal.value.problems
            assert problem.pointer == "/proxy/images/path"
            details.append(problem.detail)
        assert len(set(details)) == 1
        return details[0]

    @staticmethod
    def _write(folder: Path, images: ImageFiles, content: bytes) -> Path:
        (folder / images.path).mkdir(exist_ok=True)
        for name in images.file_names:
            (folder / images.path / name).write_bytes(content)
        return folder / images.path / name

    def test_that_are_there_are_accepted(self, corpora_dir: Path) -> None:
        images = Cifar10(path="ten")
        self._write(corpora_dir, images, b"\0" * 3073)
        searches.validate(replace(SPEC, proxy=ImageMLP(images=images)), corpora_dir)

    def test_are_refused_where_the_operator_allows_none(self) -> None:
        assert "EINSEARCH_CORPORA_DIR is not set" in self._refused(Cifar10(path="ten"), None)

    def test_that_are_missing_are_refused(self, corpora_dir: Path) -> None:
        for images in (Cifar10(path="ten"), Cifar100(path="ten"), Cifar5m(path="ten")):
            assert "below the one that the operator allows" in self._refused(images, corpora_dir)
        self._write(corpora_dir, Cifar10(path="ten"), b"\0" * 3073).unlink()
        assert "a directory with data_batch_1.bin" in self._refused(Cifar10(path="ten"), corpora_dir)

    @pytest.mark.parametrize("content", [b"", b"\0" * 3072, b"\0" * 3074])
    def test_that_are_empty_or_cut_short_are_refused(self, content: bytes, corpora_dir: Path) -> None:
        self._write(corpora_dir, Cifar10(path="ten"), content)
        detail = self._refused(Cifar10(path="ten"), corpora_dir)
        assert detail.startswith("expected data_batch_1.bin to hold images of 3073 bytes each, got ")

    @pytest.mark.parametrize("what", ["empty", "no archive", "cut short", "of other arrays"])
    def test_that_are_no_archive_of_images_are_refused(self, what: str, corpora_dir: Path) -> None:
        file = BytesIO()
        with ZipFile(file, "w") as archive:
            for name in ("X.npy", "Z.npy" if what == "of other arrays" else "Y.npy"):
                archive.writestr(name, b"\0" * 1000)
        whole = file.getvalue()
        content = {"empty": b"", "no archive": b"PK\3\4 not really", "cut short": whole[:-50]}.get(what, whole)
        self._write(corpora_dir, Cifar5m(path="many", parts=2), content)
        detail = self._refused(Cifar5m(path="many", parts=2), corpora_dir)
        assert detail.startswith("expected cifar5m_part0.npz to be an archive of the arrays X and Y, got ")

    def test_that_may_not_be_read_are_refused(self, private: Path) -> None:
        with unreadable(self._write(private, Cifar10(path="ten"), b"\0" * 3073)):
            detail = self._refused(Cifar10(path="ten"), private)
        assert detail == "expected a file that this service may read, got 'ten/test_batch.bin'"

    def test_of_hugging_face_are_left_to_a_worker(self) -> None:
        images = HubImages(name="nobody/has-this", size=8, num_classes=10)
        searches.validate(replace(SPEC, proxy=ImageMLP(images=images)), None)


class TestTransitions:
    @pytest.mark.parametrize(("action", "state"), ALLOWED, ids=str)
    def test_that_are_allowed_lead_on(self, action: str, state: SearchState, rows: Rows) -> None:
        search_id = rows.search(state=state)
        with rows.database.write() as session:
            answered = ACTIONS[action](session, search_id).search
        with rows.database.read() as session:
            search = repositories.search_by_id(session, search_id)
        assert answered.state is search.state is ALLOWED[action, state]
        assert answered.reason is search.reason is (None if action == "resume" else Reason.USER)
        assert search.finished_at is None

    @pytest.mark.parametrize(("action", "state"), REFUSED, ids=str)
    def test_that_are_refused_change_nothing(self, action: str, state: SearchState, rows: Rows) -> None:
        search_id = rows.search(state=state)
        rows.trial(search_id, NAMED["btt"])
        before = contents(rows.database)
        with pytest.raises(WrongState, match=f"search {search_id}.*{state}"), rows.database.write() as session:
            ACTIONS[action](session, search_id)
        assert contents(rows.database) == before

    @pytest.mark.parametrize("action", ACTIONS)
    def test_of_no_search_are_refused(self, action: str, rows: Rows) -> None:
        rows.search()
        before = contents(rows.database)
        with pytest.raises(NotFound, match="there is no search 'ffff'"), rows.database.write() as session:
            ACTIONS[action](session, "ffff")
        assert contents(rows.database) == before

    @pytest.mark.parametrize("action", ["pause", "cancel"])
    def test_that_many_ask_for_at_once_happen_once(self, action: str, rows: Rows) -> None:
        search_id = rows.search()
        together = threading.Barrier(8)
        answers: list[str] = []

        def ask() -> None:
            together.wait()
            try:
                with rows.database.write() as session:
                    ACTIONS[action](session, search_id)
            except WrongState:
                answers.append("refused")
            else:
                answers.append("done")

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == ["done"] + ["refused"] * 7

    def test_note_the_first_start_alone(self, rows: Rows) -> None:
        search_id = rows.search(state=SearchState.QUEUED)
        started = []
        for action in (searches.pause, searches.resume, searches.pause, searches.resume):
            with rows.database.write() as session:
                started.append(action(session, search_id).search.started_at)
        assert started[0] is None
        assert started[1] is not None
        assert started[1] == started[2] == started[3]


class TestConclude:
    @staticmethod
    def _conclude(rows: Rows, search_id: str) -> tuple[SearchState, Reason | None]:
        with rows.database.write() as session:
            searches.conclude(session, repositories.search_by_id(session, search_id, lock=True))
        with rows.database.read() as session:
            search = repositories.search_by_id(session, search_id)
        assert search.finished_at is not None
        assert search.waiting_for is None
        return search.state, search.reason

    def test_completes_a_search_that_spent_its_budget(self, rows: Rows) -> None:
        search_id = rows.search()
        rows.completed(search_id, NAMED["btt"], 1.0)
        assert self._conclude(rows, search_id) == (SearchState.COMPLETED, Reason.BUDGET_TRIALS)

    def test_completes_a_search_that_has_nothing_new_to_try(self, rows: Rows) -> None:
        search_id = rows.search()
        with rows.database.write() as session:
            repositories.search_by_id(session, search_id).reason = Reason.SPACE_EXHAUSTED
        assert self._conclude(rows, search_id) == (SearchState.COMPLETED, Reason.SPACE_EXHAUSTED)

    def test_completes_a_search_whose_structures_are_all_infeasible(self, rows: Rows) -> None:
        search_id = rows.search()
        rows.outcome(rows.attempt(rows.trial(search_id, NAMED["btt"])), Outcome.infeasible("diverged"))
        assert self._conclude(rows, search_id) == (SearchState.COMPLETED, Reason.BUDGET_TRIALS)

    def test_fails_a_search_whose_trials_all_failed(self, rows: Rows) -> None:
        search_id = rows.search()
        rows.outcome(rows.attempt(rows.trial(search_id, NAMED["btt"])), Outcome.failed("traceback"))
        assert self._conclude(rows, search_id) == (SearchState.FAILED, Reason.ALL_TRIALS_FAILED)

    def test_completes_a_search_of_which_one_trial_did_not_fail(self, rows: Rows) -> None:
        search_id = rows.search()
        rows.outcome(rows.attempt(rows.trial(search_id, NAMED["btt"])), Outcome.failed("traceback"))
        rows.completed(search_id, NAMED["monarch"], 1.0)
        assert self._conclude(rows, search_id) == (SearchState.COMPLETED, Reason.BUDGET_TRIALS)

    def test_cancels_a_search_that_its_user_cancelled(self, rows: Rows) -> None:
        search_id = rows.search()
        rows.outcome(rows.attempt(rows.trial(search_id, NAMED["btt"])), Outcome.failed("traceback"))
        with rows.database.write() as session:
            searches.cancel(session, search_id)
        assert self._conclude(rows, search_id) == (SearchState.CANCELLED, Reason.USER)


class TestDetail:
    def test_counts_trials_by_state_and_knows_the_lowest_loss(self, rows: Rows) -> None:
        search_id, other = rows.search(), rows.search()
        rows.completed(search_id, NAMED["btt"], 2.0)
        rows.completed(search_id, NAMED["dense"], 1.5)
        rows.completed(other, NAMED["dense"], 0.5)
        rows.outcome(rows.attempt(rows.trial(search_id, NAMED["monarch"])), Outcome.infeasible("diverged"))
        rows.attempt(rows.trial(search_id, NAMED["kronecker"]))
        rows.trial(search_id, NAMED["low-rank"])
        with rows.database.read() as session:
            search = searches.detail(session, search_id).search
        counts = {state: count for state, count in search.counts.items() if count}
        assert counts == {"COMPLETED": 2, "INFEASIBLE": 1, "RUNNING": 1, "PROPOSED": 1}
        assert (search.num_trials, search.num_finished, search.num_alive) == (5, 3, 2)
        assert (search.num_unproposed, search.best_loss) == (5, 1.5)
        assert search.train_flops == 5 * SPEC.proxy.train_flops

    def test_of_no_search_is_refused(self, database: Database) -> None:
        with pytest.raises(NotFound), database.read() as session:
            searches.detail(session, "ffff")

    @pytest.mark.parametrize("limit", [1, 10])
    def test_of_the_best_of_no_search_is_refused(self, limit: int, database: Database) -> None:
        with pytest.raises(NotFound), database.read() as session:
            searches.best(session, "ffff", limit)

    def test_says_so_where_no_runner_is_alive(self, rows: Rows) -> None:
        search_id = rows.search(state=SearchState.QUEUED)
        with rows.database.read() as session:
            assert str(searches.detail(session, search_id).waiting_for).startswith("no runner is alive")
        with rows.database.write() as session:
            leases.enrol(session, 60)
        with rows.database.read() as session:
            assert searches.detail(session, search_id).waiting_for is None


class TestExtend:
    def test_gives_a_search_another_budget(self, rows: Rows) -> None:
        search_id = rows.search()
        with rows.database.write() as session:
            searches.extend(session, search_id, Budget(max_trials=12, max_seconds=60))
        with rows.database.read() as session:
            search = repositories.search_by_id(session, search_id)
        assert search.spec == replace(SPEC, budget=Budget(max_trials=12, max_seconds=60))
        assert search.num_unproposed == 12

    @pytest.mark.parametrize(
        ("budget", "pointer"),
        [
            (Budget(max_trials=1), "/budget/max_trials"),
            (Budget(max_train_flops=1e6), "/budget/max_train_flops"),
        ],
    )
    def test_below_what_is_used_is_refused_and_changes_nothing(self, budget: Budget, pointer: str, rows: Rows) -> None:
        search_id = rows.search()
        rows.all_proposed(search_id, [NAMED["btt"], NAMED["dense"]])
        before = contents(rows.database)
        with pytest.raises(InvalidValue) as refusal, rows.database.write() as session:
            searches.extend(session, search_id, budget)
        assert [problem.pointer for problem in refusal.value.problems] == [pointer]
        assert contents(rows.database) == before

    @pytest.mark.parametrize("state", [SearchState.STOPPING, *(s for s in SearchState if s.is_final)])
    def test_of_a_search_that_ends_is_refused_and_changes_nothing(self, state: SearchState, rows: Rows) -> None:
        search_id = rows.search(state=state)
        before = contents(rows.database)
        with pytest.raises(WrongState), rows.database.write() as session:
            searches.extend(session, search_id, Budget(max_trials=100))
        assert contents(rows.database) == before


class TestOwner:
    @pytest.mark.parametrize("action", ACTIONS)
    def test_alone_may_steer_a_search(self, action: str, rows: Rows) -> None:
        state = SearchState.PAUSED if action == "resume" else SearchState.RUNNING
        search_id = rows.search(state=state, caller=_caller("alice", "submit"))
        before = contents(rows.database)
        for caller in (_caller("bob", "submit"), _caller("bob", "submit", "read")):
            with pytest.raises(Forbidden), rows.database.write() as session:
                ACTIONS[action](session, search_id, caller=caller)  # type: ignore[call-arg]  # all of them take it
        assert contents(rows.database) == before
        with rows.database.write() as session:
            ACTIONS[action](session, search_id, caller=_caller("alice", "submit"))  # type: ignore[call-arg]  # as above

    def test_is_no_limit_for_an_administrator(self, rows: Rows) -> None:
        search_id = rows.search(caller=_caller("alice", "submit"))
        with rows.database.write() as session:
            assert searches.cancel(session, search_id, _caller("root", "admin")).search.owner == "alice"
