"""Contrastive losses over the global batch: exact, deterministic, flat in memory. Start with
clip_loss.py."""

from pipeline.loss.clip_loss import ClipLossMetrics, clip_loss, clip_loss_with_metrics
from pipeline.loss.sigmoid_loss import sigmoid_loss
from pipeline.loss.text_gather import TextGather

__all__ = ["ClipLossMetrics", "TextGather", "clip_loss", "clip_loss_with_metrics", "sigmoid_loss"]
