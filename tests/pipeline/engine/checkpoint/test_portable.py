"""Live engines: every ZeRO stage and number of ranks goes on from the checkpoint of every other."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.engine.checkpoint import CheckpointManager, load_model_weights
from pipeline.state import TrainState
from tests.gloo import run_gloo
from tests.pipeline.engine.training import (
    GLOBAL_BATCH_SIZE,
    batch_of,
    engine_of,
    pieces,
    whole,
    world_of,
)

SAVED, LAST = 2, 4
# a decay that would show in two steps where it does not belong
SENSITIVE = ["train.weight_decay=0.5", "train.lr=0.01"]


def folder_of(root: str, stage: int, world_size: int) -> str:
    return f"{root}/stage_{stage}_ranks_{world_size}"


def steps_of(engine: Any, rank: int, world_size: int, first: int, last: int) -> list[float]:
    return [
        float(engine.train_step(batch_of(step, rank, world_size), step).loss)
        for step in range(first, last)
    ]


def decays(engine: Any) -> dict[float, int]:
    """How many of the parameter groups have which weight decay."""
    found = [group["weight_decay"] for group in engine._engine.optimizer.param_groups]
    return {decay: found.count(decay) for decay in found}


def keep_truth(run_dir: str, rank: int, when: str, engine: Any) -> None:
    torch.save(pieces(engine.shards), f"{run_dir}/{when}_{rank}.pt")


@lru_cache(maxsize=2)
def truth(run_dir: str, when: str, kind: str) -> dict[str, Tensor]:
    """Whole parameters or moments of the run that was saved, not read from its checkpoint."""
    files = sorted(Path(run_dir).glob(f"{when}_*.pt"))
    return whole([torch.load(file, weights_only=True) for file in files], kind)


def compare(engine: Any, run_dir: str, when: str, *, exact: bool) -> None:
    """This rank's pieces with those of the run that was saved."""
    kinds = dict.fromkeys(kind for *_, values in pieces(engine.shards) for kind in values)
    for kind in kinds:
        expected = truth(run_dir, when, kind)
        for name, shape, start, values in pieces(engine.shards):
            if kind not in values:
                continue
            assert tuple(expected[name].shape) == tuple(shape)
            wanted = expected[name].flatten()[start : start + len(values[kind])]
            if exact:
                assert torch.equal(values[kind], wanted), f"{kind} of {name} {when}"
            else:
                close = torch.allclose(values[kind], wanted, rtol=1e-4, atol=5e-6)
                assert close, f"{kind} of {name} {when}"


def save(rank: int, world_size: int, root: str, stages: list[int], overrides: list[str]) -> list:
    """For each stage: the losses after the checkpoint, and the decays."""
    results = []
    for stage in stages:
        run_dir = folder_of(root, stage, world_size)
        engine, config = engine_of(
            rank,
            world_size,
            [*SENSITIVE, *overrides, f"deepspeed.zero_stage={stage}", f"run_dir={run_dir}"],
        )
        with CheckpointManager(config, world_of(rank, world_size), "data") as checkpoints:
            checkpoints.load_latest(engine)
            torch.manual_seed(7 + rank)
            steps_of(engine, rank, world_size, 0, SAVED)
            keep_truth(run_dir, rank, "saved", engine)
            checkpoints.save(engine, TrainState(SAVED, SAVED * GLOBAL_BATCH_SIZE))
            losses = steps_of(engine, rank, world_size, SAVED, LAST)
        keep_truth(run_dir, rank, "last", engine)
        results.append((losses, decays(engine)))
        engine.close()
    return results


def go_on(
    rank: int,
    world_size: int,
    sources: list[tuple[str, bool]],
    stage: int,
    overrides: list[str],
) -> list:
    """From each source (folder, whether all has to be equal bit by bit) with an engine of other
    weights: the losses after the checkpoint, and the decays."""
    results = []
    for run_dir, exact in sources:
        engine, config = engine_of(
            rank,
            world_size,
            [
                *SENSITIVE,
                *overrides,
                f"deepspeed.zero_stage={stage}",
                f"run_dir={run_dir}",
                "train.seed=5",
            ],
        )
        with CheckpointManager(config, world_of(rank, world_size), "data") as checkpoints:
            state = checkpoints.load_latest(engine)
        assert state == TrainState(SAVED, SAVED * GLOBAL_BATCH_SIZE)
        compare(engine, run_dir, "saved", exact=True)
        losses = steps_of(engine, rank, world_size, SAVED, LAST)
        compare(engine, run_dir, "last", exact=exact)
        results.append((losses, decays(engine)))
        engine.close()
    return results


def mean_losses(ranks: list) -> torch.Tensor:
    """(sources, steps) over ranks."""
    return torch.tensor([[losses for losses, _ in rank] for rank in ranks]).mean(0)


def check_all(root: Path, sources: list[tuple[int, int]], targets: list[tuple[int, int]]) -> None:
    """(stage, world size) to (stage, world size)."""
    losses, groups = [], []
    for size in dict.fromkeys(size for _, size in sources):
        stages = [stage for stage, of_size in sources if of_size == size]
        ranks = run_gloo(save, size, str(root), stages, [], timeout_s=280)
        losses.append(mean_losses(ranks))
        groups += [decay for _, decay in ranks[0]]
    expected = torch.cat(losses)
    for stage, size in targets:
        exact = [(folder_of(str(root), *source), source == (stage, size)) for source in sources]
        ranks = run_gloo(go_on, size, exact, stage, [], timeout_s=280)
        torch.testing.assert_close(mean_losses(ranks), expected, rtol=3e-6, atol=3e-6)
        # of stage 3 DeepSpeed's own portable form gives every group the first one's decay
        assert [decay for _, decay in ranks[0]] == groups and len(groups[0]) == 2


EVERY = [(stage, size) for size in (1, 2, 4) for stage in (1, 2, 3)]


@pytest.mark.exhaustive  # 81 pairs, three minutes
@pytest.mark.timeout(1800)
def test_every_stage_and_world_size_to_every_other(tmp_path):
    check_all(tmp_path, EVERY, EVERY)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_stage_and_world_size_to_each_stage_and_each_world_size(tmp_path):
    check_all(tmp_path, EVERY, [(3, 1), (1, 2), (2, 4)])
    for source in EVERY:
        folder = folder_of(str(tmp_path), *source)
        weights, expected = load_model_weights(Path(folder)), truth(folder, "saved", "weight")
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in weights)


VARIANTS = {
    "average": ["train.ema_decay=0.9"],
    "pure_bf16": ["train.precision=pure_bf16"],
    "bf16": ["train.precision=bf16"],
    "frozen tower": ["train.image_lr_scale=0"],
    "offloaded": ["deepspeed.offload_optimizer=true"],
    "dropout": ["model.dropout=0.2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_ranks_go_on_bit_by_bit(tmp_path, variant, stage):
    overrides = VARIANTS[variant]
    saved = run_gloo(save, 2, str(tmp_path), [stage], overrides)
    sources = [(folder_of(str(tmp_path), stage, 2), True)]
    assert run_gloo(go_on, 2, sources, stage, overrides) == saved
