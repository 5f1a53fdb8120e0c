"""Use cases of searches: submit, estimate, look, pause, resume, cancel, extend, end."""

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from sqlalchemy.orm import Session

from einlayers.errors import FieldError
from einlayers.theta import NAMED
from search.corpora import locate_images, require_text
from search.proposals import check_space
from search.proxies.char_lm import CharLM, FileCorpus
from search.proxies.identity import task_digest
from search.proxies.image_mlp import ImageMLP
from search.proxies.image_vit import ImageViT
from search.proxies.images import ImageFiles
from search.proxies.next_pixel import NextPixel
from search.proxies.registry import ProxySpec
from search.spec import Budget, SearchSpec
from search.states import SearchState, TrialState
from search.structure import Structure, structure_of
from service import calibrations, comparisons, events, evidence, leases, listings, rankings, repositories, warm_starts
from service.clock import now
from service.errors import InvalidValue, WrongState
from service.keys import LOCAL, Caller
from service.models import PauseMode, Reason, Search, Study, WarmStart
from service.paging import Page, PageRequest
from service.rankings import RankedStructure
from service.transitions import move_search


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchDetail:
    """A search as it is at a time, by the database's clock, whether any runner is alive, what it has inherited from earlier
    searches, and the study of the fidelity of its proxy, if there is one."""

    search: Search
    at: datetime
    has_runner: bool
    warm_starts: Sequence[WarmStart] = ()
    fidelity: Study | None = None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds that it has run, pauses not counted."""
        return self.search.seconds_at(self.at)

    @property
    def waiting_for(self) -> str | None:
        """What keeps it from going on, if anything does."""
        if not self.has_runner and self.search.state in leases.ACTIVE:
            return "no runner is alive; start one with: einsearch up, or python -m service.runner"
        return self.search.waiting_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a search will cost at most, None where only time limits it, and the models that its known designs give: the
    plain dense baseline first, then its seeds."""

    train_flops: float | None
    max_trials: int | None
    baseline: Structure
    seeds: Sequence[Structure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best structures of a search, and how probable it is that the first of them is the best of all."""

    ranked: Sequence[RankedStructure]
    confidence: float | None


def validate(spec: SearchSpec, corpora_dir: Path | None) -> Estimate:
    """Check what only this service can know of a spec, and estimate its cost.

    Raises:
        InvalidValue: the corpus, or the images, are not files that the operator allows, or nothing that can be trained on;
            or no structure of the space keeps the constraints.
    """
    _check_data(spec.proxy, corpora_dir)
    try:
        check_space(spec)
    except FieldError as error:
        raise InvalidValue("/space", error) from error
    return Estimate(
        train_flops=spec.train_flops(spec.budget),
        max_trials=spec.num_trials(spec.budget),
        baseline=structure_of(NAMED["dense"], spec.proxy.plain),
        seeds=[structure_of(NAMED[name], spec.proxy) for name in spec.space.seeds],
    )


def estimate(session: Session, spec: SearchSpec, corpora_dir: Path | None) -> Estimate:
    """What a search would cost at most that could be submitted now.

    Raises:
        InvalidValue: see ``validate`` and ``warm_starts.sources``.
    """
    if spec.warm_start:
        warm_starts.sources(session, calibrations.find(session, spec.proxy).applied_to(spec))
    return validate(spec, corpora_dir)


def submit(session: Session, spec: SearchSpec, corpora_dir: Path | None, caller: Caller = LOCAL) -> SearchDetail:
    """Queue a search.

    Raises:
        InvalidValue: see ``estimate``.
    """
    validate(spec, corpora_dir)
    calibration = calibrations.find(session, spec.proxy)
    spec, task = _with_known_noise(session, calibration.applied_to(spec)), task_digest(spec.proxy)
    sources = warm_starts.sources(session, spec)
    search = Search(
        id=secrets.token_hex(6),
        name=spec.name,
        owner=caller.owner,
        spec=spec,
        proxy_kind=spec.proxy.kind,
        state=SearchState.QUEUED,
        state_since=now(session),
        created_at=now(session),
        counts={},
        train_flops=0.0,
        num_retries=0,
        seconds_before=0.0,
        last_event=0,
        task=task,
        transfers=evidence.transfers_of(session, task),
        awaits_calibration=spec.proxy.base_lr is None,
        calibration_id=calibration.study_id,
        epoch=0,
    )
    session.add(search)
    session.flush()
    warm_starts.record(session, search, sources)
    events.emit(session, search, "search.state", {"state": search.state, "reason": None})
    session.flush()
    return detail(session, search.id)


def detail(session: Session, search_id: str) -> SearchDetail:
    """One search.

    Raises:
        NotFound: there is none.
    """
    return details(session, [repositories.search_by_id(session, search_id)])[0]


def details(session: Session, found: Sequence[Search]) -> list[SearchDetail]:
    """Searches as they are now."""
    time, has_runner, fidelity = now(session), bool(leases.alive(session)), evidence.fidelity_of(session, found)
    inherited = warm_starts.of(session, [search.id for search in found if search.spec.warm_start])
    return [
        SearchDetail(
            search=search,
            at=time,
            has_runner=has_runner,
            warm_starts=inherited.get(search.id, ()),
            fidelity=fidelity.get(search.id),
        )
        for search in found
    ]


def listing(session: Session, page: PageRequest, *, owner: str | None = None) -> Page[SearchDetail]:
    """The searches, newest first, of everybody or of one owner.

    Raises:
        BadPageToken: the token is not one of this list.
    """
    found = listings.searches(session, page, owner=owner)
    return Page(items=details(session, found.items), next_token=found.next_token)


def best(session: Session, search_id: str, limit: int) -> Best:
    """The best structures of a search.

    Raises:
        NotFound: there is no such search.
    """
    ranked = rankings.best(session, search_id, limit)
    return Best(ranked=ranked, confidence=comparisons.confidence(session, search_id))


def pause(session: Session, search_id: str, mode: PauseMode = PauseMode.DRAIN, caller: Caller = LOCAL) -> SearchDetail:
    """Start no more trials; those that run, run to their end, or write a checkpoint from which they go on later.

    Raises:
        NotFound, Forbidden, WrongState: there is no such search, it is somebody else's, or not one that can pause.
    """
    search = _move(session, search_id, SearchState.PAUSED, caller)
    search.pause_mode = mode
    return detail(session, search.id)


def resume(session: Session, search_id: str, caller: Caller = LOCAL) -> SearchDetail:
    """Go on after a pause.

    Raises:
        NotFound, Forbidden, WrongState: there is no such search, it is somebody else's, or it is not paused.
    """
    search = _locked(session, search_id, caller)
    if search.state is not SearchState.PAUSED:
        raise WrongState(f"search {search.id} is {search.state}; only a PAUSED search can be resumed")
    move_search(session, search, SearchState.RUNNING)
    return detail(session, search.id)


def cancel(session: Session, search_id: str, caller: Caller = LOCAL) -> SearchDetail:
    """Stop the trials that run and end the search; what completed stays.

    Raises:
        NotFound, Forbidden, WrongState: there is no such search, it is somebody else's, or it is ending or has ended.
    """
    return detail(session, _move(session, search_id, SearchState.STOPPING, caller).id)


def extend(session: Session, search_id: str, budget: Budget, caller: Caller = LOCAL) -> SearchDetail:
    """Give a search that has not ended another budget, which must at least pay for the trials that there are.

    Raises:
        NotFound, Forbidden, WrongState: there is no such search, it is somebody else's, or it is ending or has ended.
        InvalidValue: the budget is smaller than what is used already, or pays for no trial of this search.
    """
    search = _locked(session, search_id, caller)
    if search.state not in (SearchState.QUEUED, SearchState.RUNNING, SearchState.PAUSED):
        raise WrongState(f"search {search.id} is {search.state}; only one that has not ended can be given a budget")
    _check_covers(search, budget)
    try:
        search.spec = replace(search.spec, budget=budget)
    except FieldError as error:
        raise InvalidValue("", error) from error
    events.emit(session, search, "search.budget", {"budget": asdict(budget)})
    session.flush()
    return detail(session, search.id)


def stop_if_out_of_time(session: Session, search: Search) -> None:
    """Begin to end a search whose time is over; the caller holds its lock."""
    limit = search.spec.budget.max_seconds
    if search.state is SearchState.RUNNING and limit is not None and search.seconds_at(now(session)) >= limit:
        move_search(session, search, SearchState.STOPPING, Reason.BUDGET_SECONDS)


def conclude(session: Session, search: Search) -> None:
    """End a search that has nothing left to run, for the reason that holds; the caller holds its lock."""
    reason = search.reason or _spent(search)
    if search.state is SearchState.RUNNING:
        move_search(session, search, SearchState.STOPPING, reason)
    num_failed = search.counts.get(TrialState.FAILED, 0)
    if reason is Reason.USER:
        move_search(session, search, SearchState.CANCELLED, reason)
    elif reason in (Reason.TOO_MANY_FAILURES, Reason.CALIBRATION_FAILED):
        move_search(session, search, SearchState.FAILED, reason)
    elif 0 < num_failed == search.num_trials:
        move_search(session, search, SearchState.FAILED, Reason.ALL_TRIALS_FAILED)
    else:
        move_search(session, search, SearchState.COMPLETED, reason)
    leases.release(search)


def _with_known_noise(session: Session, spec: SearchSpec) -> SearchSpec:
    """With what is known of the noise now: what is found later must not change what the search would have proposed."""
    if spec.racing is None or spec.racing.sd is not None:
        return spec
    return replace(spec, racing=replace(spec.racing, sd=evidence.sd_of(session, spec.proxy)))


def _check_data(proxy: ProxySpec, corpora_dir: Path | None) -> None:
    """Go on only if the files that a proxy names are there. For data sets of Hugging Face a worker looks: it may be the only
    one who has a network, and the library."""
    pointer = "/proxy/corpus"
    try:
        match proxy:
            case CharLM(corpus=FileCorpus() as corpus):
                require_text(corpus, proxy.context, corpora_dir)
            case ImageMLP(images=images) | ImageViT(images=images) | NextPixel(images=images):
                pointer = "/proxy/images"
                if isinstance(images, ImageFiles):
                    locate_images(images, corpora_dir)
    except FieldError as error:
        raise InvalidValue(pointer, error) from error


def _spent(search: Search) -> Reason:
    """Which part of the budget it is that pays for no further trial; or that there is none left, of a plan."""
    budget = search.spec.budget
    # Where trials are pruned, their number may be spent although at first the training FLOPs paid for fewer.
    if budget.max_trials is not None and budget.max_trials in (search.num_paid, search.spec.num_trials(budget)):
        return Reason.BUDGET_TRIALS
    return Reason.SPACE_EXHAUSTED if budget.max_train_flops is None else Reason.BUDGET_TRAIN_FLOPS


def _check_covers(search: Search, budget: Budget) -> None:
    for field, begun in (("max_trials", search.num_paid), ("max_train_flops", search.train_flops)):
        limit = getattr(budget, field)
        if limit is not None and limit * (1 + 1e-9) < begun:
            expected = f"at least the {begun:g} of the {search.num_paid} trials that there are"
            raise InvalidValue("/budget", FieldError(field, expected=expected, got=limit))


def _locked(session: Session, search_id: str, caller: Caller) -> Search:
    search = repositories.search_by_id(session, search_id, lock=True)
    caller.require_owner(search)
    return search


def _move(session: Session, search_id: str, state: SearchState, caller: Caller) -> Search:
    search = _locked(session, search_id, caller)
    move_search(session, search, state, Reason.USER)
    session.flush()
    return search
