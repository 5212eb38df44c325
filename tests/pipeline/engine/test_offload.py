"""Masters and moments in host memory: the same training, and the same pieces to save and load."""

from __future__ import annotations

import pytest

from tests.gloo import run_gloo
from tests.pipeline.engine.probes import SMALL
from tests.pipeline.engine.test_engine import check, reference
from tests.pipeline.engine.training import train_each

OFFLOADED = "deepspeed.offload_optimizer=true"
PARTS = ["train.image_micro_batch_size=2", "train.text_micro_batch_size=4"]


def compare(jobs: list[list[str]]) -> None:
    results = run_gloo(
        train_each, 2, [[*SMALL, OFFLOADED, *words] for words in jobs], timeout_s=280
    )
    for number in range(len(jobs)):
        of_job = [of_rank[number] for of_rank in results]
        check(of_job, reference(tuple(SMALL)), towers=False)
        assert all(result["optimizer_step"] == 4 for result in of_job)


@pytest.mark.slow
def test_equals_plain_torch():
    compare([[]])


@pytest.mark.slow
def test_equals_plain_torch_in_other_stages_and_by_parts():
    compare(
        [
            ["deepspeed.zero_stage=2"],
            ["deepspeed.zero_stage=3"],
            PARTS,
            ["deepspeed.zero_stage=2", *PARTS],
            ["deepspeed.zero_stage=3", *PARTS],
        ]
    )
