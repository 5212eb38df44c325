"""The state as named pieces: complete, live, and enough to go on from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.gloo import run_gloo
from tests.pipeline.engine.probes import SMALL, differing, snapshot
from tests.pipeline.engine.training import batch_of, engine_of, job, model_of, pieces, whole


def _fresh(rank: int, world_size: int, jobs: list[list[str]]) -> list[Any]:
    """Pieces before any step."""
    found = []
    for overrides in jobs:
        engine, _ = engine_of(rank, world_size, [*SMALL, *overrides])
        found.append((pieces(engine.shards), engine.shards.optimizer_step))
        engine.close()
    return found


def _resumed(rank: int, world_size: int, jobs: list[list[str]]) -> list[dict[str, Any]]:
    """Two steps, then two more in the same engine and in a new one that was given the pieces."""
    found = []
    for overrides in jobs:
        words = [*SMALL, "train.ema_decay=0.9", *overrides]
        engine, _ = engine_of(rank, world_size, words)
        for step in range(2):
            engine.train_step(batch_of(step, rank, world_size), step)
        kept, step_count = pieces(engine.shards), engine.shards.optimizer_step
        extra, middle = engine.extra_state(), snapshot(engine)
        for step in range(2, 4):
            engine.train_step(batch_of(step, rank, world_size), step)
        end = snapshot(engine)
        engine.close()
        engine, _ = engine_of(rank, world_size, [*words, "train.seed=5"])
        other = differing(middle, snapshot(engine))
        parts = {(part.name, part.start): part for part in engine.shards.fragments()}
        for name, _, start, values in kept:
            for key, value in values.items():
                parts[name, start].values[key].copy_(value)
        engine.shards.optimizer_step = step_count
        engine.shards.publish()
        engine.load_extra_state(extra)
        loaded = differing(middle, snapshot(engine))
        for step in range(2, 4):
            engine.train_step(batch_of(step, rank, world_size), step)
        found.append({"other": other, "loaded": loaded, "end": differing(end, snapshot(engine))})
        engine.close()
    return found


def check_resumed(jobs: list[list[str]], world_size: int = 2) -> None:
    for rank in run_gloo(_resumed, world_size, jobs, timeout_s=280):
        for overrides, result in zip(jobs, rank, strict=True):
            assert len(result["other"]) > 50, overrides  # another seed had other weights
            assert result["loaded"] == [], overrides
            assert result["end"] == [], overrides


STAGES = [[f"deepspeed.zero_stage={stage}"] for stage in (1, 2, 3)]


@pytest.mark.slow
def test_pieces_before_a_step_are_the_model():
    jobs = [*STAGES, ["deepspeed.zero_stage=3", "train.text_lr_scale=0"], ["train.text_lr_scale=0"]]
    ranks = run_gloo(_fresh, 2, jobs, timeout_s=200)
    expected = dict(model_of(job(*SMALL)).named_parameters())
    for number, overrides in enumerate(jobs):
        of_job = [rank[number] for rank in ranks]
        found = whole([parts for parts, _ in of_job])
        assert found.keys() == expected.keys(), overrides
        assert all(torch.equal(found[name], value) for name, value in expected.items()), overrides
        moments = whole([parts for parts, _ in of_job], "exp_avg_sq")
        frozen = "text." if "train.text_lr_scale=0" in overrides else "none"
        assert moments.keys() == {n for n in expected if not n.startswith(frozen)}
        assert not any(value.any() for value in moments.values())
        assert [count for _, count in of_job] == [0, 0]


@pytest.mark.slow
def test_goes_on_from_pieces():
    check_resumed([["deepspeed.zero_stage=1"]])


@pytest.mark.slow
def test_goes_on_from_pieces_in_all_stages_and_precisions():
    check_resumed([*STAGES, *([*stage, "train.precision=pure_bf16"] for stage in STAGES)])
    check_resumed([[*stage, "deepspeed.offload_optimizer=true"] for stage in STAGES])
    check_resumed([[*STAGES[2], "train.image_lr_scale=0"], ["train.image_lr_scale=0"]])
    check_resumed([["train.optimizer=lamb"]])
    check_resumed([[*stage, "train.precision=bf16"] for stage in STAGES[1:]])
