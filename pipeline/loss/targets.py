"""Which columns of the global batch are positives of which rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Positives:
    """Labels of the local rows (n,) and of all columns (N,), int32, equal exactly for positives;
    ``counts`` (n,) int64 is the number of positive columns of each local row, never less than
    one."""

    x_labels: Tensor
    y_labels: Tensor
    counts: Tensor


def label_positives(all_ids: Tensor, offset: int, num_rows: int) -> Positives:
    """Compress int64 ids of the N columns to int32 labels: the rank of the id in sorted order.

    Rows ``offset`` to ``offset + num_rows`` of the columns are the local rows. Sorting and two
    binary searches need neither atomics nor a device-to-host copy, which torch.unique does.
    """
    ordered = all_ids.sort().values
    first = torch.searchsorted(ordered, all_ids)
    mine = slice(offset, offset + num_rows)
    counts = torch.searchsorted(ordered, all_ids[mine], right=True) - first[mine]
    labels = first.to(torch.int32)
    return Positives(labels[mine], labels, counts)
