from __future__ import annotations

import os
import signal
import time

import pytest

from data_tools.tables.schema import DataError
from data_tools.work.processes import in_processes


def square(number: int) -> int:
    time.sleep(0.02 * (number % 3))  # later ones are ready first
    return number * number


def fail_at(number: int) -> int:
    if number == 3:
        raise DataError(f"unit {number} is bad")
    return number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def sleep_long(number: int) -> int:
    time.sleep(60)
    return number


def units(count: int):
    return ((number,) for number in range(count))


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order(processes):
    assert list(in_processes(square, units(9), processes)) == [n * n for n in range(9)]


def test_units_are_read_as_they_are_needed():
    taken = []

    def counted():
        for number in range(1000):
            taken.append(number)
            yield (number,)

    results = in_processes(square, counted(), 2)
    next(results)
    assert len(taken) < 20
    del results


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_is_raised_as_it_is(processes):
    results = in_processes(fail_at, units(9), processes)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="unit 3 is bad"):
        next(results)


def test_a_killed_worker_is_an_error():
    with pytest.raises(DataError, match="worker process was killed, most often because memory"):
        list(in_processes(die, units(4), 2))


@pytest.mark.slow
def test_a_unit_without_end_is_an_error():
    started = time.monotonic()
    with pytest.raises(DataError, match="at one piece of work for 3 s"):
        list(in_processes(sleep_long, units(4), 2, timeout_s=3))
    assert time.monotonic() - started < 50, "its workers were not waited for"


def test_nothing_to_do_starts_nothing():
    assert list(in_processes(square, units(0), 2)) == []
    assert list(in_processes(os.getpid, [()], 8)) == [os.getpid()], "one unit needs no process"
