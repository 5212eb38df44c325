"""Hypothesis without deadlines: a busy machine is slow at times, and no test is about time."""

from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
