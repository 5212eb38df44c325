"""Every model's parameters, name and shape, against tests/golden/params/<model>.txt.

A changed name or shape makes checkpoints unreadable, so it shall be seen in a diff. To accept it:
    python -m tests.pipeline.model.test_params
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.model import CLIP, build_clip, count_parameters
from tests.pipeline.model.model_configs import NAMES, model_config

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "params"


def build(name: str) -> CLIP:
    with torch.device("meta"):  # shapes without memory
        return build_clip(model_config(name), init_logit_scale=2.0, max_logit_scale=4.0)


def table(name: str) -> str:
    lines = [f"{key} {tuple(value.shape)}" for key, value in build(name).named_parameters()]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_the_golden_ones(name):
    assert table(name) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_hold_parameters_only(name):
    model = build(name)
    assert list(model.state_dict()) == [key for key, _ in model.named_parameters()]
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    assert all(parameter.dim() >= 1 for parameter in model.parameters())


def test_every_model_file_has_its_golden_file_and_its_name():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(NAMES)
    assert [model_config(name).name for name in NAMES] == list(NAMES)


@pytest.mark.parametrize(
    "name, published",
    # open_clip's docs/model_profile.csv, column params, as exact sums.
    [("vit_b_32", 151_277_313), ("vit_b_16", 149_620_737), ("vit_l_14", 427_616_513)],
)
def test_sizes_are_the_published_ones(name, published):
    assert count_parameters(build(name)) == published


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for model_name in NAMES:
        (GOLDEN / f"{model_name}.txt").write_text(table(model_name))
