"""Signals that ask a run to stop. The ranks hold them back and answer them with a checkpoint."""

from __future__ import annotations

import signal
from typing import Any, NamedTuple

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGUSR1, signal.SIGINT})
"""Sent by launchers and schedulers, by Slurm before a time limit, by Ctrl-C in a terminal."""


class HeldSignals(NamedTuple):
    """What `hold_stop_signals` found, for `release_stop_signals`."""

    mask: set[int]
    handlers: dict[int, Any]


_noted: set[int] = set()


def hold_stop_signals() -> HeldSignals:
    """From here on STOP_SIGNALS end no process; `stop_was_asked` reports them. Main thread only.

    They are blocked, which the processes that this one starts inherit: srun hands a signal to every
    process of a step, and a handler would not outlive their exec. The handler is for what gets past
    the block: threads that libraries started before it, and Python's own resource tracker, whose
    start unblocks SIGTERM and SIGINT for good (ResourceTracker.ensure_running).
    """
    found = HeldSignals(
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS),
        {number: signal.getsignal(number) for number in STOP_SIGNALS},
    )
    for number in STOP_SIGNALS:
        signal.signal(number, lambda received, _: _noted.add(received))
    return found


def stop_was_asked() -> bool:
    """Whether one of STOP_SIGNALS has arrived since they are held. Also blocks them again, in case
    something unblocked them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    return bool(_noted) or not STOP_SIGNALS.isdisjoint(signal.sigpending())


def release_stop_signals(found: HeldSignals) -> None:
    """Restore what `hold_stop_signals` found. A signal that came in between was answered already
    and is discarded."""
    for number in STOP_SIGNALS - found.mask:
        signal.signal(number, signal.SIG_IGN)  # which discards what is pending
        _noted.discard(number)
    signal.pthread_sigmask(signal.SIG_SETMASK, found.mask)
    for handled, handler in found.handlers.items():
        signal.signal(handled, handler)
