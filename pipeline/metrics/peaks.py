"""Peak throughput of GPUs: the denominator of MFU (model FLOPs utilisation)."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from pipeline.config import Precision


class Peaks(NamedTuple):
    """Dense TFLOP/s of one device as torch counts devices; None where it has no such unit.

    Data sheets of NVIDIA since Ampere print the doubled figure of 2:4 sparse matrices: halved here.
    """

    bf16: float | None
    fp16: float | None
    tf32: float | None
    fp32: float


# The first name that matches counts. A part of a card (MIG) has no entry.
_PEAKS: list[tuple[str, Peaks]] = [
    # https://www.nvidia.com/en-us/data-center/h100/ (H100 SXM and NVL; 1,979 and 1,671 sparse)
    (r"\bH100 NVL\b", Peaks(835.5, 835.5, 417.5, 60)),
    # NVIDIA H100 Tensor Core GPU Architecture, table 2: H100 PCIe has 114 SMs of 132
    (r"\bH100 PCIe\b", Peaks(756, 756, 378, 51.2)),
    (r"\bH100\b", Peaks(989.4, 989.4, 494.7, 66.9)),
    # https://www.nvidia.com/en-us/data-center/h200/
    (r"\bH200 NVL\b", Peaks(835.5, 835.5, 417.5, 60)),
    (r"\bH200\b", Peaks(989.4, 989.4, 494.7, 66.9)),
    # NVIDIA Blackwell datasheet, HGX B200, one GPU: 4.5 PFLOPS sparse, TF32 2.2, FP32 75
    (r"\bB200\b", Peaks(2250, 2250, 1125, 75)),
    # https://www.nvidia.com/en-us/data-center/a100/ (SXM and PCIe alike)
    (r"\bA100\b", Peaks(312, 312, 156, 19.5)),
    # NVIDIA L40S datasheet: 362.05 | 733 with sparsity
    (r"\bL40S\b", Peaks(362.05, 362.05, 183, 91.6)),
    # NVIDIA A10 datasheet; the A10G of cloud providers is another chip
    (r"\bA10\b", Peaks(125, 125, 62.5, 31.2)),
    # NVIDIA Tesla V100 datasheet: no bfloat16, no TF32
    (r"\bV100-PCIE", Peaks(None, 112, None, 14)),
    (r"\bV100-SXM2", Peaks(None, 125, None, 15.7)),
    # NVIDIA Ada GPU architecture, appendix A, accumulating in float32; Laptop and D are others
    (r"\bRTX 4090$", Peaks(165.2, 165.2, 82.6, 82.6)),
    # https://www.amd.com/en/products/accelerators/instinct/mi200/mi250x.html (383 and 95.7 in
    # matrix cores): torch sees each of its two dies as a device
    (r"\bMI250X\b", Peaks(191.5, 191.5, None, 47.9)),
    # AMD Instinct MI300X data sheet
    (r"\bMI300X\b", Peaks(1307.4, 1307.4, 653.7, 163.4)),
]


def peak_tflops(device_name: str, precision: Precision, tf32: bool) -> float | None:
    """Dense TFLOP/s of matrix products in `precision`; None where the card is not in the table.

    device_name: as torch.cuda.get_device_name() says. tf32: float32 products may use it.
    """
    if "MIG" in device_name:
        return None
    for pattern, peaks in _PEAKS:
        if re.search(pattern, device_name):
            if precision is Precision.fp32:
                return peaks.tf32 if tf32 and peaks.tf32 else peaks.fp32
            return peaks.fp16 if precision is Precision.fp16 else peaks.bf16
    return None


def peak_of(device: torch.device, precision: Precision) -> float | None:
    """peak_tflops of this process's device; None on a CPU."""
    if device.type != "cuda":
        return None
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return peak_tflops(torch.cuda.get_device_name(device), precision, tf32)
