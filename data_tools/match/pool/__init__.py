"""Pools: tables of (url, caption) at hand, as Arrow batches of the rows that can be used."""

from data_tools.match.pool.clean import RowCounts, Usable, usable, with_uids
from data_tools.match.pool.files import PoolFile, find_files, open_file, reading
from data_tools.match.pool.formats import Batch, problems_of, read_batches

__all__ = [
    "Batch",
    "PoolFile",
    "RowCounts",
    "Usable",
    "find_files",
    "open_file",
    "problems_of",
    "read_batches",
    "reading",
    "usable",
    "with_uids",
]
