import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from einlayers.errors import FieldError
from service import keys, migrate
from service.clock import now
from service.database import Database
from service.errors import Forbidden, NotFound, Unauthorized
from service.keys import LOCAL, Caller, Limits, Scope
from service.models import Search
from service.settings import Settings
from tests.rows import Rows, contents

KEY = re.compile(r"es_[0-9a-f]{12}_[A-Za-z0-9_-]{43}")


def make_key(database: Database, owner: str = "ann", *scopes: Scope, limits: Limits | None = None) -> str:
    with database.write() as session:
        return keys.create(session, owner=owner, scopes=scopes or [Scope.SUBMIT], limits=limits)


def id_of(key: str) -> str:
    return key.split("_")[1]


def authenticate(database: Database, key: str) -> Caller:
    with database.read() as session:
        return keys.authenticate(session, key)


class TestScope:
    @pytest.mark.parametrize(
        ("scope", "allowed"),
        [
            (Scope.READ, {Scope.READ}),
            (Scope.SUBMIT, {Scope.READ, Scope.SUBMIT}),
            (Scope.ADMIN, {Scope.READ, Scope.SUBMIT, Scope.ADMIN}),
        ],
    )
    def test_implies_what_is_less(self, scope: Scope, allowed: set[Scope]) -> None:
        caller = Caller(owner="ann", scopes=frozenset({scope}))
        assert {wanted for wanted in Scope if caller.may(wanted)} == allowed

    def test_of_several_counts_each(self) -> None:
        assert Caller(owner="ann", scopes=frozenset({Scope.READ, Scope.ADMIN})).may(Scope.SUBMIT)


class TestCaller:
    def test_is_refused_what_the_scopes_do_not_allow_and_told_the_remedy(self) -> None:
        caller = Caller(owner="ann", scopes=frozenset({Scope.READ}))
        caller.require(Scope.READ)
        with pytest.raises(Forbidden, match=r"scope submit, yours has read; .* --owner ann --scope submit"):
            caller.require(Scope.SUBMIT)

    def test_may_steer_what_is_its_own(self) -> None:
        Caller(owner="ann", scopes=frozenset({Scope.SUBMIT})).require_owner(Search(id="5f", owner="ann"))

    @pytest.mark.parametrize("owner", ["bob", "Ann", "ann "])
    def test_may_not_steer_what_is_somebody_elses(self, owner: str) -> None:
        with pytest.raises(Forbidden, match=f"search 5f belongs to {owner}; .* scope admin"):
            Caller(owner="ann", scopes=frozenset({Scope.SUBMIT})).require_owner(Search(id="5f", owner=owner))

    @pytest.mark.parametrize("caller", [LOCAL, Caller(owner="ann", scopes=frozenset({Scope.ADMIN}))])
    def test_that_is_an_admin_may_steer_everything(self, caller: Caller) -> None:
        caller.require_owner(Search(id="5f", owner="bob"))

    def test_without_a_key_may_do_everything_within_the_settings(self) -> None:
        assert all(LOCAL.may(scope) for scope in Scope)
        assert LOCAL.limits == Limits()
        assert LOCAL.key_id is None


class TestLimits:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("max_active_searches", 0),
            ("max_active_searches", 2**31),
            ("max_active_searches", 1.5),
            ("max_train_flops_per_day", 0.0),
            ("max_train_flops_per_day", float("inf")),
            ("max_train_flops_per_day", float("nan")),
            ("requests_per_minute", -1),
        ],
    )
    def test_are_numbers_in_their_range(self, name: str, value: Any) -> None:
        with pytest.raises(FieldError, match=f"{name}: expected a"):
            Limits(**{name: value})


class TestCreate:
    def test_makes_keys_that_differ(self, database: Database) -> None:
        made = {make_key(database) for _ in range(20)}
        assert len(made) == 20
        assert all(KEY.fullmatch(key) for key in made)

    def test_keeps_of_the_secret_its_hash_alone(self, database: Database) -> None:
        _, key_id, secret = make_key(database).split("_", 2)
        (row,) = contents(database)["api_keys"]
        assert row[:2] == (key_id, hashlib.sha256(secret.encode()).hexdigest())
        assert secret not in str(row)

    def test_takes_the_time_of_the_database(self, database: Database) -> None:
        with database.write() as session:
            keys.create(session, owner="ann", scopes=[Scope.READ])
            (row,) = keys.all_keys(session)
            assert row.created_at == now(session)
            assert row.revoked_at is None

    @pytest.mark.parametrize("owner", ["", "a b", "a\n", "a\0", "\udc80", "x" * 65])
    def test_refuses_owners_without_a_name_to_be_read(self, database: Database, owner: str) -> None:
        with pytest.raises(FieldError, match="owner: expected 1 to 64 printable characters without spaces"):
            make_key(database, owner)
        assert contents(database)["api_keys"] == []

    @pytest.mark.parametrize("owner", ["a", "ann@example.org", "Änne", "x" * 64])
    def test_takes_any_other_name(self, database: Database, owner: str) -> None:
        assert authenticate(database, make_key(database, owner)).owner == owner

    def test_refuses_a_key_that_is_good_for_nothing(self, database: Database) -> None:
        with (
            pytest.raises(FieldError, match="scopes: expected at least one of read, submit, admin"),
            database.write() as s,
        ):
            keys.create(s, owner="ann", scopes=[])


class TestAuthenticate:
    def test_knows_whom_a_key_stands_for(self, database: Database) -> None:
        make_key(database, "bob", Scope.ADMIN)
        limits = Limits(max_active_searches=3, max_train_flops_per_day=1e18, requests_per_minute=60)
        key = make_key(database, "ann", Scope.READ, Scope.SUBMIT, limits=limits)
        assert authenticate(database, key) == Caller(
            owner="ann", scopes=frozenset({Scope.READ, Scope.SUBMIT}), key_id=id_of(key), limits=limits
        )

    def test_refuses_a_key_with_another_secret(self, database: Database) -> None:
        first, second = make_key(database), make_key(database)
        swapped = f"es_{id_of(first)}_{second.split('_', 2)[2]}"
        with pytest.raises(Unauthorized, match=f"no key {id_of(first)} with this secret"):
            authenticate(database, swapped)

    def test_says_the_same_of_a_wrong_secret_and_of_a_wrong_id(self, database: Database) -> None:
        key = make_key(database)
        refusals = []
        for wrong in (key[:-4] + "AAAA", key.replace(id_of(key), "0" * 12)):
            with pytest.raises(Unauthorized) as refusal:
                authenticate(database, wrong)
            refusals.append(str(refusal.value).replace(id_of(wrong), "ID"))
        assert refusals[0] == refusals[1]

    @pytest.mark.parametrize("almost", ["{}=", "{}\n", " {}", "{}{}", "E{}", "{}\0", "Bearer {}"])
    def test_refuses_what_is_almost_a_key(self, database: Database, almost: str) -> None:
        key = make_key(database)
        with pytest.raises(Unauthorized, match="expected a key that looks like es_<id>_<secret>"):
            authenticate(database, almost.replace("{}", key))

    @given(
        token=st.one_of(
            st.text(),
            st.binary().map(lambda raw: raw.decode("latin-1")),
            st.from_regex(r"es_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", fullmatch=True),
            st.text().map(lambda text: f"es_{text}_{text}"),
        )
    )
    def test_refuses_any_other_text(self, shared: Rows, token: str) -> None:
        with pytest.raises(Unauthorized):
            authenticate(shared.database, token)

    def test_refuses_a_key_that_was_revoked_and_says_so_to_its_holder_alone(self, database: Database) -> None:
        key = make_key(database)
        with database.write() as session:
            keys.revoke(session, id_of(key))
        with pytest.raises(Unauthorized, match="was revoked"):
            authenticate(database, key)
        with pytest.raises(Unauthorized, match="with this secret"):
            authenticate(database, key[:-4] + "AAAA")


class TestRevoke:
    def test_leaves_the_other_keys(self, database: Database) -> None:
        first, second = make_key(database), make_key(database)
        with database.write() as session:
            keys.revoke(session, id_of(first))
        assert authenticate(database, second).key_id == id_of(second)

    def test_keeps_the_time_of_the_first(self, database: Database) -> None:
        key_id = id_of(make_key(database))
        with database.write() as session:
            first = keys.revoke(session, key_id).revoked_at
        with database.write() as session:
            assert keys.revoke(session, key_id).revoked_at == first

    def test_finds_no_key_that_is_not_there(self, database: Database) -> None:
        with pytest.raises(NotFound, match="there is no key '012345678901'"), database.write() as session:
            keys.revoke(session, "012345678901")


class TestValidity:
    def test_of_a_caller_ends_when_the_key_is_revoked(self, database: Database) -> None:
        key = make_key(database)
        caller = authenticate(database, key)
        with database.write() as session:
            assert keys.is_valid(session, caller)
            keys.revoke(session, id_of(key))
        make_key(database)
        with database.read() as session:
            assert not keys.is_valid(session, caller)

    def test_of_a_caller_without_a_key_does_not_end(self, database: Database) -> None:
        with database.read() as session:
            assert keys.is_valid(session, LOCAL)

    def test_of_no_key_is_none(self, database: Database) -> None:
        key_id = id_of(make_key(database))
        with database.write() as session:
            assert keys.any_valid(session)
            keys.revoke(session, key_id)
            session.flush()
            assert not keys.any_valid(session)


@pytest.fixture
def _environment(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EINSEARCH_DATABASE_URL", database_url)


@pytest.mark.usefixtures("_environment")
class TestCommandLine:
    def test_prints_a_new_key_alone_and_explains_it_elsewhere(
        self, database: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        limits = ["--max-active-searches=3", "--max-train-flops-per-day=1e18", "--requests-per-minute=60"]
        assert keys.main(["create", "--owner", "ann", "--scope", "read", "--scope", "admin", *limits]) == 0
        said = capsys.readouterr()
        key = said.out.removesuffix("\n")
        assert KEY.fullmatch(key)
        assert "A key of ann with the scope read, admin. Keep it now" in said.err
        assert key not in said.err
        caller = authenticate(database, key)
        assert caller.scopes == {Scope.READ, Scope.ADMIN}
        assert caller.limits == Limits(max_active_searches=3, max_train_flops_per_day=1e18, requests_per_minute=60)

    def test_makes_keys_that_submit_unless_told_otherwise(
        self, database: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert keys.main(["create", "--owner", "ann"]) == 0
        assert authenticate(database, capsys.readouterr().out.strip()).scopes == {Scope.SUBMIT}

    def test_lists_keys_without_their_secrets(self, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
        first = make_key(database, "ann", limits=Limits(requests_per_minute=6000))
        second = make_key(database, "bob", Scope.ADMIN, Scope.READ)
        with database.write() as session:
            keys.revoke(session, id_of(second))
        assert keys.main(["list"]) == 0
        said = capsys.readouterr()
        lines = [re.split(r"\s{2,}", line) for line in said.out.splitlines()]
        assert lines[0][:3] == ["id", "owner", "scopes"]
        assert {tuple(line[:6]) for line in lines[1:]} == {
            (id_of(first), "ann", "submit", "-", "-", "6000"),
            (id_of(second), "bob", "read, admin", "-", "-", "-"),
        }
        assert {line[0]: line[-1] == "-" for line in lines[1:]} == {id_of(first): True, id_of(second): False}
        assert not any(key.split("_", 2)[2] in said.out + said.err for key in (first, second))

    def test_says_where_keys_come_from_when_there_is_none(
        self, database: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert keys.main(["list"]) == 0
        said = capsys.readouterr()
        assert said.out == ""
        assert "python -m service.keys create --owner NAME" in said.err

    def test_revokes(self, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
        key = make_key(database)
        assert keys.main(["revoke", id_of(key)]) == 0
        assert f"Key {id_of(key)} of ann is refused from now on." in capsys.readouterr().err
        with pytest.raises(Unauthorized):
            authenticate(database, key)

    def test_says_that_there_is_no_such_key(self, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
        assert keys.main(["revoke", "012345678901"]) == 1
        assert "there is no key '012345678901'; see: python -m service.keys list" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "lesson"),
        [
            ([], "required: create | list | revoke"),
            (["explode"], "invalid choice: 'explode'"),
            (["create"], "required: --owner"),
            (["create", "--owner", "a b"], "owner: expected 1 to 64 printable characters without spaces, got 'a b'"),
            (["create", "--owner", "ann", "--scope", "all"], "invalid choice: 'all'"),
            (["create", "--owner", "ann", "--max-active-searches", "0"], "expected a whole number from 1 to"),
            (["create", "--owner", "ann", "--max-active-searches", "few"], "expected a whole number, got 'few'"),
            (["create", "--owner", "ann", "--requests-per-minute", "1e9"], "expected a whole number, got '1e9'"),
            (["create", "--owner", "ann", "--max-train-flops-per-day", "x"], "a number such as 1e18, got 'x'"),
            (["create", "--owner", "ann", "--max-train-flops-per-day", "nan"], "expected a number from 1 to 1e+30"),
            (["revoke"], "required: id"),
        ],
    )
    def test_refuses_what_it_does_not_understand_and_teaches(
        self, database: Database, arguments: list[str], lesson: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as exit_:
            keys.main(arguments)
        assert exit_.value.code == 2
        said = capsys.readouterr()
        assert lesson in " ".join(said.err.split())
        assert said.out == ""
        assert contents(database)["api_keys"] == []

    def test_does_not_repeat_a_key_that_is_given_in_place_of_its_id(
        self, database: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        key = make_key(database)
        with pytest.raises(SystemExit) as exit_:
            keys.main(["revoke", key])
        assert exit_.value.code == 2
        said = capsys.readouterr().err
        assert "the part between es_ and the next _" in said
        assert key not in said


class TestProcess:
    def test_gives_a_shell_its_key(self, tmp_path: Path) -> None:
        environment = {"EINSEARCH_HOME": str(tmp_path)}
        migrate.upgrade(Settings(home=tmp_path).database)
        done = subprocess.run(
            [sys.executable, "-m", "service.keys", "create", "--owner", "ann"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert KEY.fullmatch(done.stdout.removesuffix("\n"))
        assert done.stderr.startswith("A key of ann")


class TestTrouble:
    @pytest.mark.parametrize("arguments", [["list"], ["create", "--owner", "ann"], ["revoke", "012345678901"]])
    def test_with_an_old_schema_is_told_with_its_remedy(
        self, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("EINSEARCH_HOME", str(tmp_path))
        assert keys.main(arguments) == 1
        assert "first run: python -m service.migrate upgrade" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [["list"], ["create", "--owner", "ann"], ["revoke", "012345678901"]])
    def test_with_a_server_is_told_in_one_line_without_the_password(
        self, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("EINSEARCH_DATABASE_URL", f"postgresql+psycopg://user:secret@/name?host={tmp_path}")
        assert keys.main(arguments) == 1
        said = capsys.readouterr().err
        assert said.startswith("cannot open the database postgresql+psycopg://user:***@/name?host=")
        assert "secret" not in said
        assert said.count("\n") == 1

    def test_with_a_file_is_told_in_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("EINSEARCH_HOME", str(tmp_path / "file"))
        assert keys.main(["list"]) == 1
        said = capsys.readouterr().err
        assert said.startswith("cannot open the database sqlite:///")
        assert said.count("\n") == 1

    def test_with_the_settings_is_told(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("EINSEARCH_DATABASE_URL", "mysql://user:secret@host/name")
        assert keys.main(["list"]) == 1
        said = capsys.readouterr().err
        assert said.startswith("settings: ")
        assert "secret" not in said


class TestWhyNotListen:
    def test_is_that_keys_are_needed_and_there_is_none(self, database: Database, database_url: str) -> None:
        settings = Settings(database_url=database_url, host="0.0.0.0")
        assert "einsearch keys create --owner NAME --scope admin" in (keys.why_not_listen(settings) or "")
        key = make_key(database)
        assert keys.why_not_listen(settings) is None
        with database.write() as session:
            keys.revoke(session, id_of(key))
        assert keys.why_not_listen(settings) is not None

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
    def test_is_nothing_where_only_this_machine_can_ask(self, host: str, database_url: str) -> None:
        assert keys.why_not_listen(Settings(database_url=database_url, host=host)) is None
        assert keys.why_not_listen(Settings(database_url=database_url, host=host, require_keys=True)) is not None

    def test_is_an_old_schema_that_can_hold_no_key(self, tmp_path: Path) -> None:
        settings = Settings(home=tmp_path, require_keys=True)
        assert "python -m service.migrate upgrade" in (keys.why_not_listen(settings) or "")

    @pytest.mark.parametrize("require_keys", [True, False])
    def test_is_a_database_that_does_not_answer(self, require_keys: bool, tmp_path: Path) -> None:
        url = f"postgresql+psycopg://user:secret@/name?host={tmp_path}"
        reason = keys.why_not_listen(Settings(database_url=url, require_keys=require_keys))
        assert reason is not None
        assert reason.startswith("cannot open the database postgresql+psycopg://user:***@/name?host=")
        assert "\n" not in reason
