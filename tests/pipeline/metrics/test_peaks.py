"""Names that drivers give to cards find their row, and no other card's."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import Precision
from pipeline.metrics.peaks import _PEAKS, peak_of, peak_tflops


@pytest.mark.parametrize(
    "name, bf16",
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("A100-PCIE-40GB", 312),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA A10", 125),
        ("Tesla V100-SXM2-32GB", None),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI250X", 191.5),
        ("AMD Instinct MI300X", 1307.4),
        # neighbours in name that compute something else
        ("NVIDIA A10G", None),
        ("NVIDIA L40", None),
        ("NVIDIA GB200", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_of_bfloat16(name, bf16):
    assert peak_tflops(name, Precision.bf16, tf32=False) == bf16
    assert peak_tflops(name, Precision.pure_bf16, tf32=False) == bf16


def test_other_precisions():
    assert peak_tflops("Tesla V100-SXM2-32GB", Precision.fp16, tf32=False) == 125
    assert peak_tflops("NVIDIA A100-SXM4-80GB", Precision.fp32, tf32=False) == 19.5
    assert peak_tflops("NVIDIA A100-SXM4-80GB", Precision.fp32, tf32=True) == 156
    assert peak_tflops("Tesla V100-SXM2-32GB", Precision.fp32, tf32=True) == 15.7


def test_rows_are_dense_figures():
    """The figures of one card have fixed ratios: 16 bits compute twice what TF32 does, and a sparse
    figure in one column alone would break that."""
    for pattern, peaks in _PEAKS:
        assert peaks.bf16 in (None, peaks.fp16), pattern
        if peaks.tf32 is not None:
            assert peaks.fp16 == pytest.approx(2 * peaks.tf32, rel=0.015), pattern


def test_a_cpu_has_no_peak():
    assert peak_of(torch.device("cpu"), Precision.bf16) is None
