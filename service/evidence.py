"""What studies have found about a proxy, for whoever reads what was found with it: the newest of each kind counts."""

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from search.proxies.identity import digest, task_digest
from search.proxies.registry import ProxySpec
from search.states import StudyState
from search.studies.baseline import DenseFrontier
from search.studies.fidelity import Fidelity
from search.studies.transfer import Transfer
from service.models import Search, Study, operator_name


def newest(session: Session, kind: str, task: str) -> Study | None:
    """The newest completed study of a kind and a task."""
    query = select(Study).where(Study.kind == kind, Study.task == task, Study.state == StudyState.COMPLETED)
    return session.scalars(query.order_by(Study.created_at.desc(), Study.id.desc()).limit(1)).one_or_none()


def fidelity_of(session: Session, searches: Collection[Search]) -> Mapping[str, Study]:
    """The fidelity studies of exactly the proxies of these searches, by the searches' ids, where there are any."""
    proxies = {search.id: digest(search.spec.proxy) for search in searches}
    known = _completed(session, Study.kind == "fidelity_study", Study.proxy.in_(set(proxies.values())))
    found = {study.proxy: study for study in known}
    return {search_id: found[proxy] for search_id, proxy in proxies.items() if proxy in found}


def sd_of(session: Session, proxy: ProxySpec) -> float | None:
    """The standard deviation of the log of the loss between seeds of exactly this proxy, if a fidelity study measured it."""
    known = _completed(session, Study.kind == "fidelity_study", Study.proxy == digest(proxy))
    if not known:
        return None
    assert isinstance(known[-1].finding, Fidelity), "a completed fidelity study has found one"
    return known[-1].finding.sd or None


def baseline_of(session: Session, proxy: ProxySpec) -> DenseFrontier | None:
    """The frontier of the plain dense model of a proxy's task, if it was ever measured."""
    study = newest(session, "baseline", task_digest(proxy.plain))
    if study is None:
        return None
    assert isinstance(study.finding, DenseFrontier), "a completed baseline has a frontier"
    return study.finding


def transfers_of(session: Session, task: str) -> dict[str, bool]:
    """Whether the learning rate transfers, for each structure of a task for which that was checked."""
    known: dict[str, bool] = {}
    for study in _completed(session, Study.kind == "transfer_check", Study.task == task):
        assert isinstance(study.finding, Transfer), "a completed transfer check has one"
        known |= {operator_name(each.theta): each.transfers for each in study.finding.structures}
    return known


def _completed(session: Session, *conditions: ColumnElement[bool]) -> Sequence[Study]:
    """Completed studies, oldest first, so that what is newer takes the place of what is older."""
    query = select(Study).where(Study.state == StudyState.COMPLETED, *conditions)
    return session.scalars(query.order_by(Study.created_at, Study.id)).all()
