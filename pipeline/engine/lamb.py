"""LAMB (arXiv 1904.00962) on whole tensors or on ZeRO's flat partitions, without waiting for the
device.

A parameter tensor w with gradient g is updated at step t by
    m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2
    u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay w
    w = w - lr ratio u,      ratio = |w| / |u|   (1 where either norm is 0)
The norms are those of the parameter, not of the flat buffer that ZeRO stages 1 and 2 hand to an
optimizer: `bind` says where its fragments lie, and one all-reduce per buffer sums their squares.

Groups without decay have ratio 1, as in the authors' code (exclude_from_layer_adaptation follows
exclude_from_weight_decay) and timm's Lamb (always_adapt=False): gains, biases and the logit scale
have norms that say nothing about how far they may move. A group's key "decayed" decides, not
weight_decay, which may be 0 for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist


class _Layout(NamedTuple):
    """How one tensor of the optimizer is cut into fragments of parameters."""

    sizes: list[int]
    """Number of elements of each fragment and of each gap (padding) between and behind them."""
    slots: Tensor
    """(len(sizes),) int64: index of the fragment's parameter; num_parameters for padding."""
    num_parameters: int
    group: dist.ProcessGroup | None
    """Ranks that hold the other fragments; None if this rank holds all."""


class Lamb(torch.optim.Optimizer):
    """Parameter groups have the keys "params", "weight_decay" and "decayed"; the state of a tensor
    has AdamW's keys "step", "exp_avg" and "exp_avg_sq"."""

    grad_scale: Tensor | None = None
    """() float32 on the parameters' device: gradients are divided by it."""
    found_inf: Tensor | None = None
    """() float32 on the parameters' device. 1.0: this step changes neither weights nor state; 0.0
    otherwise."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "decayed": True}
        super().__init__(params, defaults)
        self._layouts: dict[Tensor, _Layout] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                slots = torch.zeros(1, dtype=torch.int64, device=parameter.device)
                self._layouts[parameter] = _Layout([parameter.numel()], slots, 1, None)

    def bind(
        self, spans: Sequence[Sequence[tuple[int, int]]], group: dist.ProcessGroup | None
    ) -> None:
        """Declare that each group is now one flat tensor: this rank's partition of a buffer that is
        cut into equal parts in rank order.

        spans: for each group, its parameters as (first element, number of elements) in the whole
        buffer, ascending, the same on all ranks. Call it once, after ZeRO has replaced the groups'
        parameters; without it `step` refuses such tensors. ValueError when groups do not fit.
        """
        if len(spans) != len(self.param_groups):
            raise ValueError(f"spans of {len(spans)} groups for {len(self.param_groups)} groups")
        layouts = {}
        rank = 0 if group is None else dist.get_rank(group)
        for number, (of_group, parameter_group) in enumerate(zip(spans, self.param_groups)):
            if len(parameter_group["params"]) != 1:
                raise ValueError(
                    f"group {number} has {len(parameter_group['params'])} tensors instead of one "
                    f"flat partition: bind after ZeRO stage 1 or 2 has flattened it"
                )
            (flat,) = parameter_group["params"]
            sizes, slots = cut(of_group, start=rank * flat.numel(), length=flat.numel())
            layouts[flat] = _Layout(
                sizes, torch.tensor(slots, device=flat.device), len(of_group), group
            )
        self._layouts = layouts

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        step, exp_avg, exp_avg_sq = self._state_of(parameter)
        gradient = parameter.grad
        assert gradient is not None
        if self.grad_scale is not None:
            gradient = gradient / self.grad_scale
        new_step = step + 1
        new_exp_avg = exp_avg.lerp(gradient, 1 - beta1)
        new_exp_avg_sq = (exp_avg_sq * beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # float64: in float32 1 - 0.999 has three digits
        correction1 = 1 - torch.pow(beta1, new_step.double())
        correction2 = 1 - torch.pow(beta2, new_step.double())
        denominator = (new_exp_avg_sq / correction2).sqrt_().add_(group["eps"])
        update = (new_exp_avg / correction1).div_(denominator)
        update.add_(parameter, alpha=group["weight_decay"])
        if group["decayed"]:
            self._scale_by_trust_ratios(update, parameter)
        self._replace(step, new_step)
        self._replace(exp_avg, new_exp_avg)
        self._replace(exp_avg_sq, new_exp_avg_sq)
        self._replace(parameter, parameter.add(update, alpha=-group["lr"]))

    def _replace(self, old: Tensor, new: Tensor) -> None:
        if self.found_inf is None:
            old.copy_(new)
        else:
            torch.where(self.found_inf == 0, new, old, out=old)

    def _scale_by_trust_ratios(self, update: Tensor, parameter: Tensor) -> None:
        layout = self._layouts.get(parameter)
        if layout is None:
            raise RuntimeError(
                f"LAMB was given a tensor of {parameter.numel()} elements in place of its "
                f"parameters, and its layout is not known: call bind() after deepspeed.initialize"
            )
        pieces = update.view(-1).split(layout.sizes)
        squares = torch.zeros(
            2, layout.num_parameters + 1, dtype=torch.float64, device=update.device
        )
        for row, fragments in zip(squares, (parameter.view(-1).split(layout.sizes), pieces)):
            # float64: a float32 sum of 10^7 squares depends on how ranks cut it
            norms = torch._foreach_norm(list(fragments), 2, dtype=torch.float64)
            row.index_add_(0, layout.slots, torch.stack(list(norms)).square_())
        if layout.group is not None:
            dist.all_reduce(squares, group=layout.group)
        weight, step_size = squares.sqrt_().unbind()
        ratios = torch.where((weight > 0) & (step_size > 0), weight / step_size, 1.0)
        torch._foreach_mul_(list(pieces), list(ratios[layout.slots].unbind()))

    def _state_of(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state["step"], state["exp_avg"], state["exp_avg_sq"]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called by load_state_dict, which leaves the step counter on the device that the file was
        read to."""
        super().__setstate__(state)
        for parameter, values in self.state.items():
            if "step" in values:
                values["step"] = values["step"].to(parameter.device, torch.float32)


def spans_of(zero: Any) -> list[list[tuple[int, int]]]:
    """The spans that `bind` needs, read from DeepSpeed 0.19.8's DeepSpeedZeroOptimizer (stages 1
    and 2); the matching group is zero.dp_process_group."""
    return [
        [(offset, parameter.numel()) for offset, parameter in zip(offsets, parameters)]
        for offsets, parameters in zip(zero.round_robin_bit16_offsets, zero.round_robin_bit16_meta)
    ]


def cut(
    spans: Sequence[tuple[int, int]], *, start: int, length: int
) -> tuple[list[int], list[int]]:
    """Cut a partition, elements `start` to `start + length` of a buffer, at the borders of spans.

    Returns the sizes of the pieces, and for each the index of its span; len(spans) if none.

    spans: (first element, number of elements), ascending, not overlapping.
    """
    sizes: list[int] = []
    numbers: list[int] = []
    position, end = start, start + length
    for number, (first, size) in enumerate(spans):
        low, high = max(first, position), min(first + size, end)
        if low >= high:
            continue
        if low > position:
            sizes.append(low - position)
            numbers.append(len(spans))
        sizes.append(high - low)
        numbers.append(number)
        position = high
    if position < end:
        sizes.append(end - position)
        numbers.append(len(spans))
    return sizes, numbers
