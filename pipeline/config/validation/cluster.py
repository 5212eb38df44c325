"""Rules for the GPUs of a node, wherever the ranks are started."""

from __future__ import annotations

from pipeline.config.schema import ClusterConfig


def gpu_problems(cluster: ClusterConfig) -> list[str]:
    """One rank takes one GPU: NCCL refuses two, and a GPU more idles."""
    ranks, gpus = cluster.ranks_per_node, cluster.gpus_per_node
    if gpus < 1 or gpus == ranks:
        return []
    so = f"{gpus - ranks} would idle" if gpus > ranks else "NCCL takes one rank a GPU"
    return [
        f"cluster.ranks_per_node = {ranks}: {so}, as cluster.gpus_per_node = {gpus}; give "
        f"cluster.ranks_per_node={gpus}, or cluster.gpus_per_node={ranks}"
    ]
