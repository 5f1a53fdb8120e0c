"""How the slots of a cluster are shared among the runners that want some."""

from collections.abc import Sequence
from math import ceil

from service.models import Runner


def fair_share(runner_id: str, alive: Sequence[Runner]) -> int | None:
    """How many slots a runner may hold while another one waits for some; None while nobody does.

    What there is to share are the slots that are held and those that there would be room for: by the first alone, what
    died while all wait would never be made again. At least one, because nobody else can know better whether one fits.
    """
    others = [runner for runner in alive if runner.id != runner_id]
    if not any(runner.stats.waiting for runner in others):
        return None
    wanting = 1 + sum(runner.stats.waiting or runner.stats.busy > 0 for runner in others)
    held, room = sum(runner.stats.slots for runner in alive), max(runner.stats.room for runner in alive)
    return max(1, ceil((held + room) / wanting))
