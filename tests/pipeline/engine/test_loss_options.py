"""What the loss group can set, seen in trainings of two ranks through the whole engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.config import ConfigError
from pipeline.config.composition import load_job
from tests.gloo import run_gloo
from tests.pipeline.engine.probes import SMALL, group_names, recorded_collectives
from tests.pipeline.engine.test_engine import check, reference
from tests.pipeline.engine.training import (
    GLOBAL_BATCH_SIZE,
    batch_of,
    engine_of,
    train_each,
)

PARTS = ["train.image_micro_batch_size=2", "train.text_micro_batch_size=4"]
SMOOTH = "loss.label_smoothing=0.2"
SIGMOID = "loss.kind=sigmoid"
RING = "loss.exchange=ring"
BFLOAT16 = "loss.reduce_dtype=bfloat16"


def trained(jobs: list[list[str]]) -> list[tuple[dict[str, Any], ...]]:
    """For each job, what each of two ranks has after its steps."""
    return list(zip(*run_gloo(train_each, 2, jobs, timeout_s=280), strict=True))


def test_smoothed_targets_are_those_of_the_reference_and_not_the_plain_ones():
    jobs = [[SMOOTH], [SMOOTH, *PARTS], [SMOOTH, "loss.stash_mib=0", "loss.tile=3"]]
    for of_job in trained(jobs):
        check(of_job, reference((SMOOTH,)), towers=True)
    plain, smooth = reference(())["losses"], reference((SMOOTH,))["losses"]
    assert min(abs(one - other) for one, other in zip(plain, smooth, strict=True)) > 1e-3


def test_a_ring_trains_as_a_gather_does():
    jobs = [[SIGMOID, RING], [SIGMOID, RING, *PARTS], [SIGMOID, RING, "loss.tile=5"]]
    for of_job in trained(jobs):
        check(of_job, reference((SIGMOID,)), towers=True)


def _sent(rank: int, world_size: int, jobs: list[list[str]]) -> list[set[tuple[str, str]]]:
    """For each job, what a step starts in the group of the features: (operation, data type)."""
    found = []
    for overrides in jobs:
        engine, _ = engine_of(rank, world_size, [*SMALL, *overrides])
        engine.train_step(batch_of(0, rank, world_size), 0)  # the first exchanges checks as well
        with recorded_collectives(group_names(engine)) as events:
            engine.train_step(batch_of(1, rank, world_size), 1)
        engine.close()
        started = [e for e in events if e.group == "features" and e.phase == "start"]
        found.append({(event.what, str(event.dtype)) for event in started})
    return found


def test_the_text_gradient_travels_in_the_data_type_that_is_set_and_a_ring_gathers_no_features():
    jobs = [
        [*kind, *dtype, *parts]
        for kind in ([], [SIGMOID])
        for parts in ([], PARTS)
        for dtype in ([], [BFLOAT16])
    ]
    jobs.append([SIGMOID, RING])
    for rank in run_gloo(_sent, 2, jobs, timeout_s=280):
        for words, events in zip(jobs, rank, strict=True):
            scattered = {dtype for what, dtype in events if what == "reduce-scatter"}
            if RING in words:
                # the ids of equal captions are gathered, and no features
                assert not scattered and ("all-gather", "torch.float32") not in events, events
            else:
                wanted = "torch.bfloat16" if BFLOAT16 in words else "torch.float32"
                assert scattered == {wanted}, (words, events)


def _kept(rank: int, world_size: int, jobs: list[list[str]]) -> list[tuple[float, int]]:
    """For each job, the loss of a step and how many float32 values it saved for the backward."""
    found = []
    for overrides in jobs:
        engine, _ = engine_of(rank, world_size, [*SMALL, *overrides])
        sizes: list[int] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel() if tensor.dtype == torch.float32 else 0)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = engine.train_step(batch_of(0, rank, world_size), 0).loss
        engine.close()
        found.append((float(loss), sum(sizes)))
    return found


def test_logits_are_kept_where_there_is_room_and_captions_are_taken_as_different():
    apart = "loss.same_caption_positive=false"
    jobs = [[apart], [apart, "loss.stash_mib=0"], [], ["loss.stash_mib=0"]]
    for kept, not_kept, together, same in run_gloo(_kept, 2, jobs, timeout_s=120):
        logits = GLOBAL_BATCH_SIZE // 2 * GLOBAL_BATCH_SIZE
        assert kept[1] - not_kept[1] == logits and together[1] == same[1]
        assert kept[0] == pytest.approx(not_kept[0], rel=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([SIGMOID, SMOOTH], "loss.label_smoothing = 0.2: the sigmoid loss has no distribution"),
        ([RING], "loss.exchange = ring: loss.kind=clip needs all columns"),
        ([SIGMOID, RING, BFLOAT16], "loss.reduce_dtype = bfloat16: with loss.exchange=ring"),
        (["loss.label_smoothing=1"], "loss.label_smoothing = 1.0: a share of the targets"),
        (["loss.tile=0"], "loss.tile = 0: must be >= 1"),
        (["loss.stash_mib=-1"], "loss.stash_mib = -1.0: must be >= 0"),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        load_job(["experiment=tiny", "data.stream=[x.tar]", *words])
    assert message in str(caught.value)
