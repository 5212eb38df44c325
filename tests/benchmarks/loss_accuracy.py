"""Relative gradient error against float64, beside open_clip's automatic mixed precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.loss import clip_loss
from pipeline.loss.reference import clip_loss_reference
from tests.benchmarks.loss_providers import Provider, open_clip

LOSS_SCALE = 2.0**12  # as a gradient scaler would: without one, float16 gradients underflow


def _batch(num_rows: int, dimension: int, noise: float) -> tuple[Tensor, Tensor]:
    """Float64 unit features of pairs in clusters of four."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    pairs = normal(num_rows // 4, dimension).repeat(4, 1) + 0.3 * normal(num_rows, dimension)
    sides = [pairs + noise * normal(num_rows, dimension) for _ in range(2)]
    image, text = (torch.nn.functional.normalize(side, dim=1) for side in sides)
    return image, text


def _gradients(function: Provider, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    loss = function(*leaves)
    gradients = torch.autograd.grad(loss * LOSS_SCALE, leaves)
    return [loss.detach(), *(gradient.double() / LOSS_SCALE for gradient in gradients)]


def _rows(scale: float, noise: float, num_rows: int, device: str) -> list[list[str]]:
    image, text = (side.to(device) for side in _batch(num_rows, 512, noise))
    log_scale = torch.tensor([math.log(scale)], device=device)
    exact = _gradients(clip_loss_reference, (image, text, log_scale.double()))
    rows = [[f"{scale:g}", f"float64 value {float(exact[0]):.3g}", "", "", "", ""]]
    for name, function, dtype in (
        ("ours, float32", clip_loss, torch.float32),
        ("open_clip, float32", open_clip, torch.float32),
        ("ours, float16", clip_loss, torch.float16),
        ("open_clip, amp float16", open_clip, torch.float16),
        ("ours, bfloat16", clip_loss, torch.bfloat16),
        ("open_clip, amp bfloat16", open_clip, torch.bfloat16),
    ):
        try:
            got = _gradients(function, (image.to(dtype), text.to(dtype), log_scale))
        except RuntimeError as error:  # a CPU without such products
            rows.append([f"{scale:g}", name, str(error)[:40], "", "", ""])
            continue
        errors = [
            float((one.double() - other).norm() / other.norm())
            for one, other in zip(got, exact, strict=True)
        ]
        rows.append([f"{scale:g}", name, *(f"{error:.1e}" for error in errors)])
    return rows


def report() -> str:
    """The table, on CUDA where there is one (Triton kernels for the 16-bit rows), else the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    num_rows = 4096 if device == "cuda" else 1024  # a CPU without bfloat16 products needs minutes
    lines = [
        f"## Relative error against float64, N = {num_rows:,}, d = 512, on {device}\n",
        "Features are rounded to the dtype; amp rounds logits to it before a float32 cross"
        " entropy. The loss is scaled by 4,096 before backward, as a gradient scaler would.\n",
        "| scale | loss | value | image gradient | text gradient | scale gradient |",
        "|---|---|---|---|---|---|",
    ]
    for scale, noise in ((100.0, 0.7), (100.0, 1.5), (14.3, 1.0)):
        lines += ["| " + " | ".join(row) + " |" for row in _rows(scale, noise, num_rows, device)]
    return "\n".join(lines) + "\n"
