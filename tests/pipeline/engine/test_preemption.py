"""One rank is told to stop; all stop at the same step."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from pipeline.distributed.world import World
from pipeline.engine.preemption import StopRequest
from pipeline.signals import stop_was_asked
from tests.gloo import ChildError, run_gloo

STEPS = 12


def _world(rank: int, world_size: int) -> World:
    return World(rank, rank, world_size, torch.device("cpu"), timedelta(seconds=60))


def _send_to_myself(number: int) -> None:
    """Returns when this process would notice the signal: one that goes to a thread of a library,
    which does not block it, arrives when that thread next runs."""
    os.kill(os.getpid(), number)
    deadline = time.monotonic() + 60
    while not stop_was_asked():
        assert time.monotonic() < deadline
        time.sleep(0.001)


Told = dict[int, tuple[int, int]]
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def _steps_until_stop(rank: int, world_size: int, cases: list[Told]) -> list[int]:
    """Steps done in each of several runs; a case maps a rank to (step, signal) of its request."""
    steps_done = []
    for told in cases:
        with StopRequest(_world(rank, world_size)) as stop:
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) >= set(SIGNALS)
            done, stopped = 0, False
            while done < STEPS and not stopped:
                done += 1
                if told.get(rank, (0, 0))[0] == done:
                    _send_to_myself(told[rank][1])
                stopped = stop.agreed()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
        steps_done.append(done)
    return steps_done


def test_a_signal_to_one_rank_stops_both_one_step_later() -> None:
    cases = [{rank: (5, int(number))} for rank in range(2) for number in SIGNALS]
    assert run_gloo(_steps_until_stop, 2, cases) == [[6] * len(cases)] * 2


def test_signals_at_different_steps_stop_all_by_the_first() -> None:
    told = {0: (7, signal.SIGUSR1), 1: (3, signal.SIGTERM), 2: (4, signal.SIGUSR1)}
    assert run_gloo(_steps_until_stop, 3, [told]) == [[4]] * 3


def test_without_a_signal_nothing_stops_and_one_at_the_last_step_does_no_harm() -> None:
    cases: list[Told] = [{}, {0: (STEPS, signal.SIGTERM)}, {}]
    assert run_gloo(_steps_until_stop, 2, cases) == [[STEPS] * 3] * 2


def _child_survives(rank: int, world_size: int) -> int:
    with StopRequest(_world(rank, world_size)):
        shell = "kill -USR1 $$; kill -TERM $$; kill -INT $$; exit 3"
        return subprocess.run(["sh", "-c", shell], timeout=30).returncode


def test_processes_that_a_rank_starts_do_not_die_of_the_signal() -> None:
    assert run_gloo(_child_survives, 1) == [3]


def _votes_beside_slow_work(rank: int, world_size: int) -> list[int]:
    """Collectives of the default group between the votes, and a rank that is always late."""
    order = []
    with StopRequest(_world(rank, world_size)) as stop:
        for step in range(STEPS):
            time.sleep(0.02 * rank)
            if rank == 0 and step == 3:
                _send_to_myself(signal.SIGTERM)
            ones = torch.ones(1)
            dist.all_reduce(ones)
            assert ones.item() == world_size
            order.append(step)
            if stop.agreed():
                break
        dist.barrier()  # a checkpoint's
    return order


def test_votes_do_not_mix_with_the_collectives_of_a_step() -> None:
    assert run_gloo(_votes_beside_slow_work, 2) == [list(range(5))] * 2


def _one_rank_fails(rank: int, world_size: int) -> None:
    with StopRequest(_world(rank, world_size)) as stop:
        for step in range(STEPS):
            if rank == 1 and step == 4:
                raise ValueError("of rank 1")
            stop.agreed()


def test_an_error_inside_is_told_at_once_and_not_waited_for() -> None:
    with pytest.raises(ChildError, match=r"of rank 1|rank 0 failed[\s\S]*peer"):
        run_gloo(_one_rank_fails, 2, timeout_s=30)
