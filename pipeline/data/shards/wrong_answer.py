"""The error of storage that answers wrongly."""

from __future__ import annotations


class WrongAnswer(OSError):
    """A store answers, but not with what was asked for; another try would not help."""
