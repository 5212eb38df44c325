"""Contrastive losses over the global batch: exact, deterministic, flat in memory. Start with
clip_loss.py."""

from pipeline.loss.clip_loss import clip_loss
from pipeline.loss.sigmoid_loss import sigmoid_loss
from pipeline.loss.text_gather import TextGather

__all__ = ["TextGather", "clip_loss", "sigmoid_loss"]
