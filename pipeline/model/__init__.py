"""The two towers. In: uint8 images and token ids. Out: one raw feature vector each, and the logit
scale.

A model knows neither ranks nor losses; `build_clip` is the one way to make it from a config.
"""

from pipeline.model.clip import CLIP, ClipOutput, build_clip
from pipeline.model.size import count_parameters, flops_per_sample

__all__ = ["CLIP", "ClipOutput", "build_clip", "count_parameters", "flops_per_sample"]
