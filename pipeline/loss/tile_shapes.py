"""Tile shapes of the Triton kernels, fixed by element size.

Nothing is tuned at run time: a shape that depended on timings would change the order of summation,
and with it the last bits, from run to run and from rank to rank.
``python -m tests.benchmarks.bench_loss --shapes`` times the alternatives on the GPU at hand.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class TileShape:
    """Rows, columns and depth of a tile, columns of an epilogue strip, and how to run it."""

    rows: int
    columns: int
    depth: int
    strip: int
    num_warps: int
    num_stages: int
    group: int = 8

    def __post_init__(self) -> None:
        if self.columns // self.strip not in (1, 2, 4) or self.columns % self.strip:
            raise ValueError(
                f"a tile of {self.columns} columns cannot be cut into strips of {self.strip};"
                " the kernels have 1, 2 or 4 strips"
            )


# 96 KiB of shared memory and, on sm_90, at most 128 registers a thread for the CLIP kernels without
# norms and labels (142 and 167 with them: tests/benchmarks/results/loss_registers.md): two such
# programs share a multiprocessor, so that one's epilogue runs beside the other's matrix product.
HALF = TileShape(rows=128, columns=128, depth=64, strip=32, num_warps=8, num_stages=3)
SINGLE = TileShape(rows=64, columns=64, depth=32, strip=32, num_warps=4, num_stages=2)
INTERPRETED = TileShape(rows=32, columns=32, depth=16, strip=16, num_warps=4, num_stages=1)

# What --shapes tries beside HALF; none spills on sm_90 in bfloat16.
CANDIDATES = (
    HALF,
    TileShape(rows=128, columns=128, depth=64, strip=64, num_warps=8, num_stages=3),
    TileShape(rows=128, columns=128, depth=64, strip=32, num_warps=4, num_stages=3),
    TileShape(rows=128, columns=128, depth=32, strip=32, num_warps=8, num_stages=4),
    TileShape(rows=128, columns=256, depth=64, strip=64, num_warps=8, num_stages=3),
    TileShape(rows=256, columns=128, depth=64, strip=32, num_warps=8, num_stages=3),
)


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on CPU tensors (tests only)."""
    return os.environ.get("TRITON_INTERPRET") == "1"
