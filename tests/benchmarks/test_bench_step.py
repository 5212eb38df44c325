"""The benchmarks of the step run where there is no GPU; what they count is right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.model.text import EOT_TOKEN
from tests.benchmarks.step_batches import (
    CAPTIONS,
    FULL,
    START_TOKEN,
    as_floats,
    caption_lengths,
    make_batch,
    mean_length,
)
from tests.benchmarks.step_providers import open_clip_flops
from tests.pipeline.model.model_configs import model_config

ROOT = Path(__file__).parents[2]


def run(*command: str) -> str:
    found = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize("kind", CAPTIONS)
def test_caption_lengths(kind):
    """Without the cut they have the mean and the deviation that they are named after."""
    lengths = caption_lengths(kind, 100_000, 10_000, seed=0) - 2
    mean, deviation = CAPTIONS[kind]
    assert np.mean(lengths) == pytest.approx(mean, rel=0.02)
    assert np.std(lengths) == pytest.approx(deviation, rel=0.05)
    assert caption_lengths(kind, 1000, 77, seed=0).max() <= 77


def test_batches_are_cut_as_by_the_loader():
    config = model_config("demo")
    batch = make_batch(config, 32, "cc3m", seed=0)
    ends = (batch.tokens == EOT_TOKEN).int()
    assert batch.tokens[:, 0].eq(START_TOKEN).all() and ends.sum(dim=1).eq(1).all()
    assert mean_length(batch) == pytest.approx(float(ends.argmax(dim=1).float().mean()) + 1)
    assert mean_length(make_batch(config, 4, FULL, seed=0)) == config.text.context_length

    images, tokens = as_floats(batch, config)
    assert tokens.shape == (32, config.text.context_length) and tokens.dtype == torch.int64
    assert tokens.ne(0).sum() == batch.tokens.ne(0).sum()
    mean = images.mean(dim=(0, 2, 3)) * torch.tensor(config.image_std)
    expected = torch.tensor(0.5) - torch.tensor(config.image_mean)
    torch.testing.assert_close(mean, expected, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("name", "gflop"), [("vit_b_32", 14.78), ("vit_b_16", 41.09), ("vit_l_14", 175.33)]
)
def test_open_clip_flops(name, gflop):
    """open_clip's docs/model_profile.csv."""
    assert open_clip_flops(model_config(name)) / 1e9 == pytest.approx(gflop, rel=5e-4)


@pytest.mark.slow
def test_bench_step(tmp_path):
    out = tmp_path / "step.md"
    options = ["--models=tiny", "--batch=4", "--parts=2", "--repeats=1", "--seconds=0.01"]
    run("tests.benchmarks.bench_step", *options, f"--out={out}")
    text = out.read_text()
    for name, samples in (("ours", 4), ("ours, 2 micro-batches", 8)):
        assert re.search(rf"^\| {name} \| {samples} \| [\d.e+]+ \(", text, re.MULTILINE), text
    assert "open_clip is not installed" in text or "| open_clip | 4 |" in text, text


@pytest.mark.slow
def test_bench_host(tmp_path):
    out = tmp_path / "host.md"
    run("tests.benchmarks.bench_host", "--batch=4", "--repeats=2", f"--out={out}")
    text = out.read_text()
    for name in ("bare", "engine", "engine, with the average of weights"):
        assert re.search(rf"^\| {name} \| [\d.e+]+ \| ", text, re.MULTILINE), text
    assert "train.overlap_text_gather=true" in text
