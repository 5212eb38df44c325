"""Skips work of DeepSpeed 0.19.8 that nothing here needs: an import at its start, and in stages 1
and 2 copies and Python for each parameter in each step. tests/benchmarks/results/host.md compares
the cost of a step with plain torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist


def import_without_inductor() -> None:
    """Import DeepSpeed's Muon optimizer, which `deepspeed.initialize` imports whatever optimizer it
    gets, without the compiler.

    Three of its functions are decorated with torch.compile when the module is imported, and that
    imports torch._inductor: a second of CPU time per rank at every start. They stay plain functions
    here. `train.compile` compiles later and is not concerned.
    """
    with patch.object(torch, "compile", lambda function=None, **_: function or _undecorated):
        import_module("deepspeed.runtime.zero.muon.original_muon")


def _undecorated(function: Any) -> Any:
    return function


def skip_redundant_work(zero: Any) -> None:
    """Patch a stage 1 or 2 optimizer. Call once, before anything holds a view of its master
    weights."""
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
    """With one rank the local gradient already is the average. DeepSpeed would flatten all of it
    into a bucket, round it to bfloat16, divide it by one, send it to nobody and copy it back. With
    `pure_bf16` the bucket also adds to the float32 sums, and with offload it fetches what is
    offloaded: there it stays."""
    groups = range(len(zero.bit16_groups))
    needed = zero.cpu_offload or any(map(zero._use_compact_grad_partition_buffer, groups))
    if dist.get_world_size(zero.dp_process_group) == 1 and not needed:
        zero.reduce_ready_partitions_and_remove_grads = lambda parameter, group: None
