"""From a study and its runs to what it finds: one line per kind."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from search.analysis import baseline, calibration, fidelity, scaling, transfer
from search.studies.base import Measured
from search.studies.baseline import Baseline
from search.studies.calibration import Calibration
from search.studies.fidelity import FidelityStudy
from search.studies.registry import Finding, StudySpec
from search.studies.scaling import ScalingStudy
from search.studies.transfer import TransferCheck

_ANALYSES: Mapping[type, Callable[[Any, Mapping[str, Sequence[Measured]]], Finding]] = {
    Baseline: baseline.analyse,
    Calibration: calibration.analyse,
    FidelityStudy: fidelity.analyse,
    ScalingStudy: scaling.analyse,
    TransferCheck: transfer.analyse,
}


def analyse(study: StudySpec, measured: Mapping[str, Sequence[Measured]]) -> Finding:
    """What a study finds, of the runs of its parts in the order in which they were planned.

    Raises:
        FieldError: the runs allow no answer.
    """
    return _ANALYSES[type(study)](study, measured)
