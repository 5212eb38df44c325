"""The engine under DeepSpeed against plain torch in one process: losses, norms, weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from pipeline.engine.optimizer import build_optimizer
from pipeline.engine.schedule import lr_factor
from pipeline.loss.reference import clip_loss_reference, sigmoid_loss_reference
from tests.gloo import run_gloo
from tests.pipeline.engine.training import STEPS, batch_of, job, model_of, train_each, whole


@cache
def reference(overrides: tuple[str, ...]) -> dict[str, Any]:
    """The same steps in plain torch: one process, the reference loss, clip_grad_norm_."""
    config = job(*overrides)
    model = model_of(config).train()
    optimizer = build_optimizer(model, config.train)
    losses, norms = [], []
    for step in range(STEPS):
        batch = batch_of(step)
        for group in optimizer.param_groups:
            group["lr"] = config.train.lr * lr_factor(step, config.train) * group["lr_scale"]
        output = model(batch.images, batch.tokens)
        image = torch.nn.functional.normalize(output.image_features)
        text = torch.nn.functional.normalize(output.text_features)
        if model.logit_bias is None:
            loss = clip_loss_reference(
                image,
                text,
                output.logit_scale,
                pair_ids=batch.caption_ids,
                label_smoothing=config.loss.label_smoothing,
            )
        else:
            loss = sigmoid_loss_reference(
                image, text, output.logit_scale, model.logit_bias, pair_ids=batch.caption_ids
            )
        optimizer.zero_grad()
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        norms.append(
            [
                sum(g.square().sum() for n, g in gradients.items() if n.startswith(tower)) ** 0.5
                for tower in ("visual.", "text.", "")
            ]
        )
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.grad_clip_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {"losses": losses, "norms": torch.tensor(norms), "weights": weights}


def check(results: list[dict[str, Any]], expected: dict[str, Any], *, towers: bool) -> None:
    losses = torch.tensor([result["losses"] for result in results]).mean(0)
    torch.testing.assert_close(losses, torch.tensor(expected["losses"]), rtol=2e-6, atol=2e-6)
    for result in results:
        norms = result["norms"] if towers else result["norms"][:, 2:]
        wanted = expected["norms"] if towers else expected["norms"][:, 2:]
        torch.testing.assert_close(norms, wanted, rtol=1e-4, atol=1e-6)
    weights = whole([result["fragments"] for result in results])
    assert weights.keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        difference = (weights[name] - value).abs() / (1e-7 + 1e-5 * value.abs())
        assert difference.max() <= 1, f"{name}: {difference.max()} times the tolerance"


@pytest.mark.parametrize(
    ("stage", "world_size"),
    [(1, 2)]
    + [
        pytest.param(stage, world_size, marks=pytest.mark.slow)  # 10 s each
        for stage, world_size in ((1, 1), (2, 1), (2, 2), (3, 1), (3, 2))
    ],
)
def test_equals_plain_torch(stage, world_size):
    """Both losses, whole and by micro-batches of either tower or both."""
    kinds = [("loss.kind=clip",), ("loss.kind=sigmoid",)]
    parts = [("null", "null"), (2, 4), (4, "null"), ("null", 2)]
    jobs = [
        [
            *kind,
            f"deepspeed.zero_stage={stage}",
            f"train.image_micro_batch_size={image}",
            f"train.text_micro_batch_size={text}",
        ]
        for kind in kinds
        for image, text in parts
    ]
    results = run_gloo(train_each, world_size, jobs)
    for number, overrides in enumerate(jobs):
        of_job = [of_rank[number] for of_rank in results]
        check(of_job, reference((overrides[0],)), towers=stage != 3)
        assert all(result["optimizer_step"] == STEPS for result in of_job), overrides


@pytest.mark.parametrize("stage", [1, 3])  # update.py clips, and DeepSpeed does
def test_a_clip_norm_of_null_clips_nothing(stage):
    limits = ["null", "1e9", "0.01"]
    jobs = [[f"deepspeed.zero_stage={stage}", f"train.grad_clip_norm={at}"] for at in limits]
    (results,) = run_gloo(train_each, 1, jobs)
    off, never_reached, reached = (whole([result["fragments"]]) for result in results)
    assert all(torch.equal(value, never_reached[name]) for name, value in off.items())
    assert any(not torch.equal(value, reached[name]) for name, value in off.items())
