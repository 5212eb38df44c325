"""The CUDA part of bench_loss: one process as one rank, n = N."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor

from pipeline.loss import triton_launch
from pipeline.loss.tile_shapes import CANDIDATES, TileShape
from tests.benchmarks.bench_loss import LOG_SCALE, features, table
from tests.benchmarks.loss_providers import Provider, gpu_providers, recompute

SIZES = (8192, 32768, 65536, 262144)
DIMENSIONS = (512, 1024)
ROUNDS = 3
UNITS = 4  # matrix products of n x N x d that forward and backward need; 3 for the sigmoid loss


def milliseconds(call: Callable[[], Any], leaves: Sequence[Tensor] = ()) -> float:
    """Median of triton's do_bench, which clears the L2 cache between runs."""
    result = triton.testing.do_bench(
        call, warmup=25, rep=150, grad_to_none=list(leaves), return_mode="median"
    )
    return float(result)


def peak_mib(call: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return peak / 2**20


class Case:
    """One provider at one shape."""

    def __init__(self, name: str, provider: Provider, leaves: list[Tensor]) -> None:
        self.name, self.provider, self.leaves = name, provider, leaves
        self.forward: list[float] = []
        self.full: list[float] = []
        self.memory = 0.0
        self.failure = ""

    def _full(self) -> None:
        self.provider(*self.leaves).backward()

    def _forward(self) -> None:
        with torch.no_grad():
            self.provider(*self.leaves)

    def measure(self) -> None:
        """One round; a provider that fails once is not tried again."""
        if self.failure:
            return
        try:
            if not self.full:
                self.memory = peak_mib(self._full)
            self.forward.append(milliseconds(self._forward))
            self.full.append(milliseconds(self._full, self.leaves))
        except Exception as error:  # a peer may fail in any way; the table says so
            self.failure = f"{type(error).__name__}: {str(error)[:60]}".replace("\n", " ")
            self.forward, self.full = [], []
        finally:
            for leaf in self.leaves:
                leaf.grad = None
            torch.cuda.empty_cache()

    def row(self, unit_ms: float, unit_flop: float) -> list[str]:
        if self.failure or not self.full:
            return [self.name, self.failure or "not run", *[""] * 6]
        units = 3 if "sigmoid" in self.name else UNITS
        forward = sorted(self.forward)[len(self.forward) // 2]
        full = sorted(self.full)[len(self.full) // 2]
        return [
            self.name,
            f"{forward:.3g}",
            f"{full - forward:.3g}",
            f"{full:.3g} ({min(self.full):.3g} to {max(self.full):.3g})",
            f"{units * unit_flop / full / 1e9:.0f}",
            f"{full / (units * unit_ms):.2f}",
            f"{self.memory:.0f}",
            str(units),
        ]


def _shape_report(num_rows: int, dimension: int) -> str:
    leaves = features(num_rows, dimension, "cuda", torch.bfloat16)
    image, text = (leaf.detach() for leaf in leaves[:2])
    chunk = min(num_rows, 65536)  # the product alone, without room for all of its result
    unit = milliseconds(lambda: image[: 8192 if num_rows > 8192 else num_rows] @ text[:chunk].T)
    unit *= (num_rows / min(num_rows, 8192)) * (num_rows / chunk)
    flop = 2.0 * num_rows * num_rows * dimension
    cases = [Case(name, call, leaves) for name, call in gpu_providers(LOG_SCALE).items()]
    for _ in range(ROUNDS):
        for case in cases:
            case.measure()
    header = ["loss", "forward ms", "backward ms", "both ms", "TFLOP/s", "times cuBLAS"]
    header += ["extra MiB", "units"]
    title = f"### N = {num_rows:,}, d = {dimension}, bfloat16; one product by cuBLAS {unit:.3g} ms"
    return f"{title}\n\n" + table(header, [case.row(unit, flop) for case in cases])


def report(sizes: Sequence[int]) -> str:
    device = torch.cuda.get_device_properties(0)
    parts = [
        f"## {device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda},"
        f" triton {triton.__version__}\n",
        "TFLOP/s counts the units that the loss needs (4; 3 for the sigmoid loss), whatever a"
        " provider executes. Backward is both less forward.\n",
    ]
    for dimension in DIMENSIONS:
        for size in sizes:
            parts.append(_shape_report(size, dimension))
            torch.cuda.empty_cache()
    return "\n".join(parts)


@contextmanager
def _using(shape: TileShape) -> Iterator[None]:
    with mock.patch.object(triton_launch, "HALF", shape):
        yield


def shapes_report(num_rows: int = 32768) -> str:
    """Milliseconds of forward and of both with every candidate tile shape."""
    rows = []
    for dimension in DIMENSIONS:
        leaves = features(num_rows, dimension, "cuda", torch.bfloat16)
        for shape in CANDIDATES:
            with _using(shape):
                case = Case(str(shape), recompute, leaves)
                case.measure()
            numbers = case.failure or f"{case.forward[0]:.3g} | {case.full[0]:.3g}"
            rows.append([str(dimension), str(shape), *numbers.split(" | ")])
    return table(["d", "shape", "forward ms", "both ms"], rows)
