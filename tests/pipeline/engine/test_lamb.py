"""LAMB against its formula, and its partitions against the whole."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch import distributed as dist

from pipeline.engine.lamb import Lamb, cut, spans_of
from tests.gloo import run_gloo

LR, BETAS, EPS, DECAY = 0.03, (0.9, 0.98), 1e-6, 0.2
DECAYED: list[tuple[int, ...]] = [(17, 5), (3, 3), (40,), (2, 7)]
KEPT: list[tuple[int, ...]] = [(5,), (1,)]
ALIGNMENT = 4
STEPS = 5


def random_tensors(shapes: list[tuple[int, ...]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def lamb(decayed: list[Tensor], kept: list[Tensor]) -> Lamb:
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": DECAY, "decayed": True},
        {"params": kept, "weight_decay": 0.0, "decayed": False},
    ]
    return Lamb(groups, lr=LR, betas=BETAS, eps=EPS)


def gradients(step: int) -> tuple[list[Tensor], list[Tensor]]:
    return random_tensors(DECAYED, 100 + step), random_tensors(KEPT, 200 + step)


def reference(weight: Tensor, grads: list[Tensor], decay: float, *, adapted: bool) -> Tensor:
    """The formula of the paper's algorithm 2, by hand, in float64."""
    w = weight.double().clone()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, gradient in enumerate(grads, start=1):
        g = gradient.double()
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        v = BETAS[1] * v + (1 - BETAS[1]) * g * g
        r = (m / (1 - BETAS[0] ** t)) / ((v / (1 - BETAS[1] ** t)).sqrt() + EPS)
        u = r + decay * w
        ratio = 1.0
        if adapted and w.norm() > 0 and u.norm() > 0:
            ratio = float(w.norm() / u.norm())
        w = w - LR * ratio * u
    return w


def trained_whole(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    decayed = [value.to(dtype).requires_grad_() for value in random_tensors(DECAYED, 1)]
    kept = [value.to(dtype).requires_grad_() for value in random_tensors(KEPT, 2)]
    optimizer = lamb(decayed, kept)
    for step in range(STEPS):
        for parameters, grads in zip((decayed, kept), gradients(step)):
            for parameter, gradient in zip(parameters, grads):
                parameter.grad = gradient.to(dtype)
        optimizer.step()
    return [value.detach() for value in decayed], [value.detach() for value in kept]


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_the_formula(dtype: torch.dtype, rtol: float) -> None:
    decayed, kept = trained_whole(dtype)
    by_step = [gradients(step) for step in range(STEPS)]
    for number, (start, now) in enumerate(zip(random_tensors(DECAYED, 1), decayed)):
        grads = [both[0][number] for both in by_step]
        expected = reference(start, grads, DECAY, adapted=True).to(dtype)
        torch.testing.assert_close(now, expected, rtol=rtol, atol=rtol)
        unadapted = reference(start, grads, DECAY, adapted=False).to(dtype)
        assert (now - unadapted).abs().max() > 1e-3  # the ratio is no detail
    for number, (start, now) in enumerate(zip(random_tensors(KEPT, 2), kept)):
        grads = [both[1][number] for both in by_step]
        expected = reference(start, grads, 0.0, adapted=False).to(dtype)
        torch.testing.assert_close(now, expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("weight", [torch.zeros(4), torch.ones(4)])
def test_a_norm_of_zero_leaves_the_step_unscaled(weight: Tensor) -> None:
    """Fresh zeros would never leave zero; a gradient of zero would divide by it."""
    parameter = weight.clone().requires_grad_()
    optimizer = Lamb([{"params": [parameter]}], lr=LR, betas=BETAS, eps=EPS)
    parameter.grad = 1 - weight
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), weight - LR * (1 - weight))


# A buffer as ZeRO lays it out: parameters one after the other, zeros up to equal parts.


def flattened(tensors: list[Tensor], world_size: int) -> Tensor:
    flat = torch.cat([value.reshape(-1) for value in tensors])
    return torch.nn.functional.pad(flat, (0, -len(flat) % (ALIGNMENT * world_size)))


def spans(shapes: list[tuple[int, ...]]) -> list[tuple[int, int]]:
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return [(sum(sizes[:number]), size) for number, size in enumerate(sizes)]


def part(tensors: list[Tensor], rank: int, world_size: int) -> Tensor:
    return flattened(tensors, world_size).chunk(world_size)[rank].clone()


def trained_in_parts(rank: int, world_size: int) -> list[Tensor]:
    starts = (random_tensors(DECAYED, 1), random_tensors(KEPT, 2))
    flats = [part(tensors, rank, world_size).requires_grad_() for tensors in starts]
    optimizer = lamb(flats[:1], flats[1:])
    optimizer.bind([spans(DECAYED), spans(KEPT)], dist.group.WORLD)
    groups = optimizer.param_groups
    for step in range(STEPS):
        for flat, grads, group in zip(flats, gradients(step), groups):
            flat.grad = part(grads, rank, world_size)
            optimizer.param_groups = [group]  # ZeRO 1 and 2 step the groups one by one
            optimizer.step()
            optimizer.param_groups = groups
    return [flat.detach() for flat in flats]


@pytest.mark.parametrize("world_size", [1, 2])
def test_partitions_over_ranks_equal_the_whole(world_size: int) -> None:
    parts = run_gloo(trained_in_parts, world_size)
    assert len(parts) == world_size
    for number, whole in enumerate(trained_whole()):
        joined = torch.cat([of_rank[number] for of_rank in parts])
        torch.testing.assert_close(joined, flattened(whole, world_size), rtol=1e-6, atol=1e-7)


def test_bind_refuses_groups_that_are_not_flat() -> None:
    optimizer = lamb(random_tensors(DECAYED, 1), random_tensors(KEPT, 2))
    with pytest.raises(ValueError, match="group 0 has 4 tensors"):
        optimizer.bind([spans(DECAYED), spans(KEPT)], None)
    with pytest.raises(ValueError, match="spans of 1 groups for 2"):
        optimizer.bind([spans(DECAYED)], None)


def test_a_flat_tensor_that_was_not_bound_is_refused() -> None:
    """Its norm would be that of all parameters together."""
    optimizer = lamb(random_tensors(DECAYED, 1), random_tensors(KEPT, 2))
    flat = part(random_tensors(DECAYED, 1), 0, 1).requires_grad_()
    flat.grad = torch.ones_like(flat)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(RuntimeError, match="call bind"):
        optimizer.step()


@given(
    gaps_and_sizes=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=6),
    start=st.integers(0, 40),
    length=st.integers(1, 30),
)
def test_a_partition_is_cut_at_every_border(
    gaps_and_sizes: list[tuple[int, int]], start: int, length: int
) -> None:
    of_group, end = [], 0
    for gap, size in gaps_and_sizes:
        of_group.append((end + gap, size))
        end += gap + size
    owner = [len(of_group)] * 100
    for number, (first, size) in enumerate(of_group):
        owner[first : first + size] = [number] * size
    sizes, numbers = cut(of_group, start=start, length=length)
    assert all(sizes)
    told = [number for number, size in zip(numbers, sizes) for _ in range(size)]
    assert told == owner[start : start + length]
    # one fragment a parameter
    owned = [number for number in numbers if number < len(of_group)]
    assert len(owned) == len(set(owned))


# Under DeepSpeed itself.


class _Quadratic(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decayed = torch.nn.ParameterList(random_tensors(DECAYED, 1))
        self.kept = torch.nn.ParameterList(random_tensors(KEPT, 2))

    def forward(self, factor: Tensor) -> Tensor:
        return factor * sum(value.square().sum() for value in (*self.decayed, *self.kept))


def _stepped_plain(factors: list[float]) -> dict[str, Tensor]:
    model = _Quadratic()
    optimizer = lamb(list(model.decayed), list(model.kept))
    for factor in factors:
        optimizer.zero_grad()
        model(torch.tensor(factor)).backward()
        optimizer.step()
    return {name: value.detach() for name, value in model.named_parameters()}


def _stepped_by_zero(rank: int, world_size: int, stage: int) -> dict[str, Tensor]:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = _Quadratic()
    optimizer = lamb(list(model.decayed), list(model.kept))
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,  # 1.0 if not given
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": stage, "reduce_bucket_size": 1000},
            "timers": {"throughput": {"enabled": False}},
        },
    )
    optimizer.bind(spans_of(engine.optimizer), engine.optimizer.dp_process_group)
    for factor in (1.0, 2.0, 0.5):
        engine.backward(engine(torch.tensor(factor * (0.5 + rank))))  # 0.5 and 1.5: mean 1
        engine.step()
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_zero_equals_one_process(stage: int) -> None:
    expected = _stepped_plain([1.0, 2.0, 0.5])
    for of_rank in run_gloo(_stepped_by_zero, 2, stage, timeout_s=200):
        for name, value in of_rank.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
