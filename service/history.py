"""The trials of a search as its runner remembers them between two proposals; a copy that can be read again at any time."""

from collections.abc import Sequence

from search.proposals import Inherited, PastTrial
from service import repositories
from service.database import Database
from service.models import Search
from service.warm_starts import Inheritance


class History:
    """The past trials of one search, and what it has inherited, read once; afterwards only what has changed."""

    def __init__(self) -> None:
        self.trials: list[PastTrial] = []
        self._seen = -1
        self._inheritance = Inheritance()

    @property
    def inherited(self) -> Sequence[Inherited]:
        """The results of earlier searches."""
        return self._inheritance.results

    def refresh(self, database: Database, search: Search) -> None:
        """Read what has changed up to the search's last event, if that is not known yet."""
        if search.spec.warm_start:
            with database.read() as session:
                self._inheritance.refresh(session, search.id)
        if search.last_event <= self._seen:
            return
        with database.read() as session:
            last_event = repositories.search_by_id(session, search.id).last_event
            changed = repositories.history(session, search.id, since=self._seen)
        for number, trial in changed:
            self.trials[number : number + 1] = [trial]
        self._seen = last_event

    def add(self, trials: Sequence[PastTrial], *, after: int, upto: int) -> None:
        """Remember the next trials, which were just added by events ``after`` one number ``upto`` another one."""
        if after != self._seen:
            return  # something else happened as well: the next refresh tells
        self.trials += trials
        self._seen = upto
