"""The pack stage: clean pairs into shards, in one global random order, the same bytes every time.

    shards/000000.tar              {uid}.jpg, {uid}.json, {uid}.txt of each sample; plain WebDataset
    shards/000000.index.parquet    where in the tar they lie (data_tools.dataset.manifest.INDEX)
    shards/sizes.json              {"000000.tar": samples}, as open_clip and datacomp read it
    manifest.json                  written last: when it is there, the data set is whole

stage.py is the flow, order.py the shuffle, shards.py what a process does for one shard, upload.py
the copy to another storage.
"""

from __future__ import annotations

from data_tools.pack.stage import run, run_share

__all__ = ["run", "run_share"]
