"""Which learning rate a proxy has where its search leaves it open: that of the newest calibration of its task, or the one
that comes along for the default settings, or the one that a calibration is still to find."""

from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from search.proxies.identity import is_shipped, task_digest
from search.proxies.registry import ProxySpec
from search.spec import SearchSpec
from search.studies.calibration import Calibrated
from service import evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A calibrated learning rate and its warm-up, None where there is nothing to say, and the study that found them."""

    base_lr: float | None = None
    warmup_steps: int | None = None
    study_id: str | None = None

    def applied_to(self, spec: SearchSpec) -> SearchSpec:
        """The search with this rate."""
        if self.base_lr is None:
            return spec
        warmup_steps = spec.proxy.warmup_steps if self.warmup_steps is None else self.warmup_steps
        return replace(spec, proxy=replace(spec.proxy, base_lr=self.base_lr, warmup_steps=warmup_steps))


def find(session: Session, proxy: ProxySpec) -> Rate:
    """The calibrated rate of a proxy that leaves it open; nothing for one that does not, or where none is known yet."""
    if proxy.base_lr is not None:
        return Rate()
    study = evidence.newest(session, "calibration", task_digest(proxy.tuned_on))
    if study is None:
        return Rate(base_lr=proxy.SHIPPED_LR) if is_shipped(proxy) else Rate()
    assert isinstance(study.finding, Calibrated), "a completed calibration has a rate"
    return Rate(base_lr=study.finding.base_lr, warmup_steps=study.finding.warmup_steps, study_id=study.id)
