"""The tables: searches, their trials, the attempts at each trial, the learning curves."""

from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import BigInteger, Enum, ForeignKey, Index, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from einlayers.dims import Dims
from einlayers.theta import Theta
from search.spec import SearchSpec
from search.states import AttemptState, SearchState, TrialState
from search.structure import layer_dims
from service.columns import AsJSON, UTCDateTime


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def _name(names: type[StrEnum]) -> Enum:
    return Enum(names, native_enum=False, create_constraint=False, length=32)


class Base(DeclarativeBase):
    """The root of the tables; names every constraint, so that migrations can."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class StopReason(StrEnum):
    """Why a search stopped."""

    BUDGET_TRIALS = "BUDGET_TRIALS"
    SPACE_EXHAUSTED = "SPACE_EXHAUSTED"
    USER = "USER"
    ALL_TRIALS_FAILED = "ALL_TRIALS_FAILED"


class Search(Base):
    """A search as it was asked for, and where it stands."""

    __tablename__ = "searches"
    __table_args__ = (Index(None, "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    spec: Mapped[SearchSpec] = mapped_column(AsJSON(SearchSpec))
    proxy_kind: Mapped[str] = mapped_column(String(32), index=True)
    state: Mapped[SearchState] = mapped_column(_name(SearchState), default=SearchState.QUEUED, index=True)
    reason: Mapped[StopReason | None] = mapped_column(_name(StopReason))
    waiting_for: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    started_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    def to(self, state: SearchState) -> None:
        """Enter ``state``.

        Raises:
            IllegalTransition: the current state does not lead to it.
        """
        self.state = self.state.to(state)
        if state is SearchState.RUNNING and self.started_at is None:
            self.started_at = now()
        if state.is_final:
            self.finished_at = now()


class Trial(Base):
    """One structure, trained once from one seed: what is known of it beforehand, and what came out."""

    __tablename__ = "trials"
    __table_args__ = (
        UniqueConstraint("search_id", "number"),
        # The promise that no structure is trained twice unless a replicate is wanted.
        UniqueConstraint("search_id", "digest", "replicate"),
        Index(None, "search_id", "state"),
        Index(None, "search_id", "loss"),
    )

    id: Mapped[str] = mapped_column(String(48), primary_key=True)
    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id"))
    number: Mapped[int]
    replicate: Mapped[int]
    theta: Mapped[Theta] = mapped_column(AsJSON(Theta))
    family: Mapped[str] = mapped_column(String(16), index=True)
    width: Mapped[int]
    digest: Mapped[str] = mapped_column(String(32))
    omega: Mapped[float] = mapped_column(index=True)
    psi: Mapped[float] = mapped_column(index=True)
    nu: Mapped[float] = mapped_column(index=True)
    params: Mapped[int] = mapped_column(BigInteger, index=True)
    macs: Mapped[int] = mapped_column(BigInteger, index=True)
    train_flops: Mapped[float]
    seed: Mapped[int] = mapped_column(BigInteger)
    history_size: Mapped[int]
    state: Mapped[TrialState] = mapped_column(_name(TrialState), default=TrialState.PROPOSED)
    reason: Mapped[str | None] = mapped_column(Text)
    loss: Mapped[float | None] = mapped_column(index=True)
    finish_order: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    search: Mapped[Search] = relationship(lazy="raise")
    attempts: Mapped[list["Attempt"]] = relationship(lazy="raise", order_by="Attempt.number", back_populates="trial")

    @property
    def dims(self) -> dict[str, Dims]:
        """The axis sizes of each kind of layer, by its name."""
        return layer_dims(self.theta, self.search.spec.proxy, self.width)


class Attempt(Base):
    """One run of a trial on one slot. Only the attempt that is RUNNING may write to its trial."""

    __tablename__ = "attempts"
    __table_args__ = (UniqueConstraint("trial_id", "number"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    trial_id: Mapped[str] = mapped_column(ForeignKey("trials.id"))
    number: Mapped[int]
    slot: Mapped[str] = mapped_column(String(64))
    state: Mapped[AttemptState] = mapped_column(_name(AttemptState), default=AttemptState.RUNNING, index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    seconds: Mapped[float | None]
    started_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    trial: Mapped[Trial] = relationship(lazy="raise", back_populates="attempts")


class Measurement(Base):
    """A point of the learning curve of one attempt."""

    __tablename__ = "measurements"

    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    tokens: Mapped[int] = mapped_column(BigInteger)
    train_flops: Mapped[float]
    loss: Mapped[float]
