"""Clipping and skipping inside the optimizer's own kernels, as the engine asks of them."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.config import Optimizer, TrainConfig
from pipeline.engine.lamb import Lamb
from pipeline.engine.optimizer import build_optimizer

KINDS = list(Optimizer)


def two_layers() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3))


def stepped(kind: Optimizer, num_steps: int = 2) -> tuple[torch.nn.Module, Any]:
    """A model and an optimizer with moments."""
    model = two_layers()
    optimizer = build_optimizer(model, TrainConfig(optimizer=kind, lr=0.01))
    for _ in range(num_steps):
        give_gradients(model)
        optimizer.step()
    return model, optimizer


def give_gradients(model: torch.nn.Module, factor: float = 1.0) -> None:
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = factor * torch.randn_like(parameter)


def bits(model: torch.nn.Module, optimizer: Any) -> list[Tensor]:
    """Everything that a step may change, as integers: NaN equals itself, -0 is not 0."""
    values = [parameter.detach() for parameter in model.parameters()]
    for state in optimizer.state.values():
        values += [state["step"], state["exp_avg"], state["exp_avg_sq"]]
    return [value.reshape(-1).view(torch.int32).clone() for value in values]


def test_the_kinds_are_fused_adamw_and_lamb() -> None:
    adamw = build_optimizer(two_layers(), TrainConfig(beta1=0.8, beta2=0.95, eps=1e-5, lr=0.3))
    assert type(adamw) is torch.optim.AdamW
    for group in adamw.param_groups:
        assert group["fused"] and group["betas"] == (0.8, 0.95) and group["eps"] == 1e-5
        assert group["lr"] == 0.3
    lamb = build_optimizer(
        two_layers(), TrainConfig(optimizer=Optimizer.lamb, beta1=0.8, beta2=0.95, eps=1e-5, lr=0.3)
    )
    assert type(lamb) is Lamb
    for group in lamb.param_groups:
        assert (group["betas"], group["eps"], group["lr"]) == ((0.8, 0.95), 1e-5, 0.3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [0, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.0])
def test_found_inf_leaves_every_bit(kind: Optimizer, num_steps: int, bad: float) -> None:
    model, optimizer = stepped(kind, num_steps)
    before = bits(model, optimizer)
    give_gradients(model, bad)
    optimizer.found_inf = torch.ones(())
    optimizer.grad_scale = torch.full((), math.inf if bad != 1.0 else 1.0)
    optimizer.step()
    after = bits(model, optimizer)
    if num_steps:
        assert len(before) == len(after)
    else:  # the first step makes the state: of zeros
        assert all(not value.any() for value in after[len(before) :])
    assert all(torch.equal(old, new) for old, new in zip(before, after))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_skipped_goes_on_as_if_nothing_had_been(kind: Optimizer) -> None:
    undisturbed, disturbed = stepped(kind), stepped(kind)
    give_gradients(disturbed[0], math.nan)
    disturbed[1].found_inf = torch.ones(())
    disturbed[1].step()
    for model, optimizer in (undisturbed, disturbed):
        optimizer.found_inf = torch.zeros(())
        give_gradients(model)
        optimizer.step()
    for one, other in zip(bits(*undisturbed), bits(*disturbed)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_found_inf_and_unit_scale_change_nothing(kind: Optimizer) -> None:
    plain, asked = stepped(kind), stepped(kind)
    for model, _ in (plain, asked):
        give_gradients(model)
    plain[1].step()
    asked[1].found_inf, asked[1].grad_scale = torch.zeros(()), torch.ones(())
    asked[1].step()
    for one, other in zip(bits(*plain), bits(*asked)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(factor=st.floats(1e-4, 1e4), limit=st.floats(0.1, 1e3))
def test_grad_scale_clips_as_torch_does(kind: Optimizer, factor: float, limit: float) -> None:
    scaled, clipped = stepped(kind), stepped(kind)
    for model, _ in (scaled, clipped):
        give_gradients(model, factor)
    norm = torch.nn.utils.clip_grad_norm_(clipped[0].parameters(), limit)
    clipped[1].step()
    scaled[1].grad_scale = (norm / limit).clamp(min=1.0)
    scaled[1].step()
    # where it clips, torch multiplies by limit / (norm + 1e-6): 1e-6 / norm less than ours
    for one, other in zip(values(*scaled), values(*clipped)):
        torch.testing.assert_close(one, other, rtol=2e-6 + 2e-6 / limit, atol=1e-7)


def values(model: torch.nn.Module, optimizer: Any) -> list[Tensor]:
    return [value.view(torch.float32) for value in bits(model, optimizer)]


@pytest.mark.parametrize("kind", KINDS)
def test_state_survives_being_saved_and_loaded(kind: Optimizer) -> None:
    model, optimizer = stepped(kind)
    again, fresh = stepped(kind, 0)
    again.load_state_dict(model.state_dict())
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for some in (model, again):
        give_gradients(some)
    optimizer.step()
    fresh.step()
    for one, other in zip(bits(model, optimizer), bits(again, fresh)):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_a_step_never_waits_and_a_skip_leaves_every_bit(kind: Optimizer) -> None:
    model = two_layers().cuda()
    optimizer: Any = build_optimizer(model, TrainConfig(optimizer=kind, lr=0.01))
    for bad in (1.0, 1.0, math.nan, math.inf):
        give_gradients(model, bad)
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        before = bits(model, optimizer)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            norm = torch.stack(torch._foreach_norm(gradients)).norm()
            optimizer.grad_scale = norm.clamp(min=1.0)
            optimizer.found_inf = (~norm.isfinite()).float()
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        after = bits(model, optimizer)
        changed = [not torch.equal(old, new) for old, new in zip(before, after)]
        assert all(changed) if math.isfinite(bad) else not any(changed)
