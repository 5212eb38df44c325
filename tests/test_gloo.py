"""The helper that other tests trust: it returns, raises and times out, and leaves nobody behind."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from tests.gloo import ChildError, run_gloo


def _sum_of_ranks(rank: int, world_size: int, factor: int) -> tuple[int, torch.Tensor]:
    total = torch.tensor([rank * factor])
    dist.all_reduce(total)
    return os.getpid(), total


def _one_raises(rank: int, world_size: int) -> None:
    if rank == 1:
        raise KeyError("the shard of rank 1")
    dist.barrier()


def _one_dies(rank: int, world_size: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def _one_sleeps(rank: int, world_size: int) -> None:
    if rank == 1:
        time.sleep(60)
    dist.barrier()


def test_results_come_in_rank_order() -> None:
    results = run_gloo(_sum_of_ranks, 3, 10)
    assert [total.item() for _, total in results] == [30, 30, 30]
    assert len({pid for pid, _ in results} | {os.getpid()}) == 4


def test_traceback_of_the_child_that_raised() -> None:
    with pytest.raises(ChildError, match="rank 1 failed:(?s:.*)KeyError: 'the shard of rank 1'"):
        run_gloo(_one_raises, 2, timeout_s=60)


def test_killed_child() -> None:
    with pytest.raises(ChildError, match="rank 1 died without a result|rank 0 failed"):
        run_gloo(_one_dies, 2, timeout_s=60)


def test_timeout() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="returned nothing within 4 s"):
        run_gloo(_one_sleeps, 2, timeout_s=4)
    assert time.monotonic() - started < 30
