"""What the API answers, as types of the client: plain dictionaries, so that whatever it adds later does no harm.

Times are ISO 8601 in UTC, losses are held out, ``macs`` are per example (of text: a token), forward.
"""

from typing import Any, Literal, NotRequired, TypedDict

FINAL_STATES = frozenset({"COMPLETED", "CANCELLED", "FAILED"})
"""The states of a search that nothing follows."""

ExportFormat = Literal["csv", "jsonl", "parquet"]
PauseMode = Literal["drain", "checkpoint"]


class Progress(TypedDict):
    """How far a search is; ``max_trials`` is None where only time limits it, ``seconds`` are those without its pauses,
    ``train_flops`` those that its trials have reserved; ``num_reused`` trials took results of earlier searches over."""

    max_trials: int | None
    finished: int
    counts: dict[str, int]
    best_loss: float | None
    seconds: float
    train_flops: float
    num_retries: int
    num_reused: int


class Search(TypedDict):
    """A search as it was asked for, where it stands, since when and why; ``warm_starts``: what it has inherited."""

    id: str
    name: str
    owner: str
    state: str
    reason: str | None
    state_since: str
    pause_mode: PauseMode | None
    waiting_for: str | None
    runner_id: str | None
    progress: Progress
    last_event: int
    spec: dict[str, Any]
    calibration_id: str | None
    warm_starts: list[dict[str, Any]]
    fidelity: dict[str, Any] | Literal["unmeasured"]
    created_at: str
    started_at: str | None
    finished_at: str | None


StudyKind = Literal["baseline", "calibration", "fidelity_study", "scaling_study", "transfer_check"]
"""What studies there are."""


class Study(TypedDict):
    """A study as it was asked for, the searches that carry it out, by their parts in it, and what it has found, once they
    have ended; ``reason`` says why there is nothing."""

    id: str
    kind: StudyKind
    name: str
    owner: str
    state: Literal["RUNNING", "COMPLETED", "FAILED"]
    reason: str | None
    searches: dict[str, str]
    spec: dict[str, Any]
    finding: dict[str, Any] | None
    created_at: str
    finished_at: str | None


class Attempt(TypedDict):
    """One run of a trial; ``resumed_step`` is that of the checkpoint it went on from; ``late`` counted for nothing."""

    number: int
    state: str
    slot: str
    runner_id: str
    reason: str | None
    seconds: float | None
    resumed_step: int | None
    late: dict[str, Any] | None
    late_at: str | None
    started_at: str
    finished_at: str | None


class Trial(TypedDict):
    """A structure, trained once from one seed; ``dims`` are the axis sizes of each kind of layer, ``latency`` (seconds) and
    ``peak_memory`` (bytes) what a training step costs, where the search minimises one of them. ``reused_from``: the
    trial of an earlier search that was trained in its place. ``variant``: what it changes of the model of its search's
    proxy."""

    id: str
    search_id: str
    number: int
    replicate: int
    origin: str
    state: str
    reason: str | None
    state_since: str
    family: str
    theta: dict[str, float]
    variant: dict[str, Any] | None
    width: int
    dims: dict[str, dict[str, Any]]
    omega: float
    psi: float
    nu: float
    params: int
    macs: int
    train_flops: float
    base_lr: float
    transfers: bool | None
    seed: int
    history_size: int
    reused_from: str | None
    loss: float | None
    expected_loss: float | None
    latency: float | None
    peak_memory: int | None
    seconds: float | None
    cpu_seconds: float | None
    excluded_at: str | None
    excluded_reason: str | None
    attempts: list[Attempt]
    created_at: str
    finished_at: str | None


class Structure(Trial):
    """A trial among those of all searches, with the proxy that makes its loss comparable, or not, to another's."""

    proxy: dict[str, Any]


class Measurement(TypedDict):
    """A point of the learning curve."""

    step: int
    examples: int
    train_flops: float
    loss: float


class Replicate(TypedDict):
    """One of the seeds that a structure was trained from."""

    trial_id: str
    seed: int
    loss: float


class Ranked(TypedDict):
    """A structure with its place, the mean loss of its replicates, and the first of its trials; ``better_than_next``: the
    probability that it is better than the next of the best, None where that cannot be said."""

    rank: int
    loss: float
    loss_sd: float | None
    better_than_next: float | None
    multiplier: dict[str, Any] | None
    replicates: list[Replicate]
    trial: Trial


class HypervolumePoint(TypedDict):
    """The hypervolume once a trial had ended, and the training FLOPs that all trials had taken by then."""

    number: int
    finished_at: str
    train_flops: float
    hypervolume: float


class Hypervolume(TypedDict):
    """How a Pareto front grew, in natural logarithms of the ratios to ``reference``; None while no trial has completed."""

    reference: dict[str, float] | None
    points: list[HypervolumePoint]


class Best(TypedDict):
    """The best structures of a search, best first, and the probability that the first of them is the best of all, None where
    that cannot be said."""

    items: list[Ranked]
    confidence: float | None


class Compared(TypedDict):
    """One of two structures that are compared, by a trial of it."""

    trial_id: str
    num_trials: int
    loss: float


class Comparison(TypedDict):
    """The probability that ``a`` is better than ``b``, and the difference of the logs of their losses (on the ``plain``
    scale, of the losses) with its 95% interval; None where nothing is known of the noise between seeds."""

    a: Compared
    b: Compared
    probability: float | None
    difference: dict[str, float] | None
    noise_sd: float | None
    scale: Literal["log", "plain"] | None


class Estimate(TypedDict):
    """What a search would cost at most, None where only time limits it, its dense baseline, and its seeds."""

    train_flops: float | None
    max_trials: int | None
    baseline: dict[str, Any]
    seeds: list[dict[str, Any]]


class Event(TypedDict):
    """What happened to a search, or to one of its trials; numbered from 1 within the search, without gaps."""

    number: int
    kind: str
    search_id: str
    trial_id: str | None
    at: str
    data: dict[str, Any]


class Webhook(TypedDict):
    """Where events are sent; without ``search_id`` those of all searches of its owner."""

    id: str
    url: str
    search_id: str | None
    kinds: list[str]
    created_at: str


class NewWebhook(Webhook):
    """A new webhook with the secret that signs what it is sent; it is not shown again."""

    secret: str


class Delivery(TypedDict):
    """How far a webhook has been told of a search: up to which event, how often the next one failed, when it is tried."""

    search_id: str
    delivered: int
    failures: int
    last_error: str | None
    not_before: str


class WebhookDetail(Webhook):
    """A webhook, and how far it has been told of its searches."""

    deliveries: list[Delivery]


class WebhookTest(TypedDict):
    """What a receiver answered to a test, or why there was no answer."""

    ok: bool
    status: int | None
    seconds: float
    error: str | None


class Health(TypedDict):
    """Whether the service does its part: the state of its database, of its runners, of their Ray; each ``ok`` or why not."""

    status: Literal["ok", "degraded", "unavailable"]
    checks: dict[str, str]


class Problem(TypedDict):
    """Why a request was refused (RFC 9457)."""

    status: int
    code: str
    detail: str
    errors: NotRequired[list[dict[str, str]]]
