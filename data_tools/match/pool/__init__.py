"""Pools are tables of (url, caption) that the user has; their usable rows are read as Arrow
batches."""

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
