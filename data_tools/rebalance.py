"""Stage 8: balance again, among the pairs that survived crawl and curation.

Links rot unevenly, so the counts that `balance` went by are not those of the data set. The same
hash decides as there: what is kept here was kept there.
"""

from __future__ import annotations

import sys

import pyarrow as pa

from data_tools.config import DatasetJob
from data_tools.schema import (
    BALANCED,
    CURATED,
    FATES,
    KEPT,
    DatasetPaths,
    read_table,
    write_table,
)


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Write the balanced table and the fates of what was dropped."""
    curated = read_table(paths.table("curated"), CURATED)
    kept = read_table(paths.table("kept"), KEPT).select(["uid", "keep_probability"])
    plain = curated.drop_columns(["captions"]).join(kept, "uid", join_type="inner").sort_by("uid")
    order = curated.sort_by("uid")
    table = plain.append_column("captions", order["captions"])
    write_table(table, paths.table("balanced"), BALANCED)
    write_table(pa.Table.from_pylist([], FATES), paths.fates("rebalance"), FATES)
    return {"curated": curated.num_rows, "balanced": table.num_rows}


if __name__ == "__main__":
    from data_tools.build import main

    sys.exit(main(sys.argv[1:], stage="rebalance"))
