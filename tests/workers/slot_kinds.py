"""Slots that behave badly, in processes of their own."""

import threading

from ray.exceptions import OutOfMemoryError

from search.trial import Outcome, TrialSpec
from workers.slot import Slot


class DeafSlot(Slot):
    """Heeds no request: what it runs has no end."""

    def run(self, key: str, spec: TrialSpec, owner: str) -> Outcome:
        """Start, and never end."""
        with self._changed:
            self._key = key
        threading.Event().wait()
        raise AssertionError("never gets here")


class FullSlot(Slot):
    """Has no memory left."""

    def run(self, key: str, spec: TrialSpec, owner: str) -> Outcome:
        """End at once, for lack of memory."""
        return Outcome.out_of_memory("tried to allocate 80 GiB")


class DoomedSlot(Slot):
    """Is ended by Ray, which saw the machine run out of memory."""

    def run(self, key: str, spec: TrialSpec, owner: str) -> Outcome:
        """End as such calls end."""
        raise OutOfMemoryError("the machine ran low on memory")  # type: ignore[no-untyped-call]  # Ray leaves it untyped


class ImpatientSlot(Slot):
    """Does not wait with those who follow."""

    def follow(self, key: str) -> Outcome | None:
        """The outcome, if it is there."""
        return self.view().outcome
