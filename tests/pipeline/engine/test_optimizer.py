"""Who is decayed: matrices only, and every trainable parameter is in exactly one group."""

from __future__ import annotations

from pipeline.config import ModelConfig, TextConfig, TrainConfig, VisionConfig
from pipeline.engine.optimizer import build_optimizer
from pipeline.model import build_clip


def test_gains_biases_embeddings_and_the_scale_are_not_decayed() -> None:
    model = build_clip(
        ModelConfig(
            embed_dim=16,
            image_size=16,
            vision=VisionConfig(patch_size=8, width=16, num_layers=1, num_heads=2),
            text=TextConfig(context_length=8, width=16, num_layers=1, num_heads=2),
        ),
        init_logit_scale=2.0,
        max_logit_scale=4.6,
    )
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.3))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = (
        {names[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert decayed | kept == set(names.values()) and not decayed & kept
    assert "logit_scale" in kept
    assert all("embedding" not in name for name in decayed)
    assert all(name.endswith(("weight", "proj", "projection")) for name in decayed), decayed
    assert not any(".ln_" in name or name.endswith("bias") for name in decayed)
