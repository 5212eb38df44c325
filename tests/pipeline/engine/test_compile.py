"""torch.compile of blocks or towers: the same names, the same numbers."""

from __future__ import annotations

from functools import partialmethod
from typing import Any

import pytest
import torch

from tests.gloo import run_gloo
from tests.pipeline.engine.probes import SMALL
from tests.pipeline.engine.training import engine_of, train

KINDS = ("none", "blocks", "towers")


def _compiled(rank: int, world_size: int, backend: str, stage: int) -> list[dict[str, Any]]:
    """Training of each kind, what torch._dynamo counted, and the names of parameters."""
    from torch._dynamo.utils import counters

    # torch.compile's backend is no option of ours; inductor takes a minute of C++ on a CPU
    compile_with = partialmethod(torch.nn.Module.compile, backend=backend)
    torch.nn.Module.compile = compile_with  # type: ignore[method-assign, assignment]
    found = []
    for kind in KINDS:
        torch._dynamo.reset()
        counters.clear()
        words = [*SMALL, f"train.compile={kind}", f"deepspeed.zero_stage={stage}"]
        result = train(rank, world_size, words)
        result["graphs"] = counters["stats"]["unique_graphs"]
        result["breaks"] = sum(counters["graph_break"].values())
        engine, _ = engine_of(rank, world_size, words)
        result["names"] = [name for name, _ in engine._towers.named_parameters()]
        engine.close()
        found.append(result)
    return found


def check(results: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    for plain, *others in results:
        for compiled in others:
            assert compiled["names"] == plain["names"] and plain["graphs"] == 0
            assert compiled["graphs"] > 0, "nothing was compiled"
            assert compiled["losses"] == pytest.approx(plain["losses"], abs=1e-5)
            for one, other in zip(compiled["fragments"], plain["fragments"], strict=True):
                torch.testing.assert_close(
                    one[3]["weight"], other[3]["weight"], rtol=1e-4, atol=1e-6
                )
    return results[0]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_equals_eager(stage):
    results = check(run_gloo(_compiled, 1, "aot_eager", stage, timeout_s=280))
    # towers: one where the text tower groups rows by length, on a CPU only
    assert [result["breaks"] for result in results] == [0, 0, 1]
