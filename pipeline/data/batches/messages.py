"""Messages between the trainer and its worker processes. All are small: pixels travel in shared
memory."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.data.batches.lanes import LanePlan
from pipeline.data.batches.slots import Filled


class WorkerPlan(NamedTuple):
    """The setup of every worker, pickled once for all of them."""

    lanes: LanePlan
    num_workers: int


class Begin(NamedTuple):
    """First message to a worker: the plan is written and can be read."""


class NewBuffer(NamedTuple):
    """A new batch buffer; its file descriptor follows this message."""

    number: int


class Task(NamedTuple):
    """Fill these slots of a rank's share of the global batch that begins at `samples_seen`."""

    work: int
    buffer: int
    samples_seen: int
    slots: range


class Report(NamedTuple):
    """A worker has filled these slots."""

    work: int
    filled: Filled


class Failure(NamedTuple):
    """An error in a worker other than a bad sample; it ends the loader."""

    work: int
    error: BaseException
    traceback: str
    """The worker's formatted traceback."""
