"""Who may do what: API keys, and the callers they stand for. ``python -m service.keys create | list | revoke``.

A key is ``es_<id>_<secret>``. The id is public: it finds the row, and names the key in lists and limits. The secret is 32
random bytes, and the database holds its SHA-256 alone. A slow hash would add nothing: it is for passwords, which can be
guessed; 256 random bits cannot, however fast the guesses are. A fast one keeps a request cheap.

A key is looked up with every request and remembered nowhere, so one that is revoked is refused from the next request on.
"""

import argparse
import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import ValidationError
from sqlalchemy import Exists, exists, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from einlayers.errors import FieldError, shorten
from search.checks import check_number, check_whole
from service.clock import now
from service.database import Database
from service.errors import Forbidden, NotFound, Unauthorized
from service.migrate import is_current
from service.models import ApiKey, Search
from service.settings import Settings


class Scope(StrEnum):
    """What a key is good for: to look; to submit searches and steer one's own; to do everything, to everybody's."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


_IMPLIED = {
    Scope.READ: frozenset({Scope.READ}),
    Scope.SUBMIT: frozenset({Scope.READ, Scope.SUBMIT}),
    Scope.ADMIN: frozenset(Scope),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a key allows; None: as much as the settings do.

    Raises:
        FieldError: a limit is not a number in its range.
    """

    max_active_searches: int | None = None
    max_train_flops_per_day: float | None = None
    requests_per_minute: int | None = None

    def __post_init__(self) -> None:
        if self.max_active_searches is not None:
            check_whole("max_active_searches", self.max_active_searches, 1, 1_000_000)
        if self.max_train_flops_per_day is not None:
            check_number("max_train_flops_per_day", self.max_train_flops_per_day, 1, 1e30)
        if self.requests_per_minute is not None:
            check_whole("requests_per_minute", self.requests_per_minute, 1, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, and what they may do and how much of it; without a key, where none is needed, ``key_id`` is None."""

    owner: str
    scopes: frozenset[Scope]
    key_id: str | None = None
    limits: Limits = field(default_factory=Limits)

    def may(self, scope: Scope) -> bool:
        """Whether one of the caller's scopes is this one or implies it."""
        return any(scope in _IMPLIED[own] for own in self.scopes)

    def require(self, scope: Scope) -> None:
        """Go on only with a scope.

        Raises:
            Forbidden: the caller has it not.
        """
        if not self.may(scope):
            raise Forbidden(
                f"this needs a key with the scope {scope}, yours has {_listed(self.scopes)}; who runs the service can "
                f"create one with: einsearch keys create --owner {self.owner} --scope {scope}"
            )

    def require_owner(self, search: Search) -> None:
        """Go on only with a search of the caller's own, or as admin.

        Raises:
            Forbidden: it is somebody else's.
        """
        if search.owner != self.owner and not self.may(Scope.ADMIN):
            raise Forbidden(
                f"search {search.id} belongs to {search.owner}; this needs a key of that owner, or one with the scope "
                f"{Scope.ADMIN}"
            )


LOCAL = Caller(owner="local", scopes=frozenset(Scope))
"""Whoever asks without a key where none is needed: only this machine can."""

_KEY = re.compile(r"es_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_ID = re.compile(r"[0-9a-f]{12}")


def create(session: Session, *, owner: str, scopes: Iterable[Scope], limits: Limits | None = None) -> str:
    """A new key, as text: it is not stored, and cannot be shown again.

    Raises:
        FieldError: the owner is not a name, or there is no scope.
    """
    if not (1 <= len(owner) <= 64 and owner.isprintable() and " " not in owner):
        raise FieldError("owner", expected="1 to 64 printable characters without spaces", got=owner)
    if not (wanted := frozenset(scopes)):
        raise FieldError("scopes", expected=f"at least one of {_listed(Scope)}", got=[])
    limits = limits or Limits()
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    session.add(
        ApiKey(
            id=key_id,
            hash=_hash(secret),
            owner=owner,
            scopes=[scope for scope in Scope if scope in wanted],
            max_active_searches=limits.max_active_searches,
            max_train_flops_per_day=limits.max_train_flops_per_day,
            requests_per_minute=limits.requests_per_minute,
            created_at=now(session),
        )
    )
    session.flush()
    return f"es_{key_id}_{secret}"


def authenticate(session: Session, token: str) -> Caller:
    """The caller that a key stands for; any text may come.

    Raises:
        Unauthorized: it is not a key, none of this service, or revoked.
    """
    match = _KEY.fullmatch(token)
    if match is None:
        raise Unauthorized("expected a key that looks like es_<id>_<secret>, all of it, as it was shown once")
    key_id, secret = match.groups()
    row = session.get(ApiKey, key_id)
    if row is None or not hmac.compare_digest(row.hash, _hash(secret)):
        raise Unauthorized(f"there is no key {key_id} with this secret here; see: einsearch keys list")
    if row.revoked_at is not None:
        raise Unauthorized(f"key {key_id} was revoked; who runs the service can create another")
    return Caller(owner=row.owner, scopes=frozenset(map(Scope, row.scopes)), key_id=row.id, limits=_limits(row))


def is_valid(session: Session, caller: Caller) -> bool:
    """Whether the caller's key has not been revoked since; for answers that take longer than a moment."""
    return caller.key_id is None or session.scalar(select(_valid().where(ApiKey.id == caller.key_id))) is True


def any_valid(session: Session) -> bool:
    """Whether there is a key that can be used."""
    return session.scalar(select(_valid())) is True


def all_keys(session: Session) -> Sequence[ApiKey]:
    """The keys, oldest first, revoked ones too."""
    return session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id)).all()


def revoke(session: Session, key_id: str) -> ApiKey:
    """Refuse a key from now on; one that is revoked already stays so.

    Raises:
        NotFound: there is none with this id.
    """
    row = session.get(ApiKey, key_id, with_for_update=True)
    if row is None:
        raise NotFound("key", key_id)
    row.revoked_at = row.revoked_at or now(session)
    return row


def why_not_listen(settings: Settings) -> str | None:
    """Why an API with these settings must not start, in one line: its database does not answer, or nobody could use it."""
    try:
        with closing(Database(settings.database)) as database:
            database.ping()
            return _why_unusable(database) if settings.needs_keys else None
    except (OperationalError, OSError) as error:
        return _unreachable(settings, error)


def _why_unusable(database: Database) -> str | None:
    if not is_current(database):
        return _OLD_SCHEMA
    with database.read() as session:
        if any_valid(session):
            return None
    return (
        "a service that other machines can reach, or that is told so by EINSEARCH_REQUIRE_KEYS, asks for API keys, and "
        "there is none that could be used; create one with: einsearch keys create --owner NAME --scope admin"
    )


_OLD_SCHEMA = "the schema of the database is not current; first run: python -m service.migrate upgrade"


def _unreachable(settings: Settings, error: OperationalError | OSError) -> str:
    reason = str(error.orig if isinstance(error, OperationalError) else error).strip().splitlines()[0]
    return f"cannot open the database {settings.shown_database}: {reason}"


def _valid() -> Exists:
    return exists().where(ApiKey.revoked_at.is_(None))


def _limits(row: ApiKey) -> Limits:
    return Limits(
        max_active_searches=row.max_active_searches,
        max_train_flops_per_day=row.max_train_flops_per_day,
        requests_per_minute=row.requests_per_minute,
    )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _listed(scopes: Iterable[Scope]) -> str:
    listed = set(scopes)
    return ", ".join(scope for scope in Scope if scope in listed)


def main(arguments: list[str]) -> int:
    """The command line; the status to exit with.

    Raises:
        SystemExit: an argument is none, with status 2.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        settings = Settings()
    except ValidationError as error:
        return _fail(f"settings: {error}")
    try:
        with closing(Database(settings.database)) as database:
            if not is_current(database):
                return _fail(_OLD_SCHEMA)
            output, explanation = options.command(database, options)
    except FieldError as error:
        parser.error(str(error))
    except NotFound as error:
        return _fail(f"{error}; see: python -m service.keys list")
    except (OperationalError, OSError) as error:
        return _fail(_unreachable(settings, error))
    # The output alone goes to standard output, so that a shell can keep a key: KEY=$(python -m service.keys create ...)
    print(output, end="")
    print(explanation, end="", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service.keys", description="The keys to the API of this service.")
    commands = parser.add_subparsers(required=True, metavar="create | list | revoke")
    new = commands.add_parser("create", help="create a key and print it: it cannot be shown again")
    new.add_argument("--owner", required=True, help="whose searches are submitted with the key")
    new.add_argument(
        "--scope",
        action="append",
        choices=[scope.value for scope in Scope],
        help="what the key is good for, more than once for more; submit includes read, admin everything; default submit",
    )
    new.add_argument("--max-active-searches", type=_whole, metavar="N", help="how many searches may be unfinished")
    new.add_argument("--max-train-flops-per-day", type=_number, metavar="X", help="over 24 hours, such as 1e18")
    new.add_argument("--requests-per-minute", type=_whole, metavar="N", help="how many requests are answered")
    new.set_defaults(command=_create)
    commands.add_parser("list", help="list the keys, without their secrets").set_defaults(command=_list)
    old = commands.add_parser("revoke", help="refuse a key from now on")
    old.add_argument("id", type=_id, help="the id of the key; see list")
    old.set_defaults(command=_revoke)
    return parser


def _create(database: Database, options: argparse.Namespace) -> tuple[str, str]:
    scopes = [Scope(name) for name in options.scope or [Scope.SUBMIT]]
    limits = Limits(
        max_active_searches=options.max_active_searches,
        max_train_flops_per_day=options.max_train_flops_per_day,
        requests_per_minute=options.requests_per_minute,
    )
    with database.write() as session:
        key = create(session, owner=options.owner, scopes=scopes, limits=limits)
    explanation = (
        f"A key of {options.owner} with the scope {_listed(scopes)}. Keep it now: it is not stored and cannot be "
        f"shown again.\nSend it with every request: Authorization: Bearer {key[:16]}...\n"
    )
    return f"{key}\n", explanation


def _list(database: Database, options: argparse.Namespace) -> tuple[str, str]:
    with database.read() as session:
        keys = all_keys(session)
    if not keys:
        return "", "There is no key yet; create one with: python -m service.keys create --owner NAME --scope admin\n"
    table = [_HEADINGS, *map(_cells, keys)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return "".join(f"{line.rstrip()}\n" for line in lines), ""


_HEADINGS = ("id", "owner", "scopes", "active searches", "FLOPs a day", "requests a minute", "created", "revoked")


def _cells(key: ApiKey) -> tuple[str, ...]:
    limits = (key.max_active_searches, key.max_train_flops_per_day, key.requests_per_minute)
    shown = ("-" if limit is None else f"{limit:.12g}" for limit in limits)
    times = ("-" if time is None else f"{time:%Y-%m-%d %H:%M}" for time in (key.created_at, key.revoked_at))
    return (key.id, key.owner, _listed(map(Scope, key.scopes)), *shown, *times)


def _revoke(database: Database, options: argparse.Namespace) -> tuple[str, str]:
    with database.write() as session:
        key = revoke(session, options.id)
    return "", f"Key {key.id} of {key.owner} is refused from now on.\n"


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {shorten(text)!a}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number such as 1e18, got {shorten(text)!a}") from None


def _id(text: str) -> str:
    if _ID.fullmatch(text) is None:  # it may be a whole key, so it is not repeated
        raise argparse.ArgumentTypeError("expected the id of a key, which is the part between es_ and the next _")
    return text


def _fail(reason: str) -> int:
    print(reason, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
