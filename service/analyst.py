"""The analyst: a thread beside the runner that calibrates what waits for a learning rate, and analyses studies.

Any number may work on one database. An analysis is a pure function of what is stored, so that two who do the same one do
no harm: the first answer stays.
"""

import logging
import threading
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from einlayers.errors import FieldError
from search.studies.registry import Finding
from service import studies
from service.database import Database
from service.models import Study

logger = logging.getLogger(__name__)


class Analyst:
    """Looks for work every ``interval`` seconds; survives whatever the database does."""

    def __init__(self, database: Database, corpora_dir: Path | None, interval: float = 1.0) -> None:
        self._database = database
        self._corpora_dir = corpora_dir
        self._interval = interval
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="analyst", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing more; an analysis under way is left to the next analyst."""
        self._stopping.set()

    def turn(self) -> None:
        """Do what is to be done now."""
        # Looked at first: a write keeps all other writers of SQLite waiting.
        with self._database.read() as session:
            waiting, ended = studies.any_waiting(session), studies.ended(session)
        if waiting:
            with self._database.write() as session:
                studies.calibrate_waiting(session, self._corpora_dir)
        for study in ended:
            result = self._analyse(study)
            with self._database.write() as session:
                studies.conclude(session, study.id, study.kind, result)
            logger.info("study %s ended: %s", study.id, result if isinstance(result, str) else "analysed")

    def _run(self) -> None:
        while not self._stopping.wait(self._interval):
            try:
                self.turn()
            except SQLAlchemyError as error:
                logger.warning("the analyst waits for the database: %s", type(error).__name__)

    def _analyse(self, study: Study) -> Finding | str:
        """The finding, or why there is none."""
        # SciPy takes half a second to import; who has no study need not wait for it.
        from search.analysis.registry import analyse

        with self._database.read() as session:
            why_not = studies.obstacle(session, study)
            if why_not is not None:
                return why_not
            measured = studies.measured(session, study)
        try:
            return analyse(study.spec, measured)
        except FieldError as error:
            return str(error)
        except Exception as error:
            # A fault of ours must not come again every second for ever.
            logger.exception("the analysis of study %s failed", study.id)
            return f"the analysis failed: {type(error).__name__}: {error}"
