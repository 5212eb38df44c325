"""The pack stage: write clean pairs to shards in one global random order, with the same bytes every
time.

    shards/000000.tar              {uid}.jpg, {uid}.json and {uid}.txt of each sample, as WebDataset
    shards/000000.index.parquet    their places in the tar (data_tools.dataset.manifest.INDEX)
    shards/sizes.json              {"000000.tar": samples}, as open_clip and datacomp read it
    manifest.json                  written last: while it exists, the data set is complete

stage.py has the flow, order.py the shuffle, shards.py the work of one process on one shard, and
upload.py the copy to another storage.
"""

from __future__ import annotations

from data_tools.pack.stage import run, run_share

__all__ = ["run", "run_share"]
