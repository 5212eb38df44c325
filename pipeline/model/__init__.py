"""The two towers. In: uint8 images and token ids. Out: one raw feature vector each, and the logit
scale.

A model knows neither ranks nor losses. `initial_clip` is the one to train, `clip_of_weights` one to
use.
"""

from pipeline.model.clip import CLIP, ClipOutput, build_clip, clip_of_weights, initial_clip
from pipeline.model.size import count_parameters, flops_per_sample

__all__ = [
    "CLIP",
    "ClipOutput",
    "build_clip",
    "clip_of_weights",
    "count_parameters",
    "flops_per_sample",
    "initial_clip",
]
