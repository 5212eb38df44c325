"""What DeepSpeed does for nothing is left out, and nothing else changes."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from pipeline.engine import deepspeed_patches
from tests.gloo import run_gloo
from tests.pipeline.engine.probes import SMALL, differing, snapshot
from tests.pipeline.engine.training import STEPS, batch_of, engine_of

EMA = "train.ema_decay=0.9"
BY_PARTS = ["train.image_micro_batch_size=2", "train.text_micro_batch_size=4"]
SHARING = [
    [f"deepspeed.zero_stage={stage}", f"train.precision={precision}"]
    for stage in (1, 2)
    for precision in ("fp32", "bf16")
]
APART = [
    ["deepspeed.zero_stage=1", "train.precision=pure_bf16"],
    ["deepspeed.zero_stage=2", "train.precision=pure_bf16"],
    ["deepspeed.zero_stage=2", "deepspeed.offload_optimizer=true"],
]


def _trained(rank: int, world_size: int, overrides: list[str]) -> tuple[list[Any], Any]:
    """Losses, norms and weights of STEPS steps with an evaluation in their midst; the state."""
    engine, _ = engine_of(rank, world_size, [*SMALL, *overrides])
    seen: list[Any] = []
    for step in range(STEPS):
        metrics = engine.train_step(batch_of(step, rank, world_size), step)
        norms = metrics.grad_norms.nan_to_num(-1.0)  # offloaded ones of a tower are not known
        seen += [metrics.loss, norms, metrics.skipped]
        if step == STEPS // 2:
            with engine.evaluating():
                seen.append(engine.encode_image(batch_of(9, rank, world_size).images).clone())
        weights = engine._towers.clip.parameters()
        seen.append(torch.cat([value.detach().float().reshape(-1) for value in weights]))
    state = snapshot(engine)
    engine.close()
    return seen, state


def _with_and_without(rank: int, world_size: int, jobs: list[list[str]]) -> list[list[Any]]:
    from pipeline.engine import engine as module

    found = []
    for overrides in jobs:
        left_out = _trained(rank, world_size, overrides)
        module.skip_redundant_work = lambda zero: None
        kept = _trained(rank, world_size, overrides)
        module.skip_redundant_work = deepspeed_patches.skip_redundant_work
        same = [bool(torch.equal(a, b)) for a, b in zip(left_out[0], kept[0], strict=True)]
        found.append([same, differing(left_out[1], kept[1])])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_no_bit_changes(world_size):
    """One rank in bfloat16 is the exception: see below."""
    jobs = [[*job, *more] for job in SHARING + APART for more in ([], [EMA], BY_PARTS)]
    jobs = [job for job in jobs if not (EMA in job and "deepspeed.offload_optimizer=true" in job)]
    if world_size == 1:
        jobs = [job for job in jobs if "train.precision=bf16" not in job]
    for rank in run_gloo(_with_and_without, world_size, jobs, timeout_s=280):
        for job, (same, state) in zip(jobs, rank, strict=True):
            assert len(same) == 4 * STEPS + 1
            assert all(same) and not state, job


def _one_step(rank: int, world_size: int, with_copies: bool) -> dict[str, torch.Tensor]:
    """The gradients that one rank is about to apply in bfloat16."""
    from pipeline.engine import engine as module

    if with_copies:
        module.skip_redundant_work = lambda zero: None
    engine, _ = engine_of(rank, world_size, [*SMALL, "train.precision=bf16"])
    found: dict[str, torch.Tensor] = {}
    apply = engine._update.apply

    def noted() -> Any:
        found.update((name, value.clone()) for name, value in engine.shards.gradients())
        return apply()

    engine._update.apply = noted
    engine.train_step(batch_of(0, rank, world_size), 0)
    engine.close()
    return found


def test_one_rank_does_not_round_what_it_does_not_send():
    (left_out,) = run_gloo(_one_step, 1, False)
    (kept,) = run_gloo(_one_step, 1, True)
    rounded = [name for name, value in kept.items() if not torch.equal(value, left_out[name])]
    assert "text.token_embedding.weight" in rounded  # the others are bfloat16 from the backward on
    for name in rounded:
        assert torch.equal(kept[name], left_out[name].bfloat16().float()), name


def _places(rank: int, world_size: int, jobs: list[list[str]]) -> list[tuple[bool, bool]]:
    """After a step: whether all masters lie in the weights, and all parameters in the flat ones."""
    found = []
    for overrides in jobs:
        engine, _ = engine_of(rank, world_size, [*SMALL, *overrides])
        engine.train_step(batch_of(0, rank, world_size), 0)
        zero = engine._engine.optimizer
        weights = {flat.untyped_storage().data_ptr() for flat in zero.bit16_groups_flat}
        masters = {flat.untyped_storage().data_ptr() for flat in engine.shards.flats}
        parameters = engine._towers.clip.parameters()
        of_model = {value.untyped_storage().data_ptr() for value in parameters}
        found.append((masters == weights, of_model == weights))
        engine.close()
    return found


def test_masters_lie_in_the_weights_where_both_are_float32():
    for rank in run_gloo(_places, 2, SHARING + APART):
        assert rank == [(True, True)] * len(SHARING) + [(False, True)] * len(APART)


def _modules_after_a_step(rank: int, world_size: int) -> set[str]:
    _trained(rank, world_size, [])
    return {"torch._inductor.compile_fx", "matplotlib", "jinja2"} & set(sys.modules)


def test_a_start_imports_neither_the_compiler_nor_what_makes_the_report():
    assert run_gloo(_modules_after_a_step, 1, timeout_s=120) == [set()]
