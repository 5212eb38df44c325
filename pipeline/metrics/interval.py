"""The steps since the last log line: collected on each rank, then summed over ranks by one
all-reduce."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import psutil
import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from pipeline.distributed.world import World
from pipeline.state import StepMetrics

CHECKSUM_MODULUS = 2**24


@dataclass(frozen=True)
class TakenStep:
    """One step as this rank saw it."""

    step: int
    """Number of finished steps, this one included."""
    samples_before: int
    """samples_seen before this step."""
    keys: list[str]
    metrics: StepMetrics


@dataclass(frozen=True)
class Totals:
    """An interval of k steps, reduced over ranks; equal on every rank."""

    losses: list[float]
    """(k) Loss of the global batch, per step."""
    skipped: list[bool]
    """(k) True for a step without a finite gradient."""
    grad_norms: list[float]
    """(3) Gradient norms of the last step: image tower, text tower, all parameters."""
    logit_scale: float
    """Value at the last step, log-space."""
    top1: list[float]
    """(2) Top-1 of the last step over the global batch, image to text and text to image; or
    empty."""
    mean_cosines: list[float]
    """(2) Mean cosine of two features of one rank at the last step, of images and of texts; or
    empty."""
    equal_captions: float
    """Share of the last global batch's rows whose caption another row has too."""
    wait_s: float
    """Mean seconds waited for data, per rank and step."""
    num_replaced: int
    key_checksum: int
    flops: float
    """Floating-point operations of all ranks, forward and backward."""
    towers_s: list[float]
    """(world size) Seconds in the towers: each rank's median over the steps."""
    memory_gib: list[float]
    """(world size) Memory of each rank; see `memory_gib`."""


class StepBuffer:
    """Collects steps without reading any tensor; only `reduce`, at log steps, reads them.

    Per step it holds two scalars on the device, two timer events and the keys, so
    logging.every_steps bounds its size.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.clear()

    def clear(self) -> None:
        self.steps: list[TakenStep] = []
        self._wait_s = 0.0
        self._num_replaced = 0
        self._flops = 0.0
        self._checksum = 0

    def add(self, taken: TakenStep, *, waited_s: float, num_replaced: int, flops: float) -> None:
        """Add a step. The checksum is a sum of hashes of (step, key) over samples, so it does not
        depend on the number of ranks: two runs with equal checksums used the same samples at the
        same steps."""
        self.steps.append(taken)
        self._wait_s += waited_s
        self._num_replaced += num_replaced
        self._flops += flops
        # seeded with the finished steps before this one, which is how the data order counts
        seed = taken.step - 1
        self._checksum += sum(xxhash.xxh32_intdigest(key.encode(), seed=seed) for key in taken.keys)

    def reduce(self) -> Totals:
        """Collective: a gather of the last step's caption ids, then one all-reduce (sum, float64),
        which also waits for the device.

        Sums in float64 of the float32 values that are equal on all ranks (norms, scale) are exact,
        and so is their division by the number of ranks; those of checksums are exact below 2^53.
        """
        count, ranks = len(self.steps), self._world.world_size
        last = self.steps[-1].metrics
        parts = {
            "losses": torch.stack([taken.metrics.loss.reshape(()) for taken in self.steps]),
            "skipped": torch.stack([taken.metrics.skipped.reshape(()) for taken in self.steps]),
            "grad_norms": last.grad_norms,
            "logit_scale": last.logit_scale.reshape(1),
            "equal_captions": _share_of_equal(last.caption_ids, ranks),
            "host": self._host_part(),
        }
        if last.top1 is not None:
            parts["top1"] = last.top1
        if last.mean_cosines is not None:
            parts["mean_cosines"] = last.mean_cosines
        device = self._world.device
        shared = torch.cat([part.to(device, torch.float64) for part in parts.values()])
        dist.all_reduce(shared)
        values = iter(shared.tolist())
        sums = {name: [next(values) for _ in range(len(part))] for name, part in parts.items()}
        wait_s, num_replaced, checksum, flops = sums["host"][:4]
        return Totals(
            losses=[value / ranks for value in sums["losses"]],
            skipped=[value / ranks > 0.5 for value in sums["skipped"]],
            grad_norms=[value / ranks for value in sums["grad_norms"]],
            logit_scale=sums["logit_scale"][0] / ranks,
            top1=[value / ranks for value in sums.get("top1", [])],
            mean_cosines=[value / ranks for value in sums.get("mean_cosines", [])],
            equal_captions=sums["equal_captions"][0] / ranks,
            wait_s=wait_s / ranks / count,
            num_replaced=int(num_replaced),
            key_checksum=int(checksum) % CHECKSUM_MODULUS,
            flops=flops,
            towers_s=sums["host"][4 : 4 + ranks],
            memory_gib=sums["host"][4 + ranks :],
        )

    def _host_part(self) -> Tensor:
        """Four sums, then two vectors of one place per rank. This rank fills its own place and
        leaves zeros elsewhere, so the all-reduce (a sum) gathers them."""
        ranks, rank = self._world.world_size, self._world.rank
        own = torch.zeros(4 + 2 * ranks, dtype=torch.float64)
        checksum = self._checksum % CHECKSUM_MODULUS
        own[:4] = torch.tensor(
            [self._wait_s, self._num_replaced, checksum, self._flops], dtype=torch.float64
        )
        own[4 + rank] = statistics.median(taken.metrics.towers.seconds() for taken in self.steps)
        own[4 + ranks + rank] = memory_gib(self._world.device)
        return own


def _share_of_equal(caption_ids: Tensor, ranks: int) -> Tensor:
    """(1,) Share of all ranks' rows whose id another row has too, left on the device. Collective:
    (n,) of each rank."""
    of_all = caption_ids.new_empty(ranks * len(caption_ids))
    dist.all_gather_into_tensor(of_all, caption_ids)
    ids = of_all.sort().values
    same = torch.nn.functional.pad(ids[1:] == ids[:-1], (1, 1))  # as the row before it
    return (same[1:] | same[:-1]).float().mean().reshape(1)


def memory_gib(device: torch.device) -> float:
    """Peak of the device on CUDA, resident set of this rank on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30
