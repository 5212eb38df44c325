"""The logit scale's clamp, and the count of operations."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import Stem
from pipeline.model import build_clip, flops_per_sample
from tests.pipeline.model.model_configs import (
    model_config,
    random_images,
    random_tokens,
    small_clip,
    small_config,
)


def scale_gradient(value: float, upstream: float) -> tuple[float, float]:
    model = small_clip()
    with torch.no_grad():
        model.logit_scale.fill_(value)
    output = model(random_images(1, 32), random_tokens([3], columns=3))
    (upstream * output.logit_scale).sum().backward()
    gradient = model.logit_scale.grad
    assert gradient is not None and output.logit_scale.shape == gradient.shape == (1,)
    return output.logit_scale.item(), gradient.item()


def test_inside_the_range_the_scale_passes():
    assert scale_gradient(3.0, -2.0) == (3.0, -2.0)
    assert scale_gradient(3.0, 2.0) == (3.0, 2.0)


def test_outside_the_range_only_the_way_back_has_a_gradient():
    ln_100 = pytest.approx(math.log(100))
    assert scale_gradient(5.0, 2.0) == (ln_100, 2.0)  # descent lowers it
    assert scale_gradient(5.0, -2.0) == (ln_100, 0.0)
    assert scale_gradient(-1.0, -2.0) == (0.0, -2.0)
    assert scale_gradient(-1.0, 2.0) == (0.0, 0.0)


def test_a_scale_pushed_beyond_the_border_comes_back():
    model = small_clip()
    images, tokens = random_images(1, 32), random_tokens([3], columns=3)
    optimizer = torch.optim.AdamW([model.logit_scale], lr=0.1, weight_decay=0.0)
    seen = []
    for step in range(120):
        sign = -1.0 if step < 80 else 1.0  # the loss wants it up, then down
        optimizer.zero_grad()
        (sign * model(images, tokens).logit_scale).sum().backward()
        optimizer.step()
        seen.append(model.logit_scale.item())
    assert math.log(100) < max(seen) < math.log(100) + 2.0
    assert seen[-1] < math.log(100) - 0.5


@pytest.mark.parametrize("initial", [-0.1, 4.7, math.nan])
def test_an_initial_scale_outside_the_range_is_refused(initial):
    with pytest.raises(ValueError, match="loss.init_logit_scale"), torch.device("meta"):
        build_clip(small_config(), init_logit_scale=initial, max_logit_scale=math.log(100))


@pytest.mark.parametrize("stem", list(Stem))
def test_flops_are_those_that_run(stem):
    config = small_config(stem=stem)
    model = small_clip(config)
    # The counter knows no formula for the CPU's fused attention, but counts its plain form.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(random_images(2, 32), random_tokens([9, 5], columns=9))
    assert counter.get_total_flops() == 2 * flops_per_sample(config, text_tokens=9)


@pytest.mark.parametrize(
    "name, gflops", [("vit_b_32", 14.78), ("vit_b_16", 41.09), ("vit_l_14", 175.3)]
)
def test_flops_agree_with_open_clips_table(name, gflops):
    """Its figures hold the whole last block, of which this project computes one token."""
    config = model_config(name)
    image_tokens = (config.image_size // config.vision.patch_size) ** 2 + 1
    left_out = 18 * (image_tokens - 1) * config.vision.width**2
    left_out += 18 * (config.text.context_length - 1) * config.text.width**2
    assert (flops_per_sample(config) + left_out) / 1e9 == pytest.approx(gflops, rel=1e-3)


def test_shorter_captions_cost_less():
    config = model_config("vit_b_32")
    assert flops_per_sample(config, text_tokens=16) < 0.7 * flops_per_sample(config)
    assert flops_per_sample(config, text_tokens=77) == flops_per_sample(config)
