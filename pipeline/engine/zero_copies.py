"""Work of DeepSpeed 0.19.8 in stages 1 and 2 that the values do not need: copies, and Python for
each parameter in each step. What a step costs beside plain torch is in
tests/benchmarks/results/host.md."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def leave_out_copies(zero: Any) -> None:
    """Of a stage 1 or 2 optimizer, once, before anything keeps a view of its masters."""
    _share_masters(zero)
    _reduce_nothing_alone(zero)
    # after each step all parameters are pointed again at the same places of the flat weights
    zero._update_model_bit16_weights = lambda group: None


def _share_masters(zero: Any) -> None:
    """Where weights are float32 (`fp32`, `bf16`), this rank's part of the masters becomes this
    rank's part of the flat weights, of which DeepSpeed made a clone: the optimizer updates in
    place, 4 bytes a parameter / world size are saved, and the copy from master to weight, now one
    from a tensor to itself, returns at once. Masters of `pure_bf16` and `fp16` and offloaded ones
    are other tensors anyway.
    """
    if zero.cpu_offload or zero.dtype != zero.master_weights_and_grads_dtype:
        return
    own = dist.get_rank(zero.dp_process_group)
    masters = zero.single_partition_of_fp32_groups
    for master, parts in zip(masters, zero.parallel_partitioned_bit16_groups, strict=True):
        master.data = parts[own]
    zero._link_all_hp_params()  # DeepSpeed keeps views of them too


def _reduce_nothing_alone(zero: Any) -> None:
    """Of one rank the gradient is the average: DeepSpeed would flatten all of it into a bucket,
    round what it sends in bfloat16, divide it by one, send it to nobody and copy it back. The
    bucket also adds to the float32 sums of `pure_bf16`, and fetches what is offloaded: these keep
    it."""
    groups = range(len(zero.bit16_groups))
    needed = zero.cpu_offload or any(map(zero._use_compact_grad_partition_buffer, groups))
    if dist.get_world_size(zero.dp_process_group) == 1 and not needed:
        zero.reduce_ready_partitions_and_remove_grads = lambda parameter, group: None
