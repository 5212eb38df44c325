"""A host's turn: rate, connections, pauses that it asks for."""

from __future__ import annotations

import asyncio
import time

import pytest

from data_tools.crawl import hosts
from data_tools.crawl.hosts import HostBusy, HostTurns


async def take(turns: HostTurns, name: str, times: list[float], hold_s: float = 0.0) -> None:
    async with turns.of(name):
        times.append(time.monotonic())
        await asyncio.sleep(hold_s)


def ask(turns: HostTurns, name: str, count: int) -> list[float]:
    async def all_at_once() -> list[float]:
        times: list[float] = []
        await asyncio.gather(*(take(turns, name, times) for _ in range(count)))
        return times

    return asyncio.run(all_at_once())


def test_an_idle_host_is_asked_a_second_ahead_and_then_at_its_rate():
    times = ask(HostTurns(connections=100, requests_per_s=20.0), "a:80", count=30)
    assert times[19] - times[0] < 0.2, "20 at once"
    gaps = [later - earlier for earlier, later in zip(times[19:], times[20:])]
    assert all(gap > 0.03 for gap in gaps) and times[-1] - times[0] > 0.45


def test_no_rate_is_no_wait():
    times = ask(HostTurns(connections=1, requests_per_s=0.0), "a:80", count=500)
    assert len(times) == 500 and times[-1] - times[0] < 1.0


def test_hosts_do_not_wait_for_each_other():
    turns = HostTurns(connections=1, requests_per_s=1.0)

    async def both() -> float:
        started = time.monotonic()
        await asyncio.gather(*(take(turns, f"{n}:80", []) for n in range(50)))
        return time.monotonic() - started

    assert asyncio.run(both()) < 0.5


def test_no_more_than_so_many_at_a_time():
    turns, now, most = HostTurns(connections=3, requests_per_s=0.0), 0, 0

    async def one() -> None:
        nonlocal now, most
        async with turns.of("a:80"):
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.01)
            now -= 1

    async def all_at_once() -> None:
        await asyncio.gather(*(one() for _ in range(20)))

    asyncio.run(all_at_once())
    assert most == 3


def test_a_turn_too_far_away_is_refused_and_costs_the_host_nothing():
    turns = HostTurns(connections=100, requests_per_s=10.0)
    turns.slow_down("a:80", 25.0)

    async def some() -> list[object]:
        tasks = [asyncio.ensure_future(take(turns, "a:80", [])) for _ in range(10)]
        await asyncio.sleep(0.1)
        results: list[object] = [task.exception() if task.done() else "waits" for task in tasks]
        for task in tasks:
            task.cancel()
        return results

    results = asyncio.run(some())
    assert results[:3] == [None, "waits", "waits"], "at 0, 25 and 50 s"
    assert all(isinstance(each, HostBusy) and not each.host_asked for each in results[3:])


@pytest.mark.parametrize("delay_s", [float("nan"), -1.0, 0.0])
def test_an_absurd_pause_changes_nothing(delay_s):
    turns = HostTurns(connections=100, requests_per_s=0.0)
    turns.slow_down("a:80", delay_s)
    assert len(ask(turns, "a:80", 20)) == 20


def test_a_closed_host_is_left_alone_until_its_time():
    turns = HostTurns(connections=1, requests_per_s=0.0)
    turns.close("a:80", 0.2)
    with pytest.raises(HostBusy, match="asked not to be asked") as busy:
        ask(turns, "a:80", 1)
    assert busy.value.host_asked
    time.sleep(0.25)
    assert len(ask(turns, "a:80", 1)) == 1


def test_nobody_holds_a_connection_for_ever(monkeypatch):
    monkeypatch.setattr(hosts, "MAX_WAIT_S", 0.1)
    turns = HostTurns(connections=1, requests_per_s=0.0)

    async def two() -> None:
        holder = asyncio.ensure_future(take(turns, "a:80", [], hold_s=5))
        await asyncio.sleep(0.01)
        try:
            await take(turns, "a:80", [])
        finally:
            holder.cancel()

    with pytest.raises(HostBusy, match="no connection to a:80 is free"):
        asyncio.run(two())


def test_idle_hosts_are_forgotten(monkeypatch):
    monkeypatch.setattr(hosts, "MAX_HOSTS", 10)
    turns = HostTurns(connections=1, requests_per_s=0.0)
    turns.close("kept:80", 100)
    for number in range(100):
        ask(turns, f"{number}:80", 1)
    assert len(turns._hosts) <= 11
    with pytest.raises(HostBusy):
        ask(turns, "kept:80", 1)


def test_each_url_says_how_long_it_may_wait_and_is_told_how_long_it_did():
    turns = HostTurns(connections=100, requests_per_s=0.0)
    turns.slow_down("a:80", 0.2)

    async def three() -> list[object]:
        waited: list[object] = []
        for patience_s in (0.0, 5.0, 0.0):
            try:
                async with turns.of("a:80", patience_s) as seconds:
                    waited.append(seconds)
            except HostBusy as busy:
                waited.append(str(busy))
        return waited

    first, second, third = asyncio.run(three())
    assert isinstance(first, float) and isinstance(second, float) and second > 0.1
    assert "a:80 is asked once in 0.2 s (Crawl-delay); the next turn is in 0 s" in str(third)


def test_a_long_pause_is_kept_as_it_was_asked_for():
    """Two minutes, and no request after one, however often the host is told to be slow."""
    turns = HostTurns(connections=100, requests_per_s=0.0)
    for _ in range(3):
        turns.slow_down("a:80", 120.0)

    async def two() -> None:
        await take(turns, "a:80", [])
        async with turns.of("a:80", 90.0):
            pass

    with pytest.raises(HostBusy, match="once in 120 s .Crawl-delay.; the next turn is in 120 s"):
        asyncio.run(two())


def test_a_host_whose_next_turn_is_to_come_is_not_forgotten(monkeypatch):
    monkeypatch.setattr(hosts, "MAX_HOSTS", 10)
    turns = HostTurns(connections=1, requests_per_s=0.0)
    turns.slow_down("slow:80", 100.0)
    ask(turns, "slow:80", 1)
    for number in range(100):
        ask(turns, f"{number}:80", 1)
    with pytest.raises(HostBusy):
        ask(turns, "slow:80", 1)
