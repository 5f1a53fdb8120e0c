"""Use cases of studies: submit, look, list; and what the runner's analyst does: calibrate, analyse.

A study is carried out by searches, which lose nothing. Those that an earlier study planned in the same way are not run
again: a reference is measured once for all that are compared with it.
"""

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from math import inf
from pathlib import Path

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session, joinedload, selectinload

from einlayers.errors import FieldError
from search.plan import Plan
from search.proxies.identity import digest, fingerprint, task_digest
from search.spec import SearchSpec
from search.states import AttemptState, SearchState, StudyState, TrialState
from search.studies.base import Measured
from search.studies.calibration import Calibration
from search.studies.registry import Finding, StudySpec
from search.studies.transfer import Transfer
from search.trial import Report
from service import calibrations, evidence, repositories, searches
from service.clock import now
from service.errors import InvalidValue, NotFound
from service.keys import LOCAL, Caller
from service.models import Attempt, Measurement, Reason, Search, Study, StudyPart, Trial
from service.paging import Key, Page, PageRequest, page_of
from service.transitions import move_search

logger = logging.getLogger(__name__)

_BEFORE = (SearchState.QUEUED, SearchState.RUNNING, SearchState.PAUSED)
"""States in which a search may wait for its learning rate."""

_LOCK = 0x63616C69  # "cali", among the advisory locks of Postgres

_WHOLE = (selectinload(Study.parts).joinedload(StudyPart.search),)

Check = Callable[[SearchSpec], None]
"""What may refuse a search that a study needs, by raising."""


def allow(spec: SearchSpec) -> None:
    """Refuse nothing."""


def submit(
    session: Session, spec: StudySpec, corpora_dir: Path | None, caller: Caller = LOCAL, check: Check = allow
) -> Study:
    """Begin a study, with a search for each part that no study before it has planned in the same way.

    Raises:
        InvalidValue: its plans are too long, or have runs that a proxy cannot train; or see ``searches.submit``.
    """
    try:
        plans = spec.searches()
    except FieldError as error:
        expected = f"plans of runs that its proxies can train ({error})"
        raise InvalidValue("", FieldError("the study", expected=expected, got=spec.name)) from error
    study = Study(
        id=secrets.token_hex(6),
        kind=spec.kind,
        name=spec.name,
        owner=caller.owner,
        spec=spec,
        task=task_digest(spec.subject),
        state=StudyState.RUNNING,
        created_at=now(session),
    )
    session.add(study)
    session.flush()
    for number, (role, planned) in enumerate(plans.items()):
        needed = calibrations.find(session, planned.proxy).applied_to(planned)
        name = _plan_digest(needed)
        search_id = _planned_before(session, name)
        if search_id is None:
            check(needed)
            search_id = searches.submit(session, needed, corpora_dir, caller).search.id
        session.add(StudyPart(study_id=study.id, role=role, number=number, search_id=search_id, digest=name))
    session.flush()
    return by_id(session, spec.kind, study.id)


def by_id(session: Session, kind: str, study_id: str) -> Study:
    """A study of a kind, with its searches.

    Raises:
        NotFound: there is none.
    """
    query = select(Study).where(Study.kind == kind, Study.id == study_id).options(*_WHOLE)
    study = session.scalars(query.execution_options(populate_existing=True)).one_or_none()
    if study is None:
        raise NotFound(kind, study_id)
    return study


def listing(session: Session, kind: str, page: PageRequest) -> Page[Study]:
    """The studies of a kind, newest first.

    Raises:
        BadPageToken: the token is not one of this list.
    """
    query = select(Study).where(Study.kind == kind).options(*_WHOLE)
    return page_of(session, query, page, [Key(Study.created_at), Key(Study.id)], descending=True)


def ended(session: Session) -> Sequence[Study]:
    """The studies whose searches have all ended, and which wait to be analysed."""
    query = select(Study).where(Study.state == StudyState.RUNNING).order_by(Study.created_at).options(*_WHOLE)
    return [study for study in session.scalars(query).all() if all(part.search.state.is_final for part in study.parts)]


def obstacle(session: Session, study: Study) -> str | None:
    """Why a study whose searches have ended can have no finding, if so."""
    for part in study.parts:
        if part.search.state is not SearchState.COMPLETED:
            return f"search {part.search_id} ({part.role}) was {part.search.state}: {part.search.reason}"
        missing = Trial.state.not_in([TrialState.COMPLETED, TrialState.INFEASIBLE]) | Trial.excluded_at.is_not(None)
        query = select(Trial).where(Trial.search_id == part.search_id, missing).order_by(Trial.number).limit(1)
        trial = session.scalars(query).one_or_none()
        if trial is not None:
            return f"trial {trial.id} ({part.role}) is {'excluded' if trial.excluded_at else trial.state}"
        if part.search.num_trials < len(_plan(part.search).runs):
            return f"search {part.search_id} ({part.role}) ended before its last trial"
    return None


def measured(session: Session, study: Study) -> Mapping[str, Sequence[Measured]]:
    """The runs of a study's parts, in the order in which they were planned."""
    return {part.role: _measured(session, part.search) for part in study.parts}


def conclude(session: Session, study_id: str, kind: str, result: Finding | str) -> None:
    """End a study with what it has found, or with the reason why there is nothing; once, whoever comes first."""
    session.get(Study, study_id, with_for_update=True)
    study = by_id(session, kind, study_id)
    if study.state.is_final:
        return
    if isinstance(result, str):
        study.state, study.reason = study.state.to(StudyState.FAILED), result
    else:
        study.state, study.finding = study.state.to(StudyState.COMPLETED), result
        study.proxy = digest(study.parts[0].search.spec.proxy)
        if isinstance(result, Transfer):
            session.flush()
            _tell_of_transfers(session, study.task)
    study.finished_at = now(session)
    session.flush()


def any_waiting(session: Session) -> bool:
    """Whether any search waits for a learning rate."""
    return bool(session.scalar(select(exists().where(Search.awaits_calibration, Search.state.in_(_BEFORE)))))


def calibrate_waiting(session: Session, corpora_dir: Path | None) -> None:
    """Give the searches that wait for a learning rate theirs, once it is known; begin a calibration where there is none."""
    # One at a time, so that two searches with the same proxy share one calibration; SQLite has one writer anyway.
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    query = select(Search.id).where(Search.awaits_calibration, Search.state.in_(_BEFORE)).order_by(Search.created_at)
    for search_id in session.scalars(query).all():
        search = repositories.search_by_id(session, search_id, lock=True)
        if search.awaits_calibration and search.state in _BEFORE:
            _calibrate(session, search, corpora_dir)


def _calibrate(session: Session, search: Search, corpora_dir: Path | None) -> None:
    rate = calibrations.find(session, search.spec.proxy)
    if rate.base_lr is not None:
        search.spec, search.calibration_id = rate.applied_to(search.spec), rate.study_id
        search.awaits_calibration, search.waiting_for = False, None
        return
    study = session.get(Study, search.calibration_id) if search.calibration_id else None
    if study is None:
        try:
            with session.begin_nested():
                study = _running_calibration(session, search) or _begin_calibration(session, search, corpora_dir)
        except InvalidValue as error:  # such as a corpus that is gone since the search was submitted
            logger.warning("search %s cannot be calibrated: %s", search.id, error.problems[0].detail)
            move_search(session, search, SearchState.STOPPING, Reason.CALIBRATION_FAILED)
            return
        search.calibration_id, search.waiting_for = study.id, f"the calibration {study.id} of its learning rate"
    elif study.state is StudyState.FAILED:
        move_search(session, search, SearchState.STOPPING, Reason.CALIBRATION_FAILED)


def _running_calibration(session: Session, search: Search) -> Study | None:
    query = select(Study).where(Study.kind == "calibration", Study.task == task_digest(search.spec.proxy.tuned_on))
    return session.scalars(query.where(Study.state == StudyState.RUNNING).limit(1)).one_or_none()


def _begin_calibration(session: Session, search: Search, corpora_dir: Path | None) -> Study:
    spec = Calibration(name=f"for {search.name[:100]}", proxy=search.spec.proxy, resources=search.spec.resources)
    return submit(session, spec, corpora_dir, replace(LOCAL, owner=search.owner))


def _planned_before(session: Session, name: str) -> str | None:
    """The search of the same plan, unless it was stopped or has failed."""
    query = select(StudyPart).where(StudyPart.digest == name).options(joinedload(StudyPart.search))
    for part in session.scalars(query):
        if part.search.state not in (SearchState.STOPPING, SearchState.CANCELLED, SearchState.FAILED):
            return part.search_id
    return None


def _plan_digest(spec: SearchSpec) -> str:
    """What tells it from plans with other results: not its name, nor how many trials run at once."""
    plan, budget, resources = asdict(spec.sampler), asdict(spec.budget), asdict(spec.resources)
    return fingerprint({"proxy": digest(spec.proxy), "plan": plan, "budget": budget, "resources": resources})


def _tell_of_transfers(session: Session, task: str) -> None:
    """Write down with every search of a task what is known of its structures."""
    known = evidence.transfers_of(session, task)
    for search_id in session.scalars(select(Search.id).where(Search.task == task)).all():
        repositories.search_by_id(session, search_id, lock=True).transfers = known


def _plan(search: Search) -> Plan:
    assert isinstance(search.spec.sampler, Plan), "studies are carried out by plans"
    return search.spec.sampler


def _measured(session: Session, search: Search) -> list[Measured]:
    runs = _plan(search).runs
    curves: dict[str, list[Report]] = {}
    query = (
        select(Attempt.trial_id, Measurement)
        .join(Measurement, Measurement.attempt_id == Attempt.id)
        .join(Trial, Trial.id == Attempt.trial_id)
        .where(Trial.search_id == search.id, Attempt.state == AttemptState.ENDED)
        .order_by(Attempt.trial_id, Measurement.step)
    )
    for trial_id, point in session.execute(query):
        report = Report(step=point.step, examples=point.examples, train_flops=point.train_flops, loss=point.loss)
        curves.setdefault(trial_id, []).append(report)
    found = session.scalars(select(Trial).where(Trial.search_id == search.id).order_by(Trial.number)).all()
    return [
        Measured(
            run=runs[trial.number],
            width=trial.width,
            params=trial.params,
            macs=trial.macs,
            train_flops=trial.train_flops,
            base_lr=trial.base_lr,
            loss=inf if trial.loss is None else trial.loss,
            curve=curves.get(trial.id, []),
            cpu_seconds=trial.cpu_seconds or 0.0,
            coordinates=trial.coordinates or {},
        )
        for trial in found
    ]
