"""Settings of the pack stage: size and order of the shards."""

from dataclasses import dataclass

from data_tools.config.problems import below


@dataclass(kw_only=True, slots=True)
class PackConfig:
    samples_per_shard: int = 10000
    seed: int = 0
    """Of the global shuffle: samples lie in the order of hash(seed, uid)."""


def problems(config: PackConfig) -> list[str]:
    return below([("pack.samples_per_shard", config.samples_per_shard, 1)])
