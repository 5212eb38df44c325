"""Memory does not grow with the pool."""

import pytest

from tests.benchmarks import bench_pool_scale

SIZES = (150_000, 600_000)
# 450,000 more rows of candidates are 115 MB; a merge that held them all took 300 MB more.
GROWTH_BYTES = 80e6


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_times_the_captions_take_no_more_memory(tmp_path):
    """Match and merge, each in a process of its own; the merge in 30 MB, in parts on disk."""
    peaks = {}
    for size in SIZES:
        folder = tmp_path / str(size)
        bench_pool_scale.prepare(folder, size, num_queries=20_000)
        for name in ("match", "candidates"):
            measured = bench_pool_scale.in_own_process(name, folder, merge_memory_gb=0.03)
            peaks[name, size] = measured["peak_bytes"]
            assert measured["counts"].get("pool_rows", size) == size
            assert measured["counts"].get("matched", size) > 0.99 * size
    for name in ("match", "candidates"):
        small, large = (peaks[name, size] for size in SIZES)
        assert large - small < GROWTH_BYTES, f"{name}: {small / 1e6:.0f} MB, {large / 1e6:.0f} MB"
