"""What a rank says of errors that are the machine's or the user's, not ours."""

from __future__ import annotations

import pytest
import torch

from pipeline import launch
from pipeline.config import TrainJob
from pipeline.distributed.world import init_distributed


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee ..."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate"
                     " memory: you tried to allocate 4096 bytes"),
    ],
)  # fmt: skip
def test_memory_that_does_not_suffice_is_told_with_what_needs_less(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def rank_main(job: TrainJob) -> int:
        raise error

    assert launch.run_rank(rank_main, TrainJob()) == 1
    told = capsys.readouterr().err
    assert told.startswith("error (rank ") and "Traceback" not in told
    assert "give train.image_micro_batch_size" in told and "See ..." not in told


def test_a_rank_that_nobody_started_says_how_ranks_are_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)

    def rank_main(job: TrainJob) -> int:
        init_distributed(1.0, None)
        return 0

    assert launch.run_rank(rank_main, TrainJob()) == 1
    told = capsys.readouterr().err
    assert told.startswith("error (rank ?): RANK, WORLD_SIZE")
    assert "start them with `python -m pipeline.train" in told
