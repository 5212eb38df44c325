import json
import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.config import OpenverseConfig, SourcesConfig
from data_tools.search.base import SourceStopped
from data_tools.search.limits import openverse_limits
from data_tools.search.rates import (
    Closed,
    Quota,
    RateLimiter,
    SlidingWindow,
    TokenBucket,
    limiter_for,
)
from data_tools.tables.schema import DataError

NOON = 1_767_268_800.0  # 2026-01-01 12:00:00 UTC


class FakeTime:
    """Both clocks, moved by whoever waits."""

    def __init__(self, monkeypatch):
        self.passed_s = 0.0
        monkeypatch.setattr(time, "time", lambda: NOON + self.passed_s)
        monkeypatch.setattr(time, "monotonic", lambda: 5.0 + self.passed_s)

    def limiter(self, *values, **named):
        limiter = RateLimiter(*values, **named)
        limiter._closed.wait = self.wait
        return limiter

    def wait(self, seconds):
        self.passed_s += seconds
        return False


@pytest.fixture
def clock(monkeypatch):
    return FakeTime(monkeypatch)


def test_the_bucket_keeps_the_pace(clock):
    limiter = clock.limiter(2.0, 3)
    for _ in range(3 + 10):
        limiter.take()
    assert clock.passed_s == pytest.approx(10 / 2.0)
    limiter.pause(30.0)
    limiter.take()
    assert clock.passed_s == pytest.approx(5.0 + 30.0)


def test_a_slow_pace_is_waited_for_however_short_the_patience(clock):
    limiter = clock.limiter(0.001, max_wait_s=1.0)
    for _ in range(3):
        limiter.take()
    assert clock.passed_s == pytest.approx(2000.0)


def test_a_full_bucket_waits_for_nothing_later(clock):
    bucket = TokenBucket(1.0, burst=2)
    clock.passed_s = 1000.0
    waits = []
    for _ in range(3):
        waits.append(bucket.wait_s())
        bucket.take()
    assert waits[:2] == [-1.0, 0.0] and waits[2] == pytest.approx(1.0)


def test_no_window_ever_holds_more_than_its_quota(clock):
    """Irregular requests over many windows, counted by brute force."""
    limiter = clock.limiter(1000.0, 1000, [Quota(10, 60.0), Quota(25, 600.0)], max_wait_s=1e9)
    random.seed(3)
    taken = []
    for _ in range(300):
        clock.passed_s += random.choice([0.0, 0.1, 7.0, 90.0])
        limiter.take()
        taken.append(clock.passed_s)
    for number, window_s in ((10, 60.0), (25, 600.0)):
        for position, moment in enumerate(taken[:-number]):
            assert taken[position + number] - moment >= window_s - 1e-6


@settings(max_examples=60, deadline=None)
@given(
    number=st.integers(1, 6),
    window_s=st.floats(0.5, 1e5),
    gaps=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40),
)
def test_a_window_never_lets_one_more_through(number, window_s, gaps):
    window, now, taken = SlidingWindow(Quota(number, window_s)), NOON, []
    for gap in gaps:
        now += gap * window_s
        if window.wait_s(now) <= 0:
            window.add(now)
            taken.append(now)
            inside = [moment for moment in taken if now - moment < window_s * (1 - 1e-9)]
            assert len(inside) <= number
        else:
            later = SlidingWindow(window.quota, dict(window.counts))
            assert later.wait_s(now + window.wait_s(now) + 1e-3) <= 0


def test_a_used_up_quota_says_when_to_come_back(clock):
    limiter = clock.limiter(1000.0, 1000, [Quota(2, 86400.0)], max_wait_s=120.0)
    limiter.take()
    limiter.take()
    with pytest.raises(SourceStopped) as error:
        limiter.take()
    assert "the quota of 2 requests a day is used up" in str(error.value)
    assert "UTC" in str(error.value) and "2026-01-02 12:" in str(error.value)
    assert clock.passed_s == 0.0
    clock.passed_s = 86400.0 * 1.02
    limiter.take()


def test_a_quota_outlives_the_process(clock, tmp_path):
    memory = tmp_path / "search" / "rates.json"
    quotas = [Quota(5, 3600.0), Quota(8, 86400.0)]
    for _ in range(5):  # a new process for each
        clock.limiter(1000.0, 9, quotas, memory=memory).take()
    with pytest.raises(SourceStopped, match="5 requests an hour"):
        clock.limiter(1000.0, 9, quotas, memory=memory).take()
    clock.passed_s = 3700.0
    for _ in range(3):
        clock.limiter(1000.0, 9, quotas, memory=memory).take()
    clock.passed_s = 2 * 3700.0
    with pytest.raises(SourceStopped, match="8 requests a day"):
        clock.limiter(1000.0, 9, quotas, memory=memory).take()
    assert not list(memory.parent.glob(".*"))


def test_the_memory_is_written_before_the_request(clock, tmp_path):
    """A kill between the two may lose a turn, and never gains one."""
    memory = tmp_path / "rates.json"
    limiter = clock.limiter(1000.0, 9, [Quota(5, 60.0)], memory=memory)
    for number in (1, 2, 3):
        limiter.take()
        counts = json.loads(memory.read_text())["windows"]["60"]
        assert sum(counts.values()) == number


def test_a_pause_outlives_the_process(clock, tmp_path):
    memory = tmp_path / "rates.json"
    clock.limiter(1000.0, memory=memory).pause(3600.0)
    with pytest.raises(SourceStopped, match="asked for a pause.*in 3600 s"):
        clock.limiter(1000.0, memory=memory).take()
    patient = clock.limiter(1000.0, memory=memory, max_wait_s=4000.0)
    patient.take()
    assert clock.passed_s == pytest.approx(3600.0)


def test_the_memory_is_small(clock, tmp_path):
    memory = tmp_path / "rates.json"
    limiter = clock.limiter(1e6, 10, [Quota(10**6, 86400.0)], memory=memory)
    for _ in range(500):
        clock.passed_s += 1000.0
        limiter.take()
    assert len(memory.read_text()) < 5000


def test_a_clock_that_was_wrong_does_not_block_for_years(clock, tmp_path):
    memory = tmp_path / "rates.json"
    quotas = [Quota(1, 60.0)]
    clock.passed_s = 10 * 365 * 86400.0
    clock.limiter(1.0, 1, quotas, memory=memory).take()
    clock.passed_s = 0.0
    limiter = clock.limiter(1.0, 1, quotas, memory=memory)
    limiter.take()
    assert clock.passed_s == 0.0, "the slot from the future counts for nothing"
    limiter.take()
    assert 60.0 <= clock.passed_s < 62.0, "the quota itself holds"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"not_before": "x", "windows": {}}', "{}"])
def test_a_damaged_memory_is_no_fresh_quota(tmp_path, content):
    memory = tmp_path / "rates.json"
    memory.write_text(content)
    with pytest.raises(DataError, match="rates.json.*delete it"):
        RateLimiter(1.0, memory=memory)


def test_the_servers_own_word_replaces_the_quota(clock):
    limiter = clock.limiter(1000.0, 99, [Quota(1, 3600.0)])
    limiter.take()
    limiter.adopt([Quota(20, 60.0), Quota(200, 86400.0, used=198)])
    limiter.take()
    limiter.take()
    with pytest.raises(SourceStopped, match="200 requests a day"):
        limiter.take()


def test_closing_wakes_who_waits():
    limiter = RateLimiter(0.001, 1)
    limiter.take()
    woken = []

    def wait():
        try:
            limiter.take()
        except Closed:
            woken.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    limiter.close()
    thread.join(timeout=10)
    assert woken == [True]
    with pytest.raises(Closed):
        limiter.take()


@pytest.mark.parametrize(("has_key", "hour", "day"), [(False, 5, 100), (True, 6000, 10_000)])
def test_openverse_at_its_documented_rate(clock, has_key, hour, day):
    """As many as the quotas allow in the first hour and day, by a caller who waits for ever."""
    config = SourcesConfig(openverse=OpenverseConfig(requests_per_second=1e6), max_wait_s=1e9)
    limiter = limiter_for(openverse_limits(config.openverse, has_key), 1000, config, "x", None)
    limiter._closed.wait = clock.wait
    moments = []
    while clock.passed_s <= 86400.0:
        limiter.take()
        moments.append(clock.passed_s)
    within_hour = sum(moment < 3600.0 for moment in moments)
    within_day = sum(moment < 86400.0 for moment in moments)
    assert 0.97 * hour <= within_hour <= hour
    assert 0.9 * day <= within_day <= day


@pytest.mark.parametrize("seconds", [1e12, 1e300, float("inf")])
def test_a_pause_of_ages_is_one_of_a_year(clock, tmp_path, seconds):
    memory = tmp_path / "rates.json"
    clock.limiter(1.0, memory=memory).pause(seconds)
    with pytest.raises(SourceStopped, match="at 2027-01-02 12:00:00 UTC"):
        clock.limiter(1.0, memory=memory).take()
