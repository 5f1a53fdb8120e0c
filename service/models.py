"""The tables: searches, trials, attempts, curves, what follows from them; studies; runners; who may, and who is told."""

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, Enum, ForeignKey, Index, MetaData, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from einlayers.dims import Dims
from einlayers.theta import Theta
from search.proxies.registry import ProxySpec
from search.spec import SearchSpec
from search.states import AttemptState, SearchState, StudyState, TrialState
from search.structure import layer_dims
from search.studies.registry import Finding, StudySpec
from search.trial import Coordinates, Outcome
from search.variant import Variant
from service.columns import AsJSON, UTCDateTime


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


LATENCY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: the upper bounds of a latency's bins; one more bin takes what is beyond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long something takes: how often it fell into each bin, and the seconds of all."""

    counts: tuple[int, ...] = (0,) * (len(LATENCY_BOUNDS) + 1)
    seconds: float = 0.0

    def observe(self, seconds: float) -> "Latency":
        """The same with one observation more."""
        bin_ = bisect_left(LATENCY_BOUNDS, seconds)
        counts = (*self.counts[:bin_], self.counts[bin_] + 1, *self.counts[bin_ + 1 :])
        return Latency(counts=counts, seconds=self.seconds + seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerStats:
    """What a runner says of itself with every beat: its slots, whether it waits for more, and if so how many of those there
    is room for; its Ray ("ok", or what is wrong with it) and since when; and how long it takes to ask for a proposal and to
    record what happened."""

    slots: int = 0
    busy: int = 0
    waiting: bool = False
    room: int = 0
    ray: str = "ok"
    ray_since: datetime | None = None
    ask: Latency = field(default_factory=Latency)
    record: Latency = field(default_factory=Latency)

    def found_ray(self, ray: str, at: datetime) -> "RunnerStats":
        """The same after a look at Ray; it has been so since then only if it was otherwise before."""
        return self if ray == self.ray else replace(self, ray=ray, ray_since=at)


class Reason(StrEnum):
    """Why a search is in its state: why it pauses, why it stops or has stopped."""

    BUDGET_TRIALS = "BUDGET_TRIALS"
    BUDGET_SECONDS = "BUDGET_SECONDS"
    BUDGET_TRAIN_FLOPS = "BUDGET_TRAIN_FLOPS"
    SPACE_EXHAUSTED = "SPACE_EXHAUSTED"
    CONVERGED = "CONVERGED"
    USER = "USER"
    TOO_MANY_FAILURES = "TOO_MANY_FAILURES"
    CALIBRATION_FAILED = "CALIBRATION_FAILED"
    ALL_TRIALS_FAILED = "ALL_TRIALS_FAILED"


class PauseMode(StrEnum):
    """What a pause does with trials that run: let them end, or have them write a checkpoint and go on from it later."""

    DRAIN = "drain"
    CHECKPOINT = "checkpoint"


class Origin(StrEnum):
    """Where a trial comes from."""

    SEARCH = "search"
    USER = "user"


Counts = dict[TrialState, int]
"""How many trials of a search are in each state; a state without trials may be absent."""


class Search(Base):
    """A search as it was asked for, where it stands, and who carries it out.

    Every write to a search or to anything below it holds the lock of this row. So ``counts``, ``best_loss``,
    ``train_flops`` (reserved by its trials), ``num_retries``, ``num_reused`` and ``last_event`` are exact, and reading them
    counts nothing.
    A runner holds the lease of a search (``runner_id``, ``epoch``) for as long as the runner's own row has not expired.
    ``task`` tells what its losses are losses of (``search.proxies.identity``), and ``transfers`` the structures for which
    it was checked whether the learning rate transfers. While the learning rate of its proxy is open,
    ``awaits_calibration``, no runner takes it; ``calibration_id`` is the study that says the rate.
    """

    __tablename__ = "searches"
    __table_args__ = (Index(None, "created_at", "id"), Index(None, "owner", "created_at", "id"))

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    owner: Mapped[str] = mapped_column(String(64))
    spec: Mapped[SearchSpec] = mapped_column(AsJSON(SearchSpec, keep=128))
    proxy_kind: Mapped[str] = mapped_column(String(32), index=True)
    state: Mapped[SearchState] = mapped_column(_name(SearchState), default=SearchState.QUEUED, index=True)
    reason: Mapped[Reason | None] = mapped_column(_name(Reason))
    state_since: Mapped[datetime] = mapped_column(UTCDateTime)
    pause_mode: Mapped[PauseMode | None] = mapped_column(_name(PauseMode))
    waiting_for: Mapped[str | None] = mapped_column(Text)
    counts: Mapped[Counts] = mapped_column(AsJSON(Counts), default=dict)
    best_loss: Mapped[float | None]
    train_flops: Mapped[float] = mapped_column(default=0.0)
    num_retries: Mapped[int] = mapped_column(default=0)
    num_reused: Mapped[int] = mapped_column(default=0, server_default="0")
    seconds_before: Mapped[float] = mapped_column(default=0.0)
    last_event: Mapped[int] = mapped_column(BigInteger, default=0)
    task: Mapped[str] = mapped_column(String(32), index=True)
    transfers: Mapped[dict[str, bool]] = mapped_column(AsJSON(dict[str, bool]), default=dict)
    awaits_calibration: Mapped[bool] = mapped_column(default=False, index=True)
    calibration_id: Mapped[str | None] = mapped_column(String(32))
    runner_id: Mapped[str | None] = mapped_column(String(32), index=True)
    epoch: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    @property
    def num_trials(self) -> int:
        """How many trials there are."""
        return sum(self.counts.values())

    @property
    def num_paid(self) -> int:
        """How many trials the budget pays for: all but those whose results were taken over from other searches."""
        return self.num_trials - self.num_reused

    @property
    def num_finished(self) -> int:
        """How many trials have ended, one way or another."""
        return sum(count for state, count in self.counts.items() if state.is_final)

    @property
    def num_alive(self) -> int:
        """How many trials run or wait."""
        return self.num_trials - self.num_finished

    @property
    def num_unproposed(self) -> int:
        """How many more trials the budget pays for; a budget of time alone pays for any number."""
        more = self._num_more
        return 100_000 if more is None else max(0, more)

    @property
    def max_trials(self) -> int | None:
        """How many trials there will be, if those to come train to the end; None where only time limits them."""
        more = self._num_more
        return None if more is None else self.num_trials + more

    @property
    def _num_more(self) -> int | None:
        return self.spec.num_trials(self.spec.budget, num_begun=self.num_paid, spent=self.train_flops)

    def seconds_at(self, time: datetime) -> float:
        """Wall-clock seconds that the search has run by ``time``, pauses not counted."""
        running = self.state is SearchState.RUNNING
        return self.seconds_before + (max(0.0, (time - self.state_since).total_seconds()) if running else 0.0)

    def to(self, state: SearchState, at: datetime, reason: Reason | None = None) -> None:
        """Enter ``state`` for ``reason``.

        Raises:
            IllegalTransition: the current state does not lead to it.
        """
        new = self.state.to(state)
        self.seconds_before = self.seconds_at(at)
        self.state, self.reason, self.state_since = new, reason, at
        self.waiting_for = self.pause_mode = None
        if state is SearchState.RUNNING and self.started_at is None:
            self.started_at = at
        if state.is_final:
            self.finished_at = at


def operator_name(theta: Theta) -> str:
    """The same for all thetas of the same operators."""
    return " ".join(f"{exponent:.9g}" for exponent in theta.canonical().exponents)


METRIC_COLUMNS = ("loss", "omega", "psi", "nu", "params", "macs", "latency", "peak_memory", "seconds")
"""What lists of trials can be filtered and ordered by. Each has an index within a search, and one over all searches."""


_FILTERED = ("omega", "psi", "nu", "params", "macs", "family", "origin")
"""What the indexes of the loss carry along: a filter that few trials pass is then decided without reading the others."""


class Trial(Base):
    """One structure, trained once from one seed: what is known of it beforehand, and what came out.

    ``changed`` is the number of the search's event that told of the last change: what is newer than a number seen before
    is found without reading the rest. ``alone``: it ran out of memory, and its next attempt gets a device to itself.
    ``train_flops`` are reserved, and those that were used once it has been pruned; ``expected_loss`` is what the sampler
    sees of it then. ``latency`` and ``peak_memory``: of a training step, where the search asks for them
    (``search.trial.StepCost``). ``reused_from``: the trial of an earlier search that was trained in its place; what was
    measured is that one's, and ``train_flops`` are 0. ``variant``: what it changes of the model of its search's proxy.
    """

    __tablename__ = "trials"
    __table_args__ = (
        UniqueConstraint("search_id", "number"),
        # The promise that no structure is trained twice unless a replicate is wanted.
        UniqueConstraint("search_id", "digest", "replicate"),
        Index(None, "search_id", "state", "number"),
        Index(None, "search_id", "changed"),
        Index("ix_trials_search_id_loss_number", "search_id", "loss", "number", *_FILTERED),
        Index("ix_trials_loss_id", "loss", "id", "search_id", *_FILTERED),
        *(Index(None, "search_id", metric, "number") for metric in METRIC_COLUMNS if metric != "loss"),
        *(Index(None, metric, "id") for metric in METRIC_COLUMNS if metric != "loss"),
    )

    id: Mapped[str] = mapped_column(String(48), primary_key=True)
    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id"))
    number: Mapped[int]
    replicate: Mapped[int]
    origin: Mapped[Origin] = mapped_column(_name(Origin))
    theta: Mapped[Theta] = mapped_column(AsJSON(Theta))
    family: Mapped[str] = mapped_column(String(16), index=True)
    width: Mapped[int]
    digest: Mapped[str] = mapped_column(String(32))
    omega: Mapped[float]
    psi: Mapped[float]
    nu: Mapped[float]
    params: Mapped[int] = mapped_column(BigInteger)
    macs: Mapped[int] = mapped_column(BigInteger)
    train_flops: Mapped[float]
    base_lr: Mapped[float]
    seed: Mapped[int] = mapped_column(BigInteger)
    history_size: Mapped[int]
    reused_from: Mapped[str | None] = mapped_column(String(48))
    state: Mapped[TrialState] = mapped_column(_name(TrialState), default=TrialState.PROPOSED)
    reason: Mapped[str | None] = mapped_column(Text)
    state_since: Mapped[datetime] = mapped_column(UTCDateTime)
    changed: Mapped[int] = mapped_column(BigInteger)
    alone: Mapped[bool] = mapped_column(default=False)
    loss: Mapped[float | None]
    expected_loss: Mapped[float | None]
    latency: Mapped[float | None]
    peak_memory: Mapped[int | None] = mapped_column(BigInteger)
    seconds: Mapped[float | None]
    cpu_seconds: Mapped[float | None]
    coordinates: Mapped[dict[str, Coordinates] | None] = mapped_column(AsJSON(dict[str, Coordinates]))
    variant: Mapped[Variant | None] = mapped_column(AsJSON(Variant))
    finish_order: Mapped[int | None]
    excluded_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    excluded_reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    search: Mapped[Search] = relationship(lazy="raise")
    attempts: Mapped[list["Attempt"]] = relationship(lazy="raise", order_by="Attempt.number", back_populates="trial")

    def proxy_in(self, search: Search) -> ProxySpec:
        """What it is trained on: the proxy of its search, with what its own run changes."""
        differs = self.state is TrialState.PRUNED or self.reused_from is not None
        train_flops = search.spec.proxy.train_flops if differs else self.train_flops
        return replace(self._model_in(search), train_flops=train_flops, base_lr=self.base_lr)

    def _model_in(self, search: Search) -> ProxySpec:
        return search.spec.proxy if self.variant is None else self.variant.on(search.spec.proxy)

    @property
    def transfers(self) -> bool | None:
        """Whether the learning rate transfers to this structure; None where nobody has checked, as of every variant."""
        if self.variant is not None:
            return None
        return self.search.transfers.get(operator_name(self.theta)) if self.search.transfers else None

    @property
    def dims(self) -> dict[str, Dims]:
        """The axis sizes of each kind of layer, by its name."""
        return layer_dims(self.theta, self._model_in(self.search), self.width)


class WarmStart(Base):
    """What a search has inherited from one that was submitted before it, written down once: the results among the first
    ``num_finished`` trials to end there. ``num_results`` counted at that time, ``num_in_space`` of them lie in the search's
    own subspace, where its sampler sees them.
    """

    __tablename__ = "warm_starts"

    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    source_id: Mapped[str] = mapped_column(ForeignKey("searches.id"))
    num_finished: Mapped[int]
    num_results: Mapped[int]
    num_in_space: Mapped[int]


class Attempt(Base):
    """One run of a trial on one slot. Only the attempt that is RUNNING, and only for the runner that holds its lease
    (``runner_id``, ``epoch``), may write to its trial. What an attempt says after it was given up is kept as ``late``.
    """

    __tablename__ = "attempts"
    __table_args__ = (UniqueConstraint("trial_id", "number"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    trial_id: Mapped[str] = mapped_column(ForeignKey("trials.id"))
    number: Mapped[int]
    slot: Mapped[str] = mapped_column(String(64))
    runner_id: Mapped[str] = mapped_column(String(32))
    epoch: Mapped[int]
    state: Mapped[AttemptState] = mapped_column(_name(AttemptState), default=AttemptState.RUNNING, index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    seconds: Mapped[float | None]
    resumed_step: Mapped[int | None]
    late: Mapped[Outcome | None] = mapped_column(AsJSON(Outcome))
    late_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    started_at: Mapped[datetime] = mapped_column(UTCDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    trial: Mapped[Trial] = relationship(lazy="raise", back_populates="attempts")

    @property
    def is_to_be_pruned(self) -> bool:
        """Whether it runs and was found not to be worth going on: the reason is there before the end."""
        return self.state is AttemptState.RUNNING and self.reason is not None


class Measurement(Base):
    """A point of the learning curve of one attempt."""

    __tablename__ = "measurements"

    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    examples: Mapped[int] = mapped_column(BigInteger)
    train_flops: Mapped[float]
    loss: Mapped[float]


class Result(Base):
    """What a search knows of one structure: the mean loss of its completed trials, and the sum of squares around it.

    Kept up to date with every completion, so that the best structures are read off an index, and those that do not rest on a
    single seed off another one. ``trial_id`` is the first of the trials; ``changed`` as in ``Trial``.
    """

    __tablename__ = "results"
    __table_args__ = (
        Index(None, "search_id", "loss_mean", "digest"),
        Index(
            "ix_results_with_replicates",
            *("search_id", "loss_mean", "digest"),
            sqlite_where=text("num_trials > 1"),
            postgresql_where=text("num_trials > 1"),
        ),
        Index(None, "search_id", "changed"),
    )

    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(32), primary_key=True)
    trial_id: Mapped[str] = mapped_column(ForeignKey("trials.id"))
    num_trials: Mapped[int]
    loss_mean: Mapped[float]
    loss_m2: Mapped[float]
    changed: Mapped[int] = mapped_column(BigInteger)

    trial: Mapped[Trial] = relationship(lazy="raise")


class ParetoFront(Base):
    """The structures of a search that no other beats in all of some metrics, up to the change ``seen``."""

    __tablename__ = "pareto_fronts"

    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id"), primary_key=True)
    metrics: Mapped[str] = mapped_column(String(200), primary_key=True)
    seen: Mapped[int] = mapped_column(BigInteger)
    digests: Mapped[list[str]] = mapped_column(AsJSON(list[str]))


class Study(Base):
    """A measurement of a proxy: what was asked for, the searches that carry it out, and what was found.

    ``task`` tells which proxies it says something about, ``proxy`` which one exactly, once its learning rate is known.
    """

    __tablename__ = "studies"
    __table_args__ = (
        Index(None, "kind", "created_at", "id"),
        Index(None, "kind", "task"),
        Index(None, "kind", "proxy"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(200))
    owner: Mapped[str] = mapped_column(String(64))
    spec: Mapped[StudySpec] = mapped_column(AsJSON(StudySpec, keep=128))
    task: Mapped[str] = mapped_column(String(32))
    proxy: Mapped[str | None] = mapped_column(String(32))
    state: Mapped[StudyState] = mapped_column(_name(StudyState), default=StudyState.RUNNING, index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    finding: Mapped[Finding | None] = mapped_column(AsJSON(Finding))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    parts: Mapped[list["StudyPart"]] = relationship(lazy="raise", order_by="StudyPart.number")


class StudyPart(Base):
    """A plan of a study, and the search that carries it out, which studies that plan the same share. ``digest``: the same
    for the same plans."""

    __tablename__ = "study_parts"

    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id"), primary_key=True)
    role: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int]
    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id"))
    digest: Mapped[str] = mapped_column(String(32), index=True)

    search: Mapped[Search] = relationship(lazy="raise")


class Event(Base):
    """What happened to a search or to its trials; numbered from 1 within the search, without gaps, in order of commit."""

    __tablename__ = "events"

    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id"), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    trial_id: Mapped[str | None] = mapped_column(String(48))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    at: Mapped[datetime] = mapped_column(UTCDateTime)


class Runner(Base):
    """A runner and its lease: until ``expires_at``, by the database's clock, what it holds is nobody else's."""

    __tablename__ = "runners"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    host: Mapped[str] = mapped_column(String(200))
    pid: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(UTCDateTime)
    seen_at: Mapped[datetime] = mapped_column(UTCDateTime)
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
    stats: Mapped[RunnerStats] = mapped_column(AsJSON(RunnerStats))


class ApiKey(Base):
    """A key to the API: who it stands for and what it allows. Of its secret there is only the hash."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64))
    owner: Mapped[str] = mapped_column(String(64), index=True)
    scopes: Mapped[list[str]] = mapped_column(AsJSON(list[str]))
    max_active_searches: Mapped[int | None]
    max_train_flops_per_day: Mapped[float | None]
    requests_per_minute: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class IdempotencyKey(Base):
    """A request that was answered, by the key that its sender chose; written in one transaction with what it made."""

    __tablename__ = "idempotency_keys"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    status: Mapped[int]
    location: Mapped[str | None] = mapped_column(String(200))
    answer: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)


class Webhook(Base):
    """Where the events of a search, or of all searches of an owner, are sent; ``secret`` signs what is sent."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    url: Mapped[str] = mapped_column(String(2000))
    secret: Mapped[str] = mapped_column(String(100))
    search_id: Mapped[str | None] = mapped_column(ForeignKey("searches.id"))
    kinds: Mapped[list[str]] = mapped_column(AsJSON(list[str]))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)


class Delivery(Base):
    """How far a webhook has been told of a search's events, and when to try again after a failure."""

    __tablename__ = "deliveries"

    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"), primary_key=True)
    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id"), primary_key=True)
    delivered: Mapped[int] = mapped_column(BigInteger)
    failures: Mapped[int]
    not_before: Mapped[datetime] = mapped_column(UTCDateTime)
    last_error: Mapped[str | None] = mapped_column(Text)
