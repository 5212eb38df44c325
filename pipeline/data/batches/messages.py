"""What the trainer and its worker processes tell each other; all of it small."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.data.batches.lanes import LanePlan
from pipeline.data.batches.slots import Filled


class WorkerPlan(NamedTuple):
    """What every worker is told at its start, pickled."""

    lanes: LanePlan
    num_workers: int


class Begin(NamedTuple):
    """The first message: the plan is written."""


class NewBuffer(NamedTuple):
    """Its descriptor follows."""

    number: int


class Task(NamedTuple):
    """Fill these slots of a rank's share of the global batch that begins at `samples_seen`."""

    work: int
    buffer: int
    samples_seen: int
    slots: range


class Report(NamedTuple):
    work: int
    filled: Filled


class Failure(NamedTuple):
    """An error that is no bad sample's; it ends the loader."""

    work: int
    error: BaseException
    told: str
    """The traceback."""
