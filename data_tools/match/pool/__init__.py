"""Pools are tables of (url, caption) that the user has; their usable rows are read as Arrow
batches."""

from data_tools.match.pool.account import Account, check_loss, first_unreadable
from data_tools.match.pool.clean import RowCounts, Usable, usable, with_uids
from data_tools.match.pool.columns import Batch
from data_tools.match.pool.csv_rows import quoted
from data_tools.match.pool.files import PoolFile, find_files, open_file, reading
from data_tools.match.pool.formats import problems_of, read_batches

__all__ = [
    "Account",
    "Batch",
    "PoolFile",
    "RowCounts",
    "Usable",
    "check_loss",
    "find_files",
    "first_unreadable",
    "open_file",
    "problems_of",
    "quoted",
    "read_batches",
    "reading",
    "usable",
    "with_uids",
]
