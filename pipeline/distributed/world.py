"""The process group and this process's place in it. Only this file reads it from the environment:
RANK, WORLD_SIZE and SLURM_*."""

from __future__ import annotations

import os
import random
import sys
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from pipeline.distributed.gloo_interface import choose_gloo_interface
from pipeline.distributed.group import Group


@dataclass(frozen=True)
class World:
    """One rank's place in the run. `device` is its own; rank 0 writes whatever is written once per
    run."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    timeout: timedelta = timedelta(minutes=15)
    """Timeout of the collective operations of every process group."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def tell(self, text: str) -> None:
        """Print a line to stderr, on rank 0 only."""
        if self.is_main:
            print(text, file=sys.stderr, flush=True)

    def barrier(self) -> None:
        dist.barrier()

    def raise_on_all_ranks(self, doing: str) -> AbstractContextManager[None]:
        """`Group.raise_on_all_ranks` over the default group."""
        return Group(None, self.rank, self.world_size).raise_on_all_ranks(doing)


class NoWorldError(RuntimeError):
    """This process was not started as a rank; the message says how ranks are started."""


def init_distributed(timeout_minutes: float, threads_per_rank: int | None) -> World:
    """Join the process group of this run, from torchrun-style variables or from srun's.

    The names that srun gives are copied to the torch ones, because DeepSpeed looks for all five of
    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT and tries mpi4py when one is missing.
    """
    for ours, slurm in (("RANK", "PROCID"), ("WORLD_SIZE", "NTASKS"), ("LOCAL_RANK", "LOCALID")):
        if ours not in os.environ and f"SLURM_{slurm}" in os.environ:
            os.environ[ours] = os.environ[f"SLURM_{slurm}"]
    missing = [
        name
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        if name not in os.environ
    ]
    if missing:
        raise NoWorldError(
            f"{', '.join(missing)} not set, by which a rank knows its place: --config is for "
            "ranks; start them with `python -m pipeline.train run_dir=...`, srun or torchrun"
        )
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if threads_per_rank:
        torch.set_num_threads(threads_per_rank)
    # DeepSpeed 0.19.8 calls collectives by names that torch 2.13 deprecates; the user can do
    # nothing about it
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    timeout = timedelta(minutes=timeout_minutes)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    choose_gloo_interface(store, world_size, os.environ["MASTER_ADDR"])
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("default_pg", store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )
    return World(dist.get_rank(), local_rank, dist.get_world_size(), device, timeout)


def seed_everything(seed: int, rank: int) -> None:
    """Seed this rank's random generators, each rank differently. Weights are drawn before this,
    with the bare seed, so that all ranks have the same."""
    for seeder in (random.seed, np.random.seed, torch.manual_seed):
        seeder((seed * 65_537 + rank + 1) % 2**32)
