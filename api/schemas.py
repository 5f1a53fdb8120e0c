"""What the API answers, field by field. What it accepts stands in ``bodies``."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from einlayers.dims import Dims
from einlayers.taxonomy import Family, Taxonomy
from einlayers.theta import Theta
from search.proxies.presets import PresetName
from search.proxies.registry import ProxySpec
from search.proxies.shapes import ModelCost
from search.spec import SearchSpec
from search.states import AttemptState, SearchState, TrialState
from search.studies.baseline import Multiplier
from search.studies.estimates import Estimate
from search.studies.fidelity import Fidelity
from search.trial import Outcome
from search.variant import Variant
from service.comparisons import Comparison
from service.models import Origin, PauseMode, Reason, Study, Trial
from service.paging import Page
from service.rankings import RankedStructure
from service.searches import Best, SearchDetail


class Schema(BaseModel):
    """An answer, built from the attributes of a row or of a value."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


Item = TypeVar("Item", bound=Schema)


class ListOf(Schema, Generic[Item]):
    """One page of a list; ``next_page_token`` asks for the next one, null says that this is the last."""

    items: Sequence[Item]
    next_page_token: str | None


class FidelityResource(Schema):
    """How far the ranking of a proxy can be trusted, in rank correlations (Spearman), and the study that says so: between
    single trials from different seeds, and with the order of a larger run, or of whatever the study holds for true."""

    study_id: str
    between_seeds: Estimate
    against_reference: Estimate
    truthful: bool

    @classmethod
    def of(cls, study: Study) -> "FidelityResource":
        """The answer for a study that has completed."""
        assert isinstance(study.finding, Fidelity), "a completed fidelity study has found one"
        return cls(
            study_id=study.id,
            between_seeds=study.finding.between_seeds.spearman,
            against_reference=study.finding.against_reference.spearman,
            truthful=study.finding.truthful,
        )


class WarmStartResource(Schema):
    """An earlier search that a search has started from, when ``num_finished`` trials had ended there: how many results that
    were, and how many of them lie in the search's own subspace, where its sampler sees them."""

    source_id: str
    num_finished: int
    num_results: int
    num_in_space: int


class ProgressResource(Schema):
    """How far a search is: trials by state and against the budget (``max_trials`` is null where only time limits them),
    seconds of wall-clock time that it has run without its pauses, training FLOPs that its trials have reserved.
    ``num_reused`` of the trials took the results of earlier searches over; no budget counts them."""

    max_trials: int | None
    finished: int
    counts: Mapping[TrialState, int]
    best_loss: float | None
    seconds: float
    train_flops: float
    num_retries: int
    num_reused: int


class SearchResource(Schema):
    """A search as it was asked for, and where it stands, since when and why. Times are UTC."""

    id: str
    name: str
    owner: str
    state: SearchState
    reason: Reason | None
    state_since: datetime
    pause_mode: PauseMode | None
    waiting_for: str | None
    runner_id: str | None
    progress: ProgressResource
    last_event: int
    spec: SearchSpec
    calibration_id: str | None
    warm_starts: Sequence[WarmStartResource]
    fidelity: FidelityResource | Literal["unmeasured"]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, detail: SearchDetail) -> "SearchResource":
        """The answer for a search."""
        search = detail.search
        own = {"progress", "waiting_for", "warm_starts", "fidelity"}
        columns = {name: getattr(search, name) for name in cls.model_fields.keys() - own}
        progress = ProgressResource(
            max_trials=search.max_trials,
            finished=search.num_finished,
            counts={state: count for state, count in search.counts.items() if count},
            best_loss=search.best_loss,
            seconds=detail.seconds,
            train_flops=search.train_flops,
            num_retries=search.num_retries,
            num_reused=search.num_reused,
        )
        fidelity = "unmeasured" if detail.fidelity is None else FidelityResource.of(detail.fidelity)
        warm_starts = [WarmStartResource.model_validate(each) for each in detail.warm_starts]
        return cls(
            **columns, progress=progress, waiting_for=detail.waiting_for, warm_starts=warm_starts, fidelity=fidelity
        )


class AttemptResource(Schema):
    """One run of a trial on one slot; ``seconds`` of wall-clock time. ``resumed_step``: that of the checkpoint it went on
    from, 0 where it began anew. ``late``: what it said after it had been given up, which counted for nothing."""

    number: int
    state: AttemptState
    slot: str
    runner_id: str
    reason: str | None
    seconds: float | None
    resumed_step: int | None
    late: Outcome | None
    late_at: datetime | None
    started_at: datetime
    finished_at: datetime | None


class TrialResource(Schema):
    """A structure, trained once from one seed. ``macs`` per example (of text: a token), forward; ``loss`` held out.
    ``transfers``: whether the learning rate transfers to it, null where that was not checked. ``expected_loss``: of one that
    was pruned, what it would have had. ``latency`` and ``peak_memory``: the seconds of a forward and a backward pass, and
    the bytes of a training step, at the proxy's batch on the device that trained it; null unless the search asks for one.
    ``reused_from``: the trial of an earlier search whose result it has. ``variant``: what it changes of the model of its
    search's proxy, null where nothing; ``params``, ``macs`` and ``dims`` are those of that model."""

    id: str
    search_id: str
    number: int
    replicate: int
    origin: Origin
    state: TrialState
    reason: str | None
    state_since: datetime
    family: Family
    theta: Theta
    variant: Variant | None
    width: int
    dims: Mapping[str, Dims]
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
    excluded_at: datetime | None
    excluded_reason: str | None
    attempts: Sequence[AttemptResource]
    created_at: datetime
    finished_at: datetime | None


class StructureResource(TrialResource):
    """A trial among those of all searches, with the proxy that makes its loss comparable, or not, to another's."""

    proxy: ProxySpec

    @classmethod
    def of(cls, trial: Trial) -> "StructureResource":
        """The answer for a trial that was read with its search."""
        return cls(**TrialResource.model_validate(trial).__dict__, proxy=trial.proxy_in(trial.search))


class MeasurementResource(Schema):
    """A point of the learning curve: the held-out loss after so many examples (of text: tokens)."""

    step: int
    examples: int
    train_flops: float
    loss: float


class ReplicateResource(Schema):
    """One of the seeds that a structure was trained from."""

    trial_id: str
    seed: int
    loss: float


class RankedResource(Schema):
    """A structure of a search: the mean loss over its replicates, their standard deviation (null for one), each seed; and
    how many times its compute dense needs for that loss, null where the proxy has no baseline. The learning rate is the
    transferred one: a multiplier that is to be published comes from a scaling study that tunes it.

    ``better_than_next``: the probability that its mean loss, over all seeds that there could be, is lower than that of the
    next of the best. Null for the last of them, in a Pareto front, and where nothing is known of the noise between seeds."""

    rank: int
    loss: float
    loss_sd: float | None
    better_than_next: float | None
    multiplier: Multiplier | None
    replicates: Sequence[ReplicateResource]
    trial: TrialResource

    @classmethod
    def of(cls, ranked: RankedStructure) -> "RankedResource":
        """The answer for a structure at its place of the ranking."""
        return cls(
            rank=ranked.rank,
            loss=ranked.loss,
            loss_sd=ranked.loss_sd,
            better_than_next=ranked.better_than_next,
            multiplier=ranked.multiplier,
            replicates=[
                ReplicateResource(trial_id=trial.id, seed=trial.seed, loss=trial.loss)
                for trial in ranked.replicates
                if trial.loss is not None
            ],
            trial=TrialResource.model_validate(ranked.trial),
        )


class BestResource(Schema):
    """Structures of a search, best first: where replicates or a race were asked for, those of a single seed last.

    ``confidence``: the probability that the first really is the best of all structures of the search. Null where there is
    none, or nothing is known of the noise between seeds: no structure has a second one, and neither a fidelity study of the
    proxy nor the race says what to expect."""

    items: Sequence[RankedResource]
    confidence: float | None

    @classmethod
    def of(cls, best: Best) -> "BestResource":
        """The answer for the best."""
        return cls(items=[RankedResource.of(ranked) for ranked in best.ranked], confidence=best.confidence)


class ComparedResource(Schema):
    """One of two structures: a trial of it, how many trials it has that count, and the mean of their losses."""

    trial_id: str
    num_trials: int
    loss: float


class ComparisonResource(Schema):
    """How structure ``a`` is to be judged against ``b``: the ``probability`` that its mean loss, over all seeds that there
    could be, is the lower one, and the ``difference`` of the log of its loss to that of ``b``, with its 95% interval; on the
    ``plain`` scale, where losses are not positive, that of the loss itself. ``noise_sd`` is that of a single seed on the
    scale. All but the trials is null where nothing is known of the noise between seeds."""

    a: ComparedResource
    b: ComparedResource
    probability: float | None
    difference: Estimate | None
    noise_sd: float | None
    scale: Literal["log", "plain"] | None

    @classmethod
    def of(cls, comparison: Comparison) -> "ComparisonResource":
        """The answer for two structures."""
        a, b = (
            ComparedResource(trial_id=trial.id, num_trials=sample.num, loss=sample.mean)
            for trial, sample in zip(comparison.trials, comparison.samples, strict=True)
        )
        noise = comparison.noise
        return cls(
            a=a,
            b=b,
            probability=comparison.probability,
            difference=comparison.difference,
            noise_sd=noise and noise.sd,
            scale=noise and noise.scale,
        )


class HypervolumePointResource(Schema):
    """The hypervolume once a trial had ended, and the training FLOPs that all trials had taken by then."""

    number: int
    finished_at: datetime
    train_flops: float
    hypervolume: float


class HypervolumeResource(Schema):
    """How a Pareto front grew, up to a reference by metric, which is null while no trial has completed. A volume is one of
    natural logarithms: 1 is a structure that is better than the reference by a factor of e in every metric."""

    reference: Mapping[str, float] | None
    points: Sequence[HypervolumePointResource]


class StructureEstimate(Schema):
    """A known design on the proxy of a search, before training."""

    theta: Theta
    family: Family
    taxonomy: Taxonomy
    width: int
    cost: ModelCost


class EstimateResource(Schema):
    """What a search would cost at most, null where only time limits it, its dense baseline, and its seeds."""

    train_flops: float | None
    max_trials: int | None
    baseline: StructureEstimate
    seeds: Sequence[StructureEstimate]


class PresetResource(Schema):
    """Settings of a proxy that a body may name instead of spelling them out."""

    name: PresetName
    about: str
    proxy: ProxySpec


class PresetsResource(Schema):
    """All presets."""

    items: Sequence[PresetResource]


class Health(Schema):
    """Whether the service does its part."""

    status: Literal["ok", "degraded", "unavailable"]
    checks: Mapping[str, str]


def page_of(page: Page[Trial], schema: type[Item]) -> "ListOf[Item]":
    """A page of rows as an answer."""
    return ListOf[schema](  # type: ignore[valid-type]
        items=[schema.model_validate(row) for row in page.items], next_page_token=page.next_token
    )
