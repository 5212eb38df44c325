"""What a run tells: metrics.jsonl always, W&B and TensorBoard beside it, a line or a bar on the
console. README.md beside this file explains every name."""

from pipeline.metrics.processor import MetricsProcessor

__all__ = ["MetricsProcessor"]
