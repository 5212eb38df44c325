"""Compile the Triton kernels for GPUs that are not here, and read what the compiler made of them.

``python -m tests.pipeline.loss.ahead_of_time`` prints the table. The triton wheel brings ptxas and
cuobjdump.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipeline.loss.clip_gradient_kernels import grad_kernel, kept_grad_kernel
from pipeline.loss.clip_sums_kernels import merge_kernel, sums_kernel
from pipeline.loss.sigmoid_kernel import sigmoid_kernel
from pipeline.loss.tile_shapes import HALF, TileShape
from pipeline.loss.triton_launch import FLOAT16_LIMIT

ARCHITECTURES = (80, 90, 100)
FEATURES = ("X", "Y", "G")  # of the features' dtype; most other pointers are to float32
NORMS, LABELS = ("XNORM", "YNORM"), ("XLABELS", "YLABELS")
BEST, KEPT = ("ROW_BEST", "COLUMN_BEST"), ("KEPT", "STRIP_TOP")


@dataclass(frozen=True)
class Case:
    """A kernel and which of its optional pointers are None."""

    name: str
    kernel: Any
    absent: tuple[str, ...]


CASES = (
    Case("sums", sums_kernel, NORMS + LABELS + BEST + KEPT),
    Case("sums, keeping", sums_kernel, NORMS + LABELS + BEST),
    Case("sums, normalised, ids, top-1", sums_kernel, KEPT),
    Case("gradient", grad_kernel, (*NORMS, *LABELS, "WEIGHT")),
    Case("gradient, normalised, ids", grad_kernel, ()),
    Case("gradient of kept", kept_grad_kernel, (*NORMS, "WEIGHT")),
    Case("gradient of kept, normalised", kept_grad_kernel, ("WEIGHT",)),
    Case("sigmoid", sigmoid_kernel, NORMS + LABELS),
    Case("sigmoid, normalised, ids", sigmoid_kernel, ()),
    Case("sigmoid, loss only", sigmoid_kernel, (*NORMS, *LABELS, "G")),
    Case("merge", merge_kernel, ()),
)


@dataclass(frozen=True)
class Usage:
    registers: int
    stack_bytes: int  # spilled registers live there; the kernels use it for nothing else
    shared_bytes: int
    wgmma: int
    tcgen05: int


def compile_case(
    case: Case,
    architecture: int,
    shape: TileShape = HALF,
    dtype: str = "bf16",
    *,
    even: bool = True,
) -> Usage:
    """Compile for an architecture such as 90, and features of "bf16", "fp16" or "fp32".

    ``even``: of a dimension that is a multiple of a tile's depth.
    """
    constants: dict[str, Any] = {
        **{"EVEN": even, "BM": shape.rows, "BN": shape.columns, "BK": shape.depth},
        **{"WIDTH": shape.strip, "GROUP": shape.group},
        "LIMIT": FLOAT16_LIMIT if dtype == "fp16" else 0.0,
        **{"ACCUMULATE": True, "BP": 16, "BW": 128},
    }
    names = case.kernel.arg_names
    constants = {name: constants[name] for name in names if name in constants}
    constants |= {name: None for name in case.absent}
    pointers = {
        **{name: f"*{dtype}" for name in FEATURES},
        **{"XLABELS": "*i32", "YLABELS": "*i32"},
        "KEPT": "*fp32" if dtype == "fp32" else "*fp16",
    }
    signature = {name: _type(name, name in constants, pointers) for name in names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name] not in ("constexpr", "fp32")
    }
    merging = case.kernel is merge_kernel
    compiled = triton.compile(
        ASTSource(case.kernel, signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={
            "num_warps": 4 if merging else shape.num_warps,
            "num_stages": shape.num_stages,
            "enable_fp_fusion": True,
        },
    )
    registers, stack = _resources(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    return Usage(
        registers=registers,
        stack_bytes=stack,
        shared_bytes=compiled.metadata.shared,
        wgmma=ptx.count("wgmma.mma_async"),
        tcgen05=ptx.count("tcgen05.mma"),
    )


def _type(name: str, constant: bool, pointers: dict[str, str]) -> str:
    if constant:
        return "constexpr"
    if name in ("target", "uniform"):
        return "fp32"
    return pointers.get(name, "*fp32") if name.isupper() else "i32"


def _resources(cubin: bytes) -> tuple[int, int]:
    folder = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [os.path.join(folder, "cuobjdump"), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found = re.search(r"REG:(\d+) STACK:(\d+)", text.stdout)
    if found is None:
        raise ValueError(f"cuobjdump printed no resource usage: {text.stdout!r}")
    return int(found[1]), int(found[2])


def table(architectures: tuple[int, ...] = ARCHITECTURES, cases: tuple[Case, ...] = CASES) -> str:
    lines = [
        f"bfloat16, tile {HALF.rows} x {HALF.columns} x {HALF.depth}, strips of {HALF.strip},"
        f" {HALF.num_warps} warps, {HALF.num_stages} stages, triton {triton.__version__}",
        "",
        "| kernel | target | registers | spilled bytes | shared KiB | wgmma | tcgen05 |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        for architecture in architectures:
            usage = compile_case(case, architecture)
            lines.append(
                f"| {case.name} | sm_{architecture} | {usage.registers} | {usage.stack_bytes} |"
                f" {usage.shared_bytes / 1024:.0f} | {usage.wgmma} | {usage.tcgen05} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
