"""Towers that learn at their own rates or not at all, and LAMB, under ZeRO as in plain torch."""

from __future__ import annotations

import pytest
import torch

from tests.gloo import run_gloo
from tests.pipeline.engine.probes import SMALL
from tests.pipeline.engine.test_engine import check, reference
from tests.pipeline.engine.training import job, model_of, train_each, whole

PARTS = ["train.image_micro_batch_size=2", "train.text_micro_batch_size=4"]
IMAGE, TEXT = "train.image_lr_scale=0", "train.text_lr_scale=0"


def compare(jobs: list[tuple[list[str], list[str]]], world_size: int = 2) -> None:
    """Each job: what the reference is told too, and what only the engine is."""
    words = [[*SMALL, *both, *ours] for both, ours in jobs]
    results = run_gloo(train_each, world_size, words, timeout_s=280)
    for number, (both, ours) in enumerate(jobs):
        of_job = [of_rank[number] for of_rank in results]
        towers = not {"deepspeed.zero_stage=3", "deepspeed.offload_optimizer=true"} & set(ours)
        check(of_job, reference((*SMALL, *both)), towers=towers)
        trained = whole([result["fragments"] for result in of_job])
        start = dict(model_of(job(*SMALL)).named_parameters())
        for word, tower in ((IMAGE, "visual."), (TEXT, "text.")):
            moved = [
                name
                for name, value in trained.items()
                if name.startswith(tower) and not torch.equal(value, start[name])
            ]
            if word in both:
                assert not moved, moved
            else:
                assert len(moved) > 20, moved


def test_frozen_towers_keep_every_bit():
    compare([([IMAGE], []), ([TEXT], PARTS)])


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_frozen_towers_in_all_stages(stage):
    words = [f"deepspeed.zero_stage={stage}"]
    compare(
        [([IMAGE], words), ([IMAGE], [*words, *PARTS]), ([TEXT], words), ([TEXT], [*words, *PARTS])]
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_rates_of_layers_and_towers(stage):
    words = ["train.layer_decay=0.6", "train.text_lr_scale=0.3", "train.lr=3e-3"]
    compare([(words, [f"deepspeed.zero_stage={stage}"])])


LAMB = ["train.optimizer=lamb", "train.lr=2e-3"]


@pytest.mark.slow
def test_lamb():
    compare([(LAMB, []), (LAMB, ["deepspeed.zero_stage=2", *PARTS])])


@pytest.mark.slow
def test_lamb_on_one_rank_and_by_layers():
    compare([(LAMB, []), ([*LAMB, "train.layer_decay=0.6"], [])], world_size=1)
    compare([([*LAMB, "train.layer_decay=0.6", IMAGE], ["deepspeed.zero_stage=2"])])
