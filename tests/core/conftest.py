"""Hypothesis without its deadline: how long an example takes says something about the machine, not about the code."""

from hypothesis import settings

settings.register_profile("dispatcher", deadline=None)
settings.load_profile("dispatcher")
