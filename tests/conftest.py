"""The one profile of hypothesis: the same examples on every machine, and no clock."""

from hypothesis import settings

settings.register_profile("einsearch", derandomize=True, max_examples=80, deadline=None, print_blob=False)
settings.load_profile("einsearch")
