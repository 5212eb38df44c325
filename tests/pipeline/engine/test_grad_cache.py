"""By micro-batches as at once: in float64 without DeepSpeed to 1e-10, under it in float32."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.engine.grad_cache import CachedTower
from pipeline.engine.optimizer import build_optimizer
from pipeline.engine.schedule import lr_factor
from pipeline.engine.towers import IMAGE, TEXT, Towers
from pipeline.loss import TextGather, clip_loss
from pipeline.loss.reference import clip_loss_reference
from pipeline.model import CLIP
from tests.gloo import run_gloo
from tests.pipeline.engine.probes import SMALL, group_names, recorded_collectives
from tests.pipeline.engine.test_engine import check
from tests.pipeline.engine.training import (
    GLOBAL_BATCH_SIZE,
    STEPS,
    batch_of,
    engine_of,
    job,
    model_of,
    train_each,
)

RANDOM = ["model.dropout=0.2", "model.vision.patch_dropout=0.5"]


def towers_of(overrides: list[str]) -> Towers:
    return Towers(model_of(job(*SMALL, *overrides)).double().train())


def gradients_of(towers: Towers) -> dict[str, Tensor]:
    return {name: p.grad for name, p in towers.named_parameters() if p.grad is not None}


def cached(towers: Towers, image_size: int, text_size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients as the engine has them from parts, without DeepSpeed."""
    batch = batch_of(0)
    text = CachedTower(partial(towers, TEXT), batch.tokens, text_size)
    gather = TextGather(text.features)
    image = CachedTower(partial(towers, IMAGE), batch.images, image_size)
    loss = clip_loss(image.features, gather, *image.scalars, normalize=True)
    leaves = (image.features, *image.scalars, gather.anchor)
    *of_image, _ = torch.autograd.grad(loss, leaves)
    image.backward(Tensor.backward, tuple(of_image))
    text.backward(Tensor.backward, (gather.gradient.finish(),))
    return loss.detach(), gradients_of(towers)


def graph(towers: Towers, image_size: int, text_size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The same with the graph of all parts kept until one backward: the same random numbers."""
    batch = batch_of(0)
    texts = [towers(TEXT, part)[0] for part in batch.tokens.split(text_size)]
    images, scales = zip(*(towers(IMAGE, part) for part in batch.images.split(image_size)))
    loss = clip_loss(torch.cat(images), torch.cat(texts), scales[0], normalize=True)
    loss.backward()
    return loss.detach(), gradients_of(towers)


def assert_equal(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, Any]) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=1e-10, atol=1e-10)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        # the scale passes through the forward in float32
        rtol = 1e-6 if "logit_scale" in name else 1e-10
        torch.testing.assert_close(gradient, other[1][name], rtol=rtol, atol=1e-10, msg=name)


PARTS = [(2, 4), (4, 8), (3, 5), (16, 4), (4, 16)]


@pytest.mark.parametrize("image_size, text_size", PARTS)
def test_equals_the_graph_of_all_parts_with_dropout(image_size, text_size):
    results, states = [], []
    for take in (cached, graph):
        towers = towers_of(RANDOM)
        torch.manual_seed(3)
        results.append(take(towers, image_size, text_size))
        states.append(torch.get_rng_state())
    assert_equal(*results)
    assert torch.equal(*states), "the next step must draw as after one pass"
    torch.manual_seed(4)  # and it is the random numbers that make them equal
    other_loss, _ = cached(towers_of(RANDOM), image_size, text_size)
    assert (other_loss - results[0][0]).abs() > 1e-4


@pytest.mark.parametrize("image_size, text_size", PARTS)
def test_equals_one_forward_of_the_whole_batch(image_size, text_size):
    assert_equal(
        cached(towers_of([]), image_size, text_size),
        graph(towers_of([]), GLOBAL_BATCH_SIZE, GLOBAL_BATCH_SIZE),
    )


def test_a_tower_in_one_part_runs_once():
    towers, calls = towers_of([]), []
    towers.clip.visual.register_forward_hook(lambda *_: calls.append("image"))
    towers.clip.text.register_forward_hook(lambda *_: calls.append("text"))
    cached(towers, 0, 4)
    assert calls == ["text"] * 4 + ["image"] + ["text"] * 4
    calls.clear()
    cached(towers, 8, 0)
    assert calls == ["text"] + ["image"] * 2 + ["image"] * 2


def test_a_frozen_tower_takes_no_second_forward_into_a_backward():
    towers = towers_of([])
    towers.clip.text.requires_grad_(False)
    loss, gradients = cached(towers, 4, 4)
    assert loss.isfinite() and not any("text" in name for name in gradients)
    everything = cached(towers_of([]), 4, 4)[1]
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, everything[name], rtol=1e-10, atol=1e-10)


def seeded(rank: int, world_size: int, jobs: list[list[str]]) -> list[dict[str, Any]]:
    """`train_each` with each step's random numbers told by (step, rank)."""
    from pipeline.engine.engine import ClipEngine

    take_step = ClipEngine.train_step

    def seeded_step(self: ClipEngine, batch: Any, step: int) -> Any:
        torch.manual_seed(10 * step + rank)
        return take_step(self, batch, step)

    ClipEngine.train_step = seeded_step  # type: ignore[method-assign]
    try:
        return train_each(rank, world_size, jobs)
    finally:
        ClipEngine.train_step = take_step  # type: ignore[method-assign]


@cache
def random_reference(world_size: int, image_size: int, text_size: int) -> dict[str, Any]:
    """Plain torch, float32, dropout on: each rank's rows in parts with that rank's random numbers,
    one graph."""
    config = job(*SMALL, *RANDOM)
    model = model_of(config).train()
    optimizer = build_optimizer(model, config.train)
    losses, norms = [], []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = config.train.lr * lr_factor(step, config.train) * group["lr_scale"]
        loss = _random_loss(model, step, world_size, image_size, text_size)
        optimizer.zero_grad()
        loss.backward()
        total = torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.grad_clip_norm)
        norms.append([float("nan"), float("nan"), float(total)])
        optimizer.step()
        losses.append(float(loss.detach()))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {"losses": losses, "norms": torch.tensor(norms), "weights": weights}


def _random_loss(
    model: CLIP, step: int, world_size: int, image_size: int, text_size: int
) -> Tensor:
    towers, images, texts = Towers(model), [], []
    for rank in range(world_size):
        batch = batch_of(step, rank, world_size)
        torch.manual_seed(10 * step + rank)
        texts += [towers(TEXT, part)[0] for part in batch.tokens.split(text_size)]
        images += [towers(IMAGE, part)[0] for part in batch.images.split(image_size)]
    image, text = (torch.nn.functional.normalize(torch.cat(x)) for x in (images, texts))
    scale = model.clamp_logit_scale(model.logit_scale)
    return clip_loss_reference(image, text, scale, pair_ids=batch_of(step).caption_ids)


def _parts(stage: int, image_size: int, text_size: int) -> list[str]:
    return [
        *SMALL,
        f"deepspeed.zero_stage={stage}",
        f"train.image_micro_batch_size={image_size}",
        f"train.text_micro_batch_size={text_size}",
    ]


@pytest.mark.slow
def test_under_deepspeed_with_dropout():
    jobs = [[*_parts(stage, 2, 4), *RANDOM] for stage in (1, 2, 3)]
    results = run_gloo(seeded, 2, jobs, timeout_s=200)
    for number in range(len(jobs)):
        of_job = [of_rank[number] for of_rank in results]
        check(of_job, random_reference(2, 2, 4), towers=False)


def _reduced(rank: int, world_size: int, jobs: list[list[str]]) -> list[tuple[int, int]]:
    """Elements of gradients that a step reduces, and of parameters that learn."""
    found = []
    for overrides in jobs:
        engine, _ = engine_of(rank, world_size, overrides)
        engine.train_step(batch_of(0, rank, world_size), 0)
        with recorded_collectives(group_names(engine)) as events:
            engine.train_step(batch_of(1, rank, world_size), 1)
        sums = [
            event.numel
            for event in events
            if event.phase == "start" and event.group != "features" and "reduce" in event.what
        ]
        parameters = [getattr(p, "ds_numel", p.numel()) for p in engine._towers.parameters()]
        engine.close()
        # what is no gradient are up to three numbers at a time: norms and flags
        found.append((sum(numel for numel in sums if numel > 3), sum(parameters)))
    return found


@pytest.mark.slow
def test_gradients_are_reduced_once():
    jobs = [_parts(stage, *sizes) for stage in (1, 2, 3) for sizes in ((2, 4), ("null", "null"))]
    for rank in run_gloo(_reduced, 2, jobs, timeout_s=200):
        for overrides, (reduced, parameters) in zip(jobs, rank, strict=True):
            # stage 3 pads each parameter to a multiple of the ranks
            assert parameters <= reduced <= parameters + 2, overrides
