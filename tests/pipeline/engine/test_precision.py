"""What each precision stores, sends and computes in, against README.md beside the engine; and that
all of them train as float32 does."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from pipeline.config import Precision
from tests.gloo import run_gloo
from tests.pipeline.engine.precision_table import STAGES, in_readme, measure, table
from tests.pipeline.engine.probes import SMALL
from tests.pipeline.engine.training import STEPS, batch_of, engine_of, pieces

HALVES = {
    Precision.bf16: torch.bfloat16,
    Precision.pure_bf16: torch.bfloat16,
    Precision.fp16: torch.float16,
}
stages = pytest.mark.parametrize(
    "stage", [1, *(pytest.param(stage, marks=pytest.mark.slow) for stage in STAGES[1:])]
)


@cache
def measured(stage: int) -> dict[Precision, list[dict[str, Any]]]:
    """Of all precisions, each rank's."""
    ranks = run_gloo(measure, 2, [(precision, stage) for precision in Precision], timeout_s=280)
    return {precision: [rank[n] for rank in ranks] for n, precision in enumerate(Precision)}


@stages
def test_masters_moments_scale_and_loss_are_float32(stage):
    for precision, ranks in measured(stage).items():
        for result in ranks:
            assert result["stored"]["masters"] == ["torch.float32"], precision
            assert result["stored"]["moments"] == ["torch.float32"], precision
            assert result["scale dtype"] == result["loss dtype"] == torch.float32, precision


@stages
def test_the_scale_in_the_forward_is_the_master(stage):
    for precision, ranks in measured(stage).items():
        for result in ranks:
            masters = result["masters"]
            assert torch.equal(result["scales"], masters), precision
            for half in (torch.bfloat16, torch.float16):  # rounding would show
                assert (masters.to(half).float() != masters).sum() >= 3, masters


@stages
def test_trains_as_float32_does(stage):
    results = measured(stage)
    exact = torch.stack([rank["losses"] for rank in results[Precision.fp32]]).mean(0)
    norms = results[Precision.fp32][0]["norms"]
    assert exact[-1] < exact[0] - 0.03
    for precision in HALVES:
        losses = torch.stack([rank["losses"] for rank in results[precision]]).mean(0)
        assert not any(results[precision][0]["skipped"]), precision
        # bfloat16 has three digits: 0.4 %, of logits of about 3 at these features
        difference = (losses - exact).abs().max()
        assert 0 < difference < (0.003 if precision is Precision.fp16 else 0.02), precision
        # of the whole gradient, unscaled: fp16's is 2^8 times as large on the wire
        torch.testing.assert_close(results[precision][0]["norms"], norms, rtol=0.03, atol=0)


@pytest.mark.slow
def test_the_readme_says_what_is_measured():
    results = {
        (precision, stage): measured(stage)[precision]
        for precision in Precision
        for stage in STAGES
    }
    assert in_readme() == table(results), "python -m tests.pipeline.engine.precision_table --write"


def _overflow_and_resume(rank: int, world_size: int, stage: int) -> dict[str, Any]:
    """fp16 from a scale that overflows, on; and on in a second engine from what the first said of
    itself after two steps."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True
    overrides = ["train.precision=fp16", f"deepspeed.zero_stage={stage}", *SMALL]
    engine, _ = engine_of(rank, world_size, overrides)
    engine.load_extra_state(engine.extra_state() | {"loss_scale": 2.0**18})
    states, skipped = [], []
    for step in range(STEPS):
        if step == 1:
            kept = pieces(engine.shards), engine.shards.optimizer_step, engine.extra_state()
        skipped.append(float(engine.train_step(batch_of(step, rank, world_size), step).skipped))
        states.append(engine.extra_state())
    engine.close()
    again, _ = engine_of(rank, world_size, overrides)
    for fragment, (_, _, _, values) in zip(again.shards.fragments(), kept[0]):
        for key, value in values.items():
            fragment.values[key].copy_(value)
    again.shards.optimizer_step = kept[1]
    again.shards.publish()
    again.load_extra_state(kept[2])
    resumed = []
    for step in range(1, STEPS):
        again.train_step(batch_of(step, rank, world_size), step)
        resumed.append(again.extra_state())
    result = {"skipped": skipped, "states": states, "resumed": resumed}
    again.close()
    return result


@pytest.mark.slow
def test_the_loss_scale_survives_a_resume():
    """DeepSpeed forgives the first overflow (hysteresis), then halves the scale: a count that a
    resumed run must know, or it skips a step more than the run that it continues."""
    for stage in (1, 3):
        for result in run_gloo(_overflow_and_resume, 2, stage, timeout_s=200):
            assert result["skipped"][:2] == [1.0, 1.0]
            assert result["resumed"] == result["states"][1:]
            assert [state["loss_scale"] for state in result["states"][:2]] == [2.0**18, 2.0**17]
