"""Any study, and what it finds: unions, told apart by ``kind``."""

from typing import Annotated

from pydantic import Discriminator

from search.studies.baseline import Baseline, DenseFrontier
from search.studies.calibration import Calibrated, Calibration
from search.studies.fidelity import Fidelity, FidelityStudy
from search.studies.scaling import Scaling, ScalingStudy
from search.studies.transfer import Transfer, TransferCheck

StudySpec = Annotated[Baseline | Calibration | FidelityStudy | ScalingStudy | TransferCheck, Discriminator("kind")]
Finding = Annotated[DenseFrontier | Calibrated | Fidelity | Scaling | Transfer, Discriminator("kind")]
