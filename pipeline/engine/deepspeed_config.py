"""DeepSpeed's configuration, derived from the job so that no value is given twice."""

from __future__ import annotations

from typing import Any

from pipeline.config import Precision, TrainJob


def decides_on_host(config: TrainJob) -> bool:
    """Whether DeepSpeed itself clips and skips, for which the host waits for the device in each
    step. fp16 keeps its loss scale on the host; stage 3 and offloaded optimizers have no other
    way."""
    return (
        config.train.precision is Precision.fp16
        or config.deepspeed.zero_stage == 3
        or config.deepspeed.offload_optimizer
    )


def deepspeed_config(config: TrainJob, num_trained: int) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`; num_trained: number of elements that are trained.

    gradient_accumulation_steps stays 1: the batch that DeepSpeed counts is the local batch of one
    optimizer step, so that its batch identity holds on any number of ranks.
    """
    ours, on_host = config.deepspeed, decides_on_host(config)
    zero: dict[str, Any] = {
        "stage": ours.zero_stage,
        "overlap_comm": False,
        # stage 3 and offload allocate it whole: more than there is to reduce costs page faults
        "reduce_bucket_size": min(ours.reduce_bucket_size, max(1, num_trained)),
        # True copies every gradient into a bucket before it is reduced; the results are equal
        "contiguous_gradients": ours.zero_stage == 3,
        "allgather_bucket_size": ours.allgather_bucket_size,
    }
    if not on_host:
        zero["compute_grad_norm"] = False  # update.py computes it without waiting
    if ours.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": config.local_batch_size,
        "gradient_accumulation_steps": 1,
        # 0 does not clip: otherwise update.py does it
        "gradient_clipping": (config.train.grad_clip_norm or 0.0) if on_host else 0.0,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "zero_optimization": zero,
        # torch's own optimizers and ours, which compile nothing at the first start
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        # on by default, and then it synchronises the device at each forward and step
        "timers": {"throughput": {"enabled": False}},
    } | _precision(config.train.precision, on_host)


def _precision(precision: Precision, on_host: bool) -> dict[str, Any]:
    if precision is Precision.bf16:
        # the list names classes exactly: subclasses would be reduced in float32
        modules = ["torch.nn.Linear", "torch.nn.Conv2d", "torch.nn.Embedding"]
        return {
            "torch_autocast": {
                "enabled": True,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": modules,
            }
        }
    if precision is Precision.pure_bf16:
        return {"bf16": {"enabled": True, "check_grad_overflow": on_host}}
    if precision is Precision.fp16:
        # 2^16 to begin with, halved at each overflow, doubled after 2,000 steps without one
        return {"fp16": {"enabled": True, "initial_scale_power": 16, "loss_scale_window": 2000}}
    return {}
